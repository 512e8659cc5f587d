"""Elementwise ops, comparisons, casts and softmaxes.

Values stay of moderate size, and what jumps (Floor, casts to integers, comparisons) reads the model's inputs only: anywhere
else a difference of one rounding step would become a difference of one, and no rewrite that reassociates could be compared.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from rewright.testing.strategies.writer import BOOL, FLOAT, INT64, Attributes, Part, Value, Writer

_UNARY = ("Relu", "Neg", "Tanh", "Sigmoid", "Abs", "Softsign", "Sin", "Cos", "Erf", "Softplus", "LeakyRelu", "Elu", "HardSigmoid")
_FLOAT_ONLY = {"Erf", "Softplus", "Elu", "HardSigmoid", "Softsign", "LeakyRelu", "Cos"}
"""Ops whose float64 kernels ONNX Runtime lacks on the CPU."""


def raw(w: Writer) -> Value:
    """A value that no rounding has touched: an input of the model, of the stream's dimensions."""
    return w.values[0] if w.is_function else w.pick(*w.root.values[:2])


def unary(w: Writer) -> Value:
    op = w.pick(*_UNARY)
    if w.kind == TensorProto.DOUBLE and op in _FLOAT_ONLY:
        op = "Tanh"
    if op in ("LeakyRelu", "Elu") and w.chance():
        return w.op(op, w.read(), alpha=w.pick(0.01, 0.5))
    return w.op(op, w.read())


def binary(w: Writer) -> Value:
    a, b = w.read(), operand(w)
    op = w.pick("Add", "Sub", "Mul", "Max", "Min", "Div")
    if op == "Div":
        return w.op("Div", a, w.commuted("Add", w.op("Abs", b), w.scalar(1.0)))
    if op == "Mul":
        return w.commuted("Mul", a, w.op("Tanh", b))
    return w.op(op, a, b) if op == "Sub" else w.commuted(op, a, b)


def operand(w: Writer) -> Value:
    """What broadcasts to the stream: a value, a vector, a number, or a vector over a leading axis."""
    form = w.pick("value", "vector", "number", "column")
    if form == "vector":
        return w.weight(*w.pick((), (1,), (1, 1)), w.sizes.hidden, mean=1.0)
    if form == "number":
        return w.scalar(w.pick(1.0, 0.0, 0.5, -1.0, 2.0))
    if form == "column":
        return w.reduce("ReduceMax", w.read(), [w.pick(-1, 1)])
    return w.read()


def power(w: Writer) -> Value:
    exponent = w.scalar(w.pick(2.0, 1.0, 0.5, -1.0, 3.0))
    return w.op("Pow", w.commuted("Add", w.op("Abs", w.op("Tanh", w.read())), w.scalar(1.0)), exponent)


def clip(w: Writer) -> Value:
    """Optional inputs: either bound may be left out."""
    low, high = w.constant(-1.0), w.constant(w.pick(2.0, 6.0))
    bounds = w.pick((low, high), (None, high), (low,), (low, None), ())
    return w.op("Clip", w.read(), *bounds, dims=w.sizes.stream)


def variadic(w: Writer) -> Value:
    read = [w.read() for _ in range(w.some(1, 3))]
    return w.op(w.pick("Sum", "Max", "Min", *(("Mean",) if w.kind == FLOAT else ())), *read)


def softmax(w: Writer) -> Value:
    axis = w.pick(-1, 2, 1)
    attributes: Attributes = {} if axis == -1 and w.chance() else {"axis": axis}
    return w.op(w.pick("Softmax", "LogSoftmax"), w.op("Tanh", w.read()), **attributes)


def choice(w: Writer) -> Value:
    """Where over a comparison of inputs."""
    x = raw(w)
    compared = w.op(w.pick("Greater", "Less", "GreaterOrEqual", "LessOrEqual"), x, w.scalar(w.pick(0.0, 0.5)), kind=BOOL)
    if w.chance():
        compared = w.op("Not", compared)
    if w.chance():
        compared = w.commuted(w.pick("And", "Or", "Xor"), compared, w.op("IsNaN", x, kind=BOOL))
    other = w.pick("value", "number", "mask")
    if other == "mask":
        return w.commuted("Mul", w.read(), w.cast(compared, w.kind))
    return w.op("Where", compared, w.read(), operand(w) if other == "value" else w.scalar(0.0), kind=w.kind)


def jump(w: Writer) -> Value:
    """Rounded inputs, as a summand."""
    x = w.op("Mul", raw(w), w.scalar(0.7311))
    rounded = w.op(w.pick("Floor", "Ceil", "Round", "Sign"), x) if w.chance() else w.cast(w.cast(x, INT64), w.kind)
    return w.commuted("Add", w.read(), w.op("Tanh", rounded))


def there_and_back(w: Writer) -> Value:
    """Casts to another float type and back. To a wider one that changes nothing, to a narrower one it rounds."""
    x = raw(w)
    wide = TensorProto.DOUBLE if w.kind == FLOAT or w.rarely() else FLOAT
    kind = w.pick(wide, TensorProto.FLOAT16, w.kind)
    if kind == TensorProto.FLOAT16:  # 30 standard deviations are within its range
        return w.commuted("Add", w.cast(w.cast(x, kind), w.kind), w.read())
    if w.opset >= 15 and w.chance():
        there = w.op("CastLike", x, w.constant(0.0, kind), kind=kind, dims=x.dims)
        return w.op("CastLike", there, x, kind=w.kind, dims=x.dims)
    return w.cast(w.cast(w.read(), kind), w.kind)


def cumulative(w: Writer) -> Value:
    axis = w.constant(w.pick(1, -1, 2), w.pick(INT64, TensorProto.INT32))
    if w.kind == TensorProto.FLOAT16:
        return w.op("Tanh", w.read())
    return w.op(
        "Tanh", w.op("CumSum", w.op("Tanh", w.read()), axis, dims=w.sizes.stream, exclusive=w.pick(0, 1), reverse=w.pick(0, 1))
    )


def triangle(w: Writer) -> Value:
    if w.opset < 14 or w.kind == TensorProto.FLOAT16:
        return w.op("Relu", w.read())
    diagonal = w.pick((), (w.constant(1, INT64),), (w.constant(-1, INT64),))
    return w.op("Trilu", w.read(), *diagonal, dims=w.sizes.stream, upper=w.pick(0, 1))


def counted(w: Writer) -> Value:
    """Arithmetic over int64 constants and an input, cast and added."""
    numbers = w.integers(*[int(n) for n in np.random.default_rng(w.some(0, 9)).integers(1, 6, w.sizes.hidden)])
    for _ in range(w.some(0, 3)):
        op = w.pick("Add", "Mul", "Sub", "Div", "Mod", "Max")
        numbers = w.op(op, numbers, w.constant(w.pick(1, 2, 3), INT64))
    return w.commuted("Add", w.read(), w.cast(numbers, w.kind))


PARTS: dict[str, Part] = {
    "unary": unary,
    "binary": binary,
    "power": power,
    "clip": clip,
    "variadic": variadic,
    "softmax": softmax,
    "choice": choice,
    "jump": jump,
    "cast": there_and_back,
    "cumulative": cumulative,
    "triangle": triangle,
    "integers": counted,
}
