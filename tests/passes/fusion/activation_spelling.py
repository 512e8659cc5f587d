"""Every way in which exporters and modelling code write the activations, on a Spelling."""

import math

from spelling import commuted

SQRT2 = math.sqrt(2)
SLOPE = math.sqrt(2 / math.pi)
CUBIC = 0.044715

SCALES = ["div", "mul", "div-sqrt", "mul-reciprocal-sqrt", "mul-div-sqrt"]
HALVES = ["first", "on-sum", "last", "on-x-div", "distributed", "last-div"]
ARGUMENTS = ["pow", "cube", "cube-right", "square", "div", "sqrt", "factored", "factored-pow", "distributed", "inner", "short"]


def gelu(spell, x="x", scale="div", half="first", swap=False, half_value=0.5, sqrt2=SQRT2, one=1.0):
    """0.5 * x * (1 + erf(x / sqrt(2)))"""
    if scale == "div":
        scaled = spell("Div", x, spell.number(sqrt2))
    elif scale == "mul":
        scaled = commuted(spell, "Mul", x, spell.number(1 / sqrt2), swap)
    else:
        root = spell("Sqrt", spell.number(sqrt2**2))
        if scale == "div-sqrt":
            scaled = spell("Div", x, root)
        elif scale == "mul-reciprocal-sqrt":
            scaled = commuted(spell, "Mul", x, spell("Reciprocal", root), swap)
        else:
            scaled = commuted(spell, "Mul", x, spell("Div", spell.number(1.0), root), swap)
    return half_times_x(spell, x, spell("Erf", scaled), half, swap, half_value, one)


def half_times_x(spell, x, inner, half, swap, half_value=0.5, one=1.0):
    """half_value * x * (inner + one)"""
    if half == "distributed":
        inner = commuted(spell, "Mul", inner, spell.number(half_value), swap)
        return commuted(spell, "Mul", x, commuted(spell, "Add", inner, spell.number(half_value), swap), not swap)
    total = commuted(spell, "Add", inner, spell.number(one), swap)
    if half == "first":
        return commuted(spell, "Mul", commuted(spell, "Mul", x, spell.number(half_value), swap), total, swap)
    if half == "on-x-div":
        return commuted(spell, "Mul", spell("Div", x, spell.number(1 / half_value)), total, swap)
    if half == "on-sum":
        return commuted(spell, "Mul", x, commuted(spell, "Mul", total, spell.number(half_value), swap), swap)
    product = commuted(spell, "Mul", x, total, swap)
    if half == "last-div":
        return spell("Div", product, spell.number(1 / half_value))
    return commuted(spell, "Mul", product, spell.number(half_value), swap)


def tanh_argument(spell, x, kind, swap=False, slope=SLOPE, cubic=CUBIC, exponent=3, shape=()):
    """slope * (x + cubic * x^3)"""

    def times(left, right):
        return commuted(spell, "Mul", left, right, swap)

    def plus(left, right):
        return commuted(spell, "Add", left, right, swap)

    def number(value):
        return spell.number(value, shape=shape)

    def power(of):
        return spell("Pow", x, number(of))

    if kind in ("pow", "div", "sqrt"):
        total = plus(x, times(number(cubic), power(exponent)))
        if kind == "div":
            return spell("Div", total, number(1 / slope))
        return times(spell("Sqrt", number(slope**2)) if kind == "sqrt" else number(slope), total)
    if kind == "cube":
        return times(number(slope), plus(x, times(number(cubic), times(times(x, x), x))))
    if kind == "cube-right":
        return times(plus(x, times(times(x, times(x, x)), number(cubic))), number(slope))
    if kind == "square":
        return times(number(slope), plus(x, times(times(number(cubic), x), power(exponent - 1))))
    if kind == "factored":
        growth = plus(number(1.0), times(times(number(cubic), x), x))
        return times(times(x, number(slope)), growth)
    if kind == "factored-pow":
        return times(times(number(slope), x), plus(times(power(exponent - 1), number(cubic)), number(1.0)))
    both = 0.035677 if kind == "short" else slope * cubic
    if kind == "inner":
        return times(x, plus(number(slope), times(times(x, x), number(both))))
    cube = times(times(x, x), x)
    return plus(times(number(0.797885 if kind == "short" else slope), x), times(number(both), cube))


def tanh_gelu(spell, x="x", argument="pow", half="first", swap=False, half_value=0.5, one=1.0, **change):
    """0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))); half "sigmoid": x * sigmoid(2 * ...)"""
    if half == "sigmoid":
        change["slope"] = 2 * change.get("slope", SLOPE)
        inner = tanh_argument(spell, x, "cube" if argument in ("sqrt", "short") else argument, swap, **change)
        return commuted(spell, "Mul", x, spell("Sigmoid", inner), swap)
    return half_times_x(spell, x, spell("Tanh", tanh_argument(spell, x, argument, swap, **change)), half, swap, half_value, one)


QUICK = ["mul", "div", "none", "exp", "exp-neg-outside", "exp-constant", "reciprocal-exp"]


def quick_gelu(spell, x="x", kind="mul", alpha=1.702, swap=False, shape=()):
    """x * sigmoid(alpha * x); kinds "none" and "exp" take alpha as 1."""
    if kind in ("mul", "div", "none"):
        if kind == "mul":
            inner = commuted(spell, "Mul", x, spell.number(alpha, shape=shape), swap)
        else:
            inner = spell("Div", x, spell.number(1 / alpha, shape=shape)) if kind == "div" else x
        return commuted(spell, "Mul", x, spell("Sigmoid", inner), not swap)
    if kind == "exp":
        exponent = spell("Neg", x)
    elif kind == "exp-constant":
        exponent = commuted(spell, "Mul", x, spell.number(-alpha), swap)
    else:
        exponent = spell("Neg", commuted(spell, "Mul", x, spell.number(alpha), swap))
    denominator = commuted(spell, "Add", spell("Exp", exponent), spell.number(1.0), swap)
    if kind == "reciprocal-exp":
        return commuted(spell, "Mul", spell("Reciprocal", denominator), x, swap)
    return spell("Div", x, denominator)
