"""Activations: as ops, and decomposed in the ways of exporters, with constants that are right or nearly right."""

from __future__ import annotations

import math

from onnx import TensorProto

from rewright.testing.strategies.products import linear
from rewright.testing.strategies.writer import Part, Value, Writer


def _biased(w: Writer) -> Value:
    """What is activated: a value, or a value plus a bias."""
    form = w.pick("value", "bias", "linear")
    if form == "linear":
        return linear(w)
    return w.commuted("Add", w.read(), w.weight(*w.pick((), (1,)), w.sizes.hidden)) if form == "bias" else w.read()


def _factored(w: Writer, x: Value, half: float, other: Value) -> Value:
    """half * x * other, in any order and association."""
    number = w.scalar(half)
    form = w.pick("x first", "other first", "halved", "outer")
    if form == "other first":
        return w.commuted("Mul", x, w.commuted("Mul", other, number))
    if form == "outer":
        return w.commuted("Mul", w.commuted("Mul", x, other), number)
    if form == "halved" and half == 0.5:
        return w.commuted("Mul", w.op("Div", x, w.scalar(2.0)), other)
    return w.commuted("Mul", w.commuted("Mul", x, number), other)


def gelu(w: Writer) -> Value:
    """0.5 x (1 + erf(x / sqrt(2)))."""
    if w.kind == TensorProto.DOUBLE:
        return fast_gelu(w)
    x = _biased(w)
    root = w.nearly(w.pick(math.sqrt(2), 1.4142135381698608), 1.4142, 1.41, 1.4)
    scaled = w.op("Div", x, w.scalar(root)) if w.chance() else w.commuted("Mul", x, w.scalar(1 / root))
    erf = w.commuted("Add", w.op("Erf", scaled), w.scalar(w.nearly(1.0, 0.9, 2.0)))
    return _factored(w, x, w.nearly(0.5, 0.25, 0.49), erf)


def fast_gelu(w: Writer) -> Value:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))."""
    x = _biased(w)
    coefficient = w.nearly(0.044715, 0.0447, 0.04)
    slope = w.nearly(w.pick(math.sqrt(2 / math.pi), 0.79788456), 0.7979, 0.8)
    cube = w.op("Pow", x, w.scalar(3.0)) if w.chance() else w.commuted("Mul", x, w.op("Mul", x, x))
    form = w.pick("sum", "factored")
    if form == "sum":
        inner = w.commuted("Mul", w.commuted("Add", x, w.commuted("Mul", cube, w.scalar(coefficient))), w.scalar(slope))
    else:
        square = w.op("Mul", x, x)
        one = w.commuted("Add", w.commuted("Mul", square, w.scalar(coefficient)), w.scalar(1.0))
        inner = w.commuted("Mul", w.commuted("Mul", x, w.scalar(slope)), one)
    tanh = w.commuted("Add", w.op("Tanh", inner), w.scalar(w.nearly(1.0, 1.1)))
    return _factored(w, x, w.nearly(0.5, 1.0), tanh)


def sigmoid_gelu(w: Writer) -> Value:
    """x sigmoid(alpha x); SiLU where alpha is left out."""
    x = _biased(w)
    alpha = w.pick(1.702, None, 1.0, 1.7)
    inner = x if alpha is None else w.commuted("Mul", x, w.scalar(alpha))
    return w.commuted("Mul", x, w.op("Sigmoid", inner))


def activation_op(w: Writer) -> Value:
    """The op itself, of each opset."""
    if w.kind == TensorProto.DOUBLE:
        return w.op("Tanh", _biased(w))
    known = ["Relu"]
    if w.opset >= 14:
        known.append("HardSwish")
    if w.opset >= 18:
        known.append("Mish")
    if w.opset >= 20:
        known.append("Gelu")
    op = w.pick(*known)
    if op == "Gelu" and w.chance():
        return w.op(op, _biased(w), approximate=w.pick("none", "tanh"))
    return w.op(op, _biased(w))


PARTS: dict[str, Part] = {
    "gelu": gelu,
    "fast-gelu": fast_gelu,
    "sigmoid-gelu": sigmoid_gelu,
    "activation-op": activation_op,
}
