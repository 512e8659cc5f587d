"""Writes decomposed layer normalisations in many spellings."""

import numpy as np
from spelling import Spelling, commuted

H = 6
SHAPE = (2, 3, H)
RNG = np.random.default_rng(0)
SCALE = RNG.uniform(0.5, 1.5, H).astype(np.float32)
BIAS = RNG.standard_normal(H).astype(np.float32)
X = RNG.standard_normal(SHAPE).astype(np.float32)

ROOTS = ["div-sqrt", "div-pow", "reciprocal", "one-over", "pow", "sqrt-reciprocal"]
SQUARES = ["pow", "mul"]
FORMS = ["after", "on-inverse", "on-centred", "scale-over-root", "tensorflow"]
AFFINE = ["both", "scale", "bias", "neither"]
MEANS = ["mean", "sum", "share", "squeezed"]


def layer_norm(
    spell,
    x="x",
    root="div-sqrt",
    square="pow",
    form="after",
    affine="both",
    subs=1,
    swap=False,
    axes=(-1,),
    variance_axes=None,
    keepdims=None,
    mean="mean",
    length=H,
    epsilon=1e-5,
    epsilon_shape=(),
    exponent=2.0,
    parameter_shape=(H,),
    scale=SCALE,
    bias=BIAS,
):
    """The computation in one of its spellings; the defaults are PyTorch's."""

    def mean_of(value, over):
        attributes = {} if keepdims is None else {"keepdims": keepdims}
        if mean == "squeezed":
            return unsqueezed(spell, reduced(spell, "ReduceMean", value, over, keepdims=0), over)
        if mean == "mean":
            return reduced(spell, "ReduceMean", value, over, **attributes)
        total = reduced(spell, "ReduceSum", value, over, **attributes)
        if mean == "sum":
            return spell("Div", total, spell.number(float(length)))
        return commuted(spell, "Mul", total, spell.number(1.0 / length), swap)

    average = mean_of(x, axes)
    subs = 1 if form == "tensorflow" else subs  # a second Sub would be dead there
    centred = spell("Sub", x, average)
    again = spell("Sub", x, mean_of(x, axes) if subs == 3 else average) if subs > 1 else centred
    squared = spell("Mul", again, again) if square == "mul" else spell("Pow", again, spell.number(exponent))
    variance = mean_of(squared, axes if variance_axes is None else variance_axes)
    if epsilon is not None:
        variance = commuted(spell, "Add", variance, spell.number(epsilon, shape=epsilon_shape), swap)
    factor = spell.array(np.resize(scale, parameter_shape)) if affine in ("both", "scale") else None
    shift = spell.array(np.resize(bias, parameter_shape)) if affine in ("both", "bias") else None
    if form == "after" or (factor is None and form != "tensorflow"):
        value = divided(spell, centred, variance, root, swap)
        value = value if factor is None else commuted(spell, "Mul", value, factor, swap)
    elif form == "scale-over-root":
        value = commuted(spell, "Mul", centred, spell("Div", factor, spell("Sqrt", variance)), swap)
    elif form == "on-centred":
        value = divided(spell, commuted(spell, "Mul", centred, factor, swap), variance, root, swap)
    else:
        inverse = inverse_root(spell, variance, root)
        inverse = inverse if factor is None else commuted(spell, "Mul", inverse, factor, swap)
        if form == "tensorflow" and shift is not None:
            scaled_mean = commuted(spell, "Mul", average, inverse, swap)
            left, right = commuted(spell, "Mul", x, inverse, not swap), spell("Sub", shift, scaled_mean)
            return commuted(spell, "Add", left, right, swap)
        value = commuted(spell, "Mul", centred, inverse, swap)
    return value if shift is None else commuted(spell, "Add", value, shift, swap)


def reduced(spell, op, value, axes, **attributes):
    """A reduction, with its axes as the opset has them."""
    if axes is None:
        return spell(op, value, **attributes)
    if spell.opset >= (13 if op == "ReduceSum" else 18):
        return spell(op, value, spell.array(np.array(axes, np.int64)), **attributes)
    return spell(op, value, axes=list(axes), **attributes)


def unsqueezed(spell, value, axes):
    if spell.opset >= 13:
        return spell("Unsqueeze", value, spell.array(np.array(axes, np.int64)))
    return spell("Unsqueeze", value, axes=list(axes))


def inverse_root(spell, variance, root):
    if root in {"one-over", "div-sqrt"}:
        return spell("Div", spell.number(1.0), spell("Sqrt", variance))
    if root in {"pow", "div-pow"}:
        return spell("Pow", variance, spell.number(-0.5))
    if root == "sqrt-reciprocal":
        return spell("Sqrt", spell("Reciprocal", variance))
    return spell("Reciprocal", spell("Sqrt", variance))


def divided(spell, value, variance, root, swap):
    if root == "div-sqrt":
        return spell("Div", value, spell("Sqrt", variance))
    if root == "div-pow":
        return spell("Div", value, spell("Pow", variance, spell.number(0.5)))
    return commuted(spell, "Mul", value, inverse_root(spell, variance, root), swap)


def model_of(opset=17, shape=SHAPE, outputs=(), constants="initializer", **spelling):
    spell = Spelling(opset, shape=shape, constants=constants)
    return spell.model(layer_norm(spell, **spelling), outputs)
