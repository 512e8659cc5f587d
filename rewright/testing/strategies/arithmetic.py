"""Shape arithmetic: sizes that are read, computed with, and used as shapes, bounds and positions."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from rewright.testing.strategies.writer import BOOL, INT64, Part, Value, Writer

_LAST = 2**63 - 1


def heads(w: Writer) -> Value:
    """Split into heads and merged again, the sizes computed or written; an op between."""
    x, sizes = w.read(), w.sizes
    split = (sizes.batch, sizes.sequence, sizes.heads, sizes.size)
    if w.chance():
        width = w.op("Div", w.size(x, 2), w.integers(sizes.heads))
        count = w.op("Div", w.size(x, 2), width) if w.chance() else w.integers(sizes.heads)
        shape = w.op("Concat", w.size(x, 0), w.size(x, 1), count, width, dims=[4], axis=0)
        y = w.op("Reshape", x, shape, dims=split)
    else:
        y = w.reshape(x, x, split)
    if w.chance():
        y = w.transpose(w.op("Tanh", w.transpose(y, 0, 2, 1, 3)), 0, 2, 1, 3)
    return w.reshape(y, x, sizes.stream)


def rows(w: Writer) -> Value:
    """All positions of all sequences as rows, whose number is a product of sizes."""
    x, hidden = w.read(), w.sizes.hidden
    count = w.op("Mul", w.size(x, 0), w.size(x, 1))
    y = w.op("Reshape", x, w.op("Concat", count, w.integers(hidden), dims=[2], axis=0), dims=[None, hidden])
    y = w.op(w.pick("Relu", "Tanh", "Identity"), y)
    back = w.op("Concat", w.op("Div", count, w.size(x, 1)), w.size(x, 1), w.integers(-1), dims=[3], axis=0)
    return w.op("Reshape", y, back, dims=x.dims)


def expanded(w: Writer) -> Value:
    """A vector, expanded to the stream's shape; with -1 replaced by 1 as PyTorch writes it."""
    x, hidden = w.read(), w.sizes.hidden
    shape = w.op("Concat", w.size(x, 0), w.size(x, 1), w.integers(w.pick(hidden, -1)), dims=[3], axis=0)
    ones = numpy_helper.from_array(np.ones(1, np.int64))
    filled = w.op("ConstantOfShape", w.integers(3), kind=INT64, dims=[3], value=ones)
    missing = w.op("Mul", filled, w.constant(-1, INT64))
    target = w.op("Where", w.op("Equal", shape, missing, kind=BOOL), filled, shape, kind=INT64, dims=[3])
    return w.commuted("Add", x, w.op("Expand", w.weight(1, 1, hidden), target, dims=x.dims))


def positions(w: Writer) -> Value:
    """0, 1, ... along the sequence, as numbers that are added, or as a comparison that selects."""
    x = w.read()
    length = (
        w.squeeze(w.size(x, 1), 0)
        if w.chance()
        else w.op("Gather", w.op("Shape", x, kind=INT64, dims=[3]), w.constant(1, INT64), dims=[])
    )
    counted = w.op("Range", w.constant(0, INT64), length, w.constant(1, INT64), dims=[w.sizes.sequence])
    if w.rarely():
        counted = w.op("Sub", w.op("Sub", length, w.constant(1, INT64)), counted)
    column = w.unsqueeze(counted, 1) if w.chance() else w.op("Reshape", counted, w.integers(-1, 1), dims=[w.sizes.sequence, 1])
    if w.chance():
        kept = w.op(w.pick("Less", "GreaterOrEqual", "Equal"), column, w.constant(w.pick(2, 0, 1000), INT64), kind=BOOL)
        return w.op("Where", kept, x, w.scalar(0.0), kind=w.kind, dims=x.dims)
    return w.commuted(
        "Add",
        x,
        w.op("Sin", w.cast(column, TensorProto.FLOAT)) if w.kind == TensorProto.FLOAT else w.op("Tanh", w.cast(column, w.kind)),
    )


def windows(w: Writer) -> Value:
    """A prefix of the sequence, or a suffix, padded back to its length."""
    x, sizes = w.read(), w.sizes
    length = w.size(x, 1)
    half = w.op(w.pick("Div", "Sub"), length, w.integers(w.pick(2, 1)))
    start, end = w.pick((w.integers(0), half), (half, length), (half, w.integers(_LAST)))
    part = w.op("Slice", x, start, end, w.integers(1), dims=[sizes.batch, None, sizes.hidden])
    rest = w.op("Sub", length, w.size(part, 1))
    if w.chance():
        zero = w.integers(0)
        pads = w.op("Concat", zero, zero, zero, zero, rest, zero, dims=[6], axis=0)
        return w.op("Pad", part, pads, *w.pick((), (w.constant(0.5),)), dims=x.dims)
    shape = w.op("Concat", w.size(x, 0), rest, w.size(x, 2), dims=[3], axis=0)
    fill = numpy_helper.from_array(np.asarray([0.25], helper.tensor_dtype_to_np_dtype(w.kind)))
    filled = w.op("ConstantOfShape", shape, kind=w.kind, dims=part.dims, value=fill)
    return w.op("Concat", part, filled, dims=x.dims, axis=1)


def as_numbers(w: Writer) -> Value:
    """A size as a float: a mean by hand, and the scale 1/sqrt(size)."""
    x = w.op("Tanh", w.read())
    axis = w.pick(2, 1)
    count = w.cast(w.size(x, axis), w.kind)
    if w.chance():
        return w.op("Sub", x, w.op("Div", w.reduce("ReduceSum", x, [axis]), count))
    root = w.op("Sqrt", count)
    return w.op("Div", x, root) if w.chance() else w.commuted("Mul", x, w.op("Reciprocal", root))


def compared(w: Writer) -> Value:
    """Sizes of two values that are equal, compared; the answer selects."""
    x, other = w.read(), w.read()
    same = w.op("Equal", w.size(x, 1), w.size(other, 1), kind=BOOL)
    if w.chance():
        same = w.op("And", same, w.op("Greater", w.size(x, 2), w.integers(2), kind=BOOL))
    return w.op("Where", same, x, w.op("Neg", x), kind=w.kind, dims=x.dims)


def reported(w: Writer) -> Value:
    """A shape, a size or a number of elements that only an output reads."""
    x = w.read()
    form = w.pick("Shape", "Size", "sum", "product")
    if form == "Size":
        w.others.append(w.op("Size", x, kind=INT64, dims=[]))
    elif form == "Shape":
        w.others.append(w.op("Shape", x, kind=INT64, dims=[3]))
    else:
        w.others.append(w.op("Add" if form == "sum" else "Mul", w.size(x, 0), w.size(x, 1)))
    return x


PARTS: dict[str, Part] = {
    "heads": heads,
    "rows": rows,
    "expand": expanded,
    "positions": positions,
    "windows": windows,
    "sizes-as-numbers": as_numbers,
    "sizes-compared": compared,
    "sizes-reported": reported,
}
