"""Normalisations: as ops, and decomposed in the ways of exporters, with constants that are right or nearly right."""

from __future__ import annotations

from onnx import TensorProto

from rewright.testing.strategies.products import linear
from rewright.testing.strategies.writer import FLOAT, Attributes, Part, Value, Writer

_EPSILONS = (1e-5, 1e-6, 1e-3, 1e-12)
_HALF_EPSILONS = (1e-3, 1e-2)
"""float16 has no number as small as the usual ones."""


def layer_norm(w: Writer, x: Value | None = None) -> Value:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias."""
    given, x = _widened(w, w.read() if x is None else x)
    axes = w.nearly([-1], [1], [-1, -2])
    centred = w.op("Sub", x, w.reduce("ReduceMean", x, axes))
    again = w.op("Sub", x, w.reduce("ReduceMean", x, axes)) if w.rarely() else centred
    variance = _mean_square(w, again, axes)
    return _ended(w, given, centred, variance)


def rms_norm(w: Writer, x: Value | None = None) -> Value:
    """x / sqrt(mean(x²) + epsilon) * scale."""
    given, x = _widened(w, w.read() if x is None else x)
    return _ended(w, given, x, _mean_square(w, x, w.nearly([-1], [1], [0])), has_bias=w.rarely())


def _widened(w: Writer, x: Value) -> tuple[Value, Value]:
    """What is normalised, and in which type: as exporters compute float16 norms in float32."""
    return x, w.cast(x, FLOAT) if w.kind == TensorProto.FLOAT16 or w.rarely() else x


def _mean_square(w: Writer, x: Value, axes: list[int]) -> Value:
    form = w.nearly(w.pick("Pow", "Mul"), "wrong power", "sum")
    if form == "sum" and x.kind == FLOAT and axes == [-1]:
        total = w.reduce("ReduceSumSquare", x, axes)
        return w.op("Div", total, w.scalar(w.pick(w.sizes.hidden, w.sizes.hidden - 1), x.kind))
    if form == "Mul":
        return w.reduce("ReduceMean", w.op("Mul", x, x), axes)
    power = 4.0 if form == "wrong power" else 2.0
    return w.reduce("ReduceMean", w.op("Pow", x, w.scalar(power, w.pick(x.kind, FLOAT))), axes)


def _ended(w: Writer, given: Value, x: Value, square: Value, *, has_bias: bool = True) -> Value:
    """The division by the root, and the affine end; epsilon is inside the root, or, wrongly, outside it."""
    epsilon = w.scalar(w.pick(*_EPSILONS), x.kind)
    outside = w.rarely()
    inner = square if outside else w.commuted("Add", square, epsilon)
    if outside:
        root = w.commuted("Add", w.op("Sqrt", inner), w.scalar(1e-3, x.kind))
    elif w.rarely():
        root = w.op("Pow", inner, w.scalar(0.5, x.kind))
    else:
        root = w.op("Sqrt", inner)
    scaled = w.op("Div", x, root) if w.chance() else w.commuted("Mul", x, w.op("Reciprocal", root))
    early = scaled.kind != w.kind and w.chance()
    if early:
        scaled = w.cast(scaled, w.kind)
    scaled = _affine(w, scaled, has_bias)
    return scaled if scaled.kind == w.kind else w.cast(scaled, w.kind)


def _affine(w: Writer, x: Value, has_bias: bool) -> Value:
    hidden = w.sizes.hidden

    def vector(mean: float) -> Value:
        found = w.scalar(mean + 0.25) if w.rarely() else w.weight(*w.pick((), (1, 1)), hidden, mean=mean)
        return found if found.kind == x.kind else w.cast(found, x.kind)

    if not w.rarely():
        x = w.commuted("Mul", x, vector(1.0))
    if has_bias and not w.rarely():
        x = w.commuted("Add", x, vector(0.0))
    return x


def norm_op(w: Writer, x: Value | None = None) -> Value:
    """The op itself, of each opset, with optional inputs and attributes left out."""
    x, hidden = w.read() if x is None else x, w.sizes.hidden
    attributes: Attributes = {}
    if w.chance():
        attributes["epsilon"] = w.pick(*(_HALF_EPSILONS if w.kind == TensorProto.FLOAT16 else _EPSILONS))
    if w.chance():
        attributes["axis"] = w.pick(-1, 2)
    if w.opset >= 23 and w.kind != TensorProto.DOUBLE and w.chance():
        return w.op("RMSNormalization", x, w.weight(hidden, mean=1.0), dims=x.dims, **attributes)
    if w.opset < 17:
        return layer_norm(w, x)
    bias = w.pick((w.weight(hidden),), ())
    if w.rarely():
        mean, deviation = (w.fresh(FLOAT, [*x.dims[:-1], 1]) for _ in range(2))
        result = w.fresh(x.kind, x.dims)
        inputs = [x, w.weight(hidden, mean=1.0), *bias]
        w.nodes_of("LayerNormalization", inputs, [result, mean, deviation], **attributes)
        return result
    return w.op("LayerNormalization", x, w.weight(hidden, mean=1.0), *bias, dims=x.dims, **attributes)


def residual_norm(w: Writer) -> Value:
    """A norm of a sum, which others read too."""
    x, skip = w.read(), w.read()
    form = w.pick("plain", "bias", "linear")
    if form != "plain":
        x = linear(w, x) if form == "linear" else w.commuted("Add", x, w.weight(w.sizes.hidden))
    total = w.commuted("Add", x, skip)
    w.values.append(total)
    return w.pick(norm_op, layer_norm, rms_norm)(w, w.read() if w.rarely() else total)


PARTS: dict[str, Part] = {
    "layer-norm": layer_norm,
    "rms-norm": rms_norm,
    "norm-op": norm_op,
    "residual-norm": residual_norm,
}
