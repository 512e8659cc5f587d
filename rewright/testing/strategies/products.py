"""Products with weights, and reductions in all spellings."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from rewright.testing.strategies.writer import Attributes, Part, Value, Writer

_REDUCTIONS = (
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL2",
    "ReduceL1",
    "ReduceSumSquare",
    "ReduceLogSumExp",
    "ReduceProd",
)


def linear(w: Writer, x: Value | None = None, size: int | None = None, *, may_lack_bias: bool = True) -> Value:
    """x @ W + b, with W as it is or transposed, the bias before or after, of any shape that broadcasts."""
    x = w.read() if x is None else x
    inner = x.dims[-1]
    if not isinstance(inner, int):
        raise TypeError(f"a product needs a known size, not {inner}")
    size = inner if size is None else size
    weight = w.transpose(w.weight(size, inner), 1, 0) if w.rarely() else w.weight(inner, size)
    product = w.op("MatMul", x, weight, dims=[*x.dims[:-1], size])
    if may_lack_bias and w.rarely():
        return product
    bias = w.scalar(0.25) if w.rarely() else w.weight(*w.pick((), (1,), (1, 1))[: x.rank - 1], size)
    return w.commuted("Add", product, bias)


def gemm(w: Writer) -> Value:
    """Gemm over the rows, between two reshapes; any of its attributes, with or without C."""
    x, hidden = w.read(), w.sizes.hidden
    rows = w.op("Reshape", x, w.integers(-1, hidden), dims=[None, hidden])
    attributes: Attributes = {}
    if w.chance():
        attributes["transB"] = 1
    if w.chance():
        attributes["alpha"] = w.pick(1.0, 0.5)
    if w.chance():
        attributes["beta"] = w.pick(1.0, 2.0)
    third = w.pick((w.weight(hidden),), (), (w.weight(1, hidden),), (w.constant([0.5]),))
    result = w.op("Gemm", rows, w.weight(hidden, hidden), *third, dims=rows.dims, **attributes)
    return w.reshape(result, x, x.dims)


def product_of_values(w: Writer) -> Value:
    """(x yᵀ) z over one batch, scaled to stay small."""
    a, b = w.op("Tanh", w.read()), w.op("Tanh", w.read())
    scores = w.op("MatMul", a, w.transpose(b, 0, 2, 1), dims=[w.sizes.batch, w.sizes.sequence, w.sizes.sequence])
    scores = w.op("Tanh", w.op(w.pick("Mul", "Div"), scores, w.scalar(w.pick(0.5, 2.0))))
    return w.op("MatMul", scores, w.read(), dims=w.sizes.stream)


def einsum(w: Writer) -> Value:
    if w.kind == TensorProto.FLOAT16:
        return linear(w)
    hidden = w.sizes.hidden
    equation = w.pick("bsh,hk->bsk", "bsh,kh->bsk", "...h,hk->...k")
    return w.op("Einsum", w.read(), w.weight(hidden, hidden), dims=w.sizes.stream, equation=equation)


def reduction(w: Writer) -> Value:
    """A reduction, and its input less or times what it gave; the axis is put back where it was dropped."""
    x = w.op("Tanh", w.read())
    op = w.pick(*_REDUCTIONS)
    if w.kind != TensorProto.FLOAT and op not in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
        op = "ReduceMean"
    axes = w.pick([-1], [1], [1, 2], [0], [-1, -2])
    if w.chance():
        reduced = w.reduce(op, x, axes)
    elif op == "ReduceSum" or w.opset >= 18:
        reduced = _without_axes(w, op, x)
    else:
        reduced = w.unsqueeze(w.reduce(op, x, axes, keepdims=0), *sorted(axis % 3 for axis in axes))
    return w.op(w.pick("Sub", "Add", "Max"), x, w.op("Tanh", reduced))


def _without_axes(w: Writer, op: str, x: Value) -> Value:
    """Over everything, or over nothing where empty axes say so."""
    if w.chance():
        return w.op(op, x, *w.pick((), (w.integers(),)), dims=x.dims, noop_with_empty_axes=1)
    return w.op(op, x, dims=[1] * x.rank)


def convolution(w: Writer) -> Value:
    """A convolution along the sequence that keeps its length."""
    if w.kind != TensorProto.FLOAT:
        return linear(w)
    hidden, groups = w.sizes.hidden, w.pick(1, 2)
    x = w.transpose(w.read(), 0, 2, 1)
    bias = w.pick((), (w.weight(hidden),))
    padded: Attributes = w.pick({"pads": [1, 1]}, {"auto_pad": "SAME_UPPER"})
    y = w.op("Conv", x, w.weight(hidden, hidden // groups, 3), *bias, dims=x.dims, group=groups, kernel_shape=[3], **padded)
    if w.rarely():
        constants = [w.constant(np.full(hidden, value)) for value in (1.1, 0.2, 0.1, 0.9)]
        y = w.op("BatchNormalization", y, *constants, dims=y.dims)
    return w.transpose(y, 0, 2, 1)


PARTS: dict[str, Part] = {
    "linear": linear,
    "gemm": gemm,
    "product": product_of_values,
    "einsum": einsum,
    "reduction": reduction,
    "convolution": convolution,
}
