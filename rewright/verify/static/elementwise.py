"""Bounds of elementwise ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import inf
from typing import Any, Final

from rewright.verify.static.interval import ANYTHING, TRUTH, Interval, hull, product, scaled
from rewright.verify.static.ranges import Accumulated, Bound, Exactly, Ranges, Rule, attribute_of

_GELU_LOWEST: Final = -0.1701
"""Gelu's minimum is -0.16997 near x = -0.75, its tanh approximation's -0.17004."""
_SILU_LOWEST: Final = -0.27847
_MISH_LOWEST: Final = -0.30885
_POLYNOMIAL: Final = 1e-6


def _x(ranges: Ranges, node: Any) -> Interval:
    return ranges.of(node.inputs[0])


def _rising(function: Callable[[float], float], low: float = -inf, high: float = inf, error: float = 0.0) -> Rule:
    """A function that never falls, whose results are never outside [low, high].

    ``error`` is what kernels that use a polynomial are off by, near an asymptote in all digits: ONNX Runtime's Sigmoid stops
    falling at -18.
    """

    def rule(ranges: Ranges, node: Any) -> Bound:
        found = _x(ranges, node).mapped(function)
        return Interval(found.low - error, found.high + error).meet(Interval(low, high))

    return rule


def _bounded(low: float, high: float) -> Rule:
    return lambda ranges, node: Interval(low, high)


def _exp(x: float) -> float:
    return math.exp(x) if x < 709.0 else inf


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x))) if math.isfinite(x) else max(x, 0.0)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + _exp(-x))


def _softsign(x: float) -> float:
    return x / (1.0 + abs(x)) if math.isfinite(x) else math.copysign(1.0, x)


def _whole(function: Callable[[float], int]) -> Rule:
    def rule(ranges: Ranges, node: Any) -> Bound:
        return _x(ranges, node).mapped(lambda x: float(function(x)) if math.isfinite(x) else x)

    return rule


def _relu(ranges: Ranges, node: Any) -> Bound:
    return Exactly(_x(ranges, node).mapped(lambda x: max(x, 0.0)))


def _abs(ranges: Ranges, node: Any) -> Bound:
    x = _x(ranges, node)
    low = 0.0 if 0.0 in x else min(abs(x.low), abs(x.high))
    found = Interval(low, x.magnitude)
    dtype = ranges.dtype(node.outputs[0])
    return found if dtype is None or dtype.kind != "f" else Exactly(found)


def _neg(ranges: Ranges, node: Any) -> Bound:
    return -_x(ranges, node)


def _add(ranges: Ranges, node: Any) -> Bound:
    return ranges.of(node.inputs[0]) + ranges.of(node.inputs[1])


def _sub(ranges: Ranges, node: Any) -> Bound:
    one, two = node.inputs[:2]
    if ranges.relations(two).above == id(ranges.resolved(one)):
        return (ranges.of(one) - ranges.of(two)).meet(Interval(-inf, 0.0))  # x - max(x)
    return ranges.of(one) - ranges.of(two)


def _mul(ranges: Ranges, node: Any) -> Bound:
    one, two = node.inputs[:2]
    if ranges.resolved(one) is ranges.resolved(two):
        return _power(ranges.of(one), 2.0)
    return ranges.of(one) * ranges.of(two)


def _div(ranges: Ranges, node: Any) -> Bound:
    dtype = ranges.dtype(node.outputs[0])
    if dtype is not None and dtype.kind in "iu":
        one, two = ranges.of(node.inputs[0]), ranges.of(node.inputs[1])
        return Interval(-one.magnitude, one.magnitude) if 0.0 not in two else None
    return ranges.of(node.inputs[0]) / ranges.of(node.inputs[1])


def _pow(ranges: Ranges, node: Any) -> Bound:
    exponent = ranges.scalar(node.inputs[1])
    return None if exponent is None else _power(_x(ranges, node), exponent)


def _power(x: Interval, exponent: float) -> Interval:
    """x ** exponent, where the exponent is one number."""
    if exponent == 0.0:
        return Interval(1.0, 1.0)
    if exponent < 0.0:
        return ANYTHING if x.low <= 0.0 else _power(x.reciprocal(), -exponent)

    def raised(base: float) -> float:
        try:
            return math.pow(base, exponent)
        except OverflowError:
            return math.copysign(inf, base) if exponent % 2 == 1 else inf

    if exponent % 2 == 0:
        least = 0.0 if 0.0 in x else min(abs(x.low), abs(x.high))
        return Interval(raised(least), raised(x.magnitude))
    if exponent % 1 == 0 or x.low >= 0.0:
        return x.mapped(raised)
    return Interval(0.0, max(raised(max(x.high, 0.0)), 0.0))  # NaN for what is negative


def _clip(ranges: Ranges, node: Any) -> Bound:
    x = _x(ranges, node)
    low, high = ranges.operand(node, 1), ranges.operand(node, 2)
    if ranges.opset < 11:
        least, most = attribute_of(node, "min", -inf), attribute_of(node, "max", inf)
        low, high = Interval(least, least), Interval(most, most)
    if low is not None:
        x = Interval(max(x.low, low.low), max(x.high, low.high))
    if high is not None:
        x = Interval(min(x.low, high.low), min(x.high, high.high))
    return Exactly(x)


def _largest(ranges: Ranges, node: Any) -> Bound:
    known = [ranges.of(tensor) for tensor in node.inputs]
    return Exactly(Interval(max(one.low for one in known), max(one.high for one in known)))


def _smallest(ranges: Ranges, node: Any) -> Bound:
    known = [ranges.of(tensor) for tensor in node.inputs]
    return Exactly(Interval(min(one.low for one in known), min(one.high for one in known)))


def _sum(ranges: Ranges, node: Any) -> Bound:
    known = [ranges.of(tensor) for tensor in node.inputs]
    total = Interval(0.0, 0.0)
    for one in known:
        total = total + one
    return Accumulated(total, sum(one.magnitude for one in known), len(known)) if total.is_bounded else total


def _mean(ranges: Ranges, node: Any) -> Bound:
    found = _sum(ranges, node)
    if not isinstance(found, Accumulated):
        return found
    return Accumulated(scaled(found.interval, 1.0 / len(node.inputs)), found.total, len(node.inputs), 1.0 / len(node.inputs))


def _where(ranges: Ranges, node: Any) -> Bound:
    condition = ranges.of(node.inputs[0])
    if condition.is_number:
        return Exactly(ranges.of(node.inputs[1 if condition.low else 2]))
    return Exactly(ranges.of(node.inputs[1]).join(ranges.of(node.inputs[2])))


def _cast(ranges: Ranges, node: Any) -> Bound:
    to, source = ranges.dtype(node.outputs[0]), ranges.dtype(node.inputs[0])
    if to is None or source is None or source.kind in "OSU":
        return None
    if to.kind == "b":
        return TRUTH
    if to.kind in "iu" and source.kind not in "iub":
        return None  # NaN may be any integer
    return _x(ranges, node)


def _prelu(ranges: Ranges, node: Any) -> Bound:
    return _leaky(_x(ranges, node), ranges.of(node.inputs[1]))


def _leaky(x: Interval, slope: Interval) -> Interval:
    parts = []
    if x.high >= 0.0:
        parts.append(Interval(max(x.low, 0.0), x.high))
    if x.low < 0.0:
        parts.append(Interval(x.low, min(x.high, 0.0)) * slope)
    return hull(parts)


def _leaky_relu(ranges: Ranges, node: Any) -> Bound:
    alpha = float(attribute_of(node, "alpha", 0.01))
    return _leaky(_x(ranges, node), Interval(alpha, alpha))


def _elu(ranges: Ranges, node: Any) -> Bound:
    alpha = float(attribute_of(node, "alpha", 1.0))
    x = _x(ranges, node)
    return Interval(min(-abs(alpha), 0.0), max(x.high, abs(alpha) if alpha < 0 else 0.0))


def _selu(ranges: Ranges, node: Any) -> Bound:
    alpha, gamma = float(attribute_of(node, "alpha", 1.67326)), float(attribute_of(node, "gamma", 1.0507))
    if alpha < 0 or gamma < 0:
        return None
    x = _x(ranges, node)
    return Interval(-alpha * gamma, product(gamma, max(x.high, 0.0)))


def _dipping(lowest: float) -> Rule:
    """Gelu and its kin: between min(x, 0) and max(x, 0), and never below ``lowest``."""

    def rule(ranges: Ranges, node: Any) -> Bound:
        x = _x(ranges, node)
        return Interval(max(min(x.low, 0.0), lowest), max(x.high, 0.0))

    return rule


def _biased_gelu(ranges: Ranges, node: Any) -> Bound:
    x, bias = _x(ranges, node), ranges.operand(node, 1)
    x = x if bias is None else x + bias
    return Interval(max(min(x.low, 0.0), _GELU_LOWEST), max(x.high, 0.0))


def _swish(default: float) -> Rule:
    def rule(ranges: Ranges, node: Any) -> Bound:
        alpha = float(attribute_of(node, "alpha", default))
        x = _x(ranges, node)
        lowest = _SILU_LOWEST / alpha if alpha > 0 else -inf
        return Interval(max(min(x.low, 0.0), lowest), max(x.high, 0.0)) if alpha > 0 else x.join(Interval(0.0, 0.0))

    return rule


def _mod(ranges: Ranges, node: Any) -> Bound:
    size = ranges.of(node.inputs[1]).magnitude
    return Interval(-size, size)


_ONE_OR_ZERO: Final = (
    "And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "EyeLike",
    "Bernoulli",
)  # fmt: skip

RULES: Final[dict[tuple[str, str], Rule]] = {
    ("", "Relu"): _relu,
    ("", "Abs"): _abs,
    ("", "Neg"): _neg,
    ("", "Add"): _add,
    ("", "Sub"): _sub,
    ("", "Mul"): _mul,
    ("", "Div"): _div,
    ("", "Pow"): _pow,
    ("", "Mod"): _mod,
    ("", "Sum"): _sum,
    ("", "Mean"): _mean,
    ("", "Max"): _largest,
    ("", "Min"): _smallest,
    ("", "Clip"): _clip,
    ("", "Where"): _where,
    ("", "Cast"): _cast,
    ("", "CastLike"): _cast,
    ("", "PRelu"): _prelu,
    ("", "LeakyRelu"): _leaky_relu,
    ("", "Elu"): _elu,
    ("", "Selu"): _selu,
    ("", "Exp"): _rising(_exp, low=0.0),
    ("", "Log"): _rising(lambda x: math.log(x) if x > 0 else -inf),
    ("", "Sqrt"): _rising(lambda x: math.sqrt(max(x, 0.0)), low=0.0),
    ("", "Erf"): _rising(math.erf, -1.0, 1.0, _POLYNOMIAL),
    ("", "Tanh"): _rising(math.tanh, -1.0, 1.0, _POLYNOMIAL),
    ("", "Sigmoid"): _rising(_sigmoid, 0.0, 1.0, _POLYNOMIAL),
    ("", "Softsign"): _rising(_softsign, -1.0, 1.0),
    ("", "Softplus"): _rising(_softplus, low=0.0),
    ("", "Atan"): _rising(math.atan, -math.pi / 2, math.pi / 2),
    ("", "HardSigmoid"): _bounded(0.0, 1.0),
    ("", "Sin"): _bounded(-1.0, 1.0),
    ("", "Cos"): _bounded(-1.0, 1.0),
    ("", "Sign"): _bounded(-1.0, 1.0),
    ("", "Floor"): _whole(math.floor),
    ("", "Ceil"): _whole(math.ceil),
    ("", "Round"): _whole(round),
    ("", "Reciprocal"): lambda ranges, node: _x(ranges, node).reciprocal(),
    ("", "HardSwish"): _dipping(-0.3751),
    ("", "Mish"): _dipping(_MISH_LOWEST),
    ("", "Gelu"): _dipping(_GELU_LOWEST),
    ("", "Swish"): _swish(1.0),
    ("com.microsoft", "Gelu"): _dipping(_GELU_LOWEST),
    ("com.microsoft", "FastGelu"): _biased_gelu,
    ("com.microsoft", "BiasGelu"): _biased_gelu,
    ("com.microsoft", "QuickGelu"): _swish(1.702),
    **{("", op): _bounded(0.0, 1.0) for op in _ONE_OR_ZERO},
}
"""Rules by (domain, op)."""
