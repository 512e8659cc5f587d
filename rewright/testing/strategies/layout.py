"""Ops that move elements, and ops that do nothing, or nearly nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from rewright.testing.strategies.writer import BOOL, INT64, Part, Value, Writer

_PERMS = ((0, 2, 1), (0, 1, 2), (1, 2, 0), (2, 0, 1), (1, 0, 2))
_LAST = 2**63 - 1


def transposes(w: Writer) -> Value:
    """A permutation, perhaps an op, and the way back, in one or two steps."""
    perm = w.pick(*_PERMS)
    x = w.transpose(w.read(), *perm)
    if w.chance():
        x = w.op(w.pick("Relu", "Tanh", "Identity"), x)
    back = [perm.index(axis) for axis in range(3)]
    if w.chance():
        return w.transpose(x, *back)
    first = w.pick(*_PERMS)
    return w.transpose(w.transpose(x, *first), *[first.index(axis) for axis in back])


def nothing(w: Writer) -> Value:
    """What gives its input back, in many ways."""
    x, form = w.read(), w.pick(*_NOTHING)
    return _NOTHING[form](w, x)


def _arithmetic(w: Writer, x: Value) -> Value:
    """With a neutral number, or nearly neutral ones: 0 - x, and -0 and a rank more."""
    op, number = w.pick(
        ("Mul", 1.0), ("Div", 1.0), ("Add", 0.0), ("Sub", 0.0), ("Add", -0.0), ("Pow", 1.0), ("Mul", 1.0 + 2**-12)
    )
    shaped = w.constant(np.full(w.pick((), (1,), (1, 1, 1), (1, w.sizes.hidden)), number))
    if op in ("Mul", "Add"):
        return w.commuted(op, x, shaped)
    return w.op("Sub", shaped, x) if op == "Sub" and w.rarely() else w.op(op, x, shaped)


def _sliced(w: Writer, x: Value) -> Value:
    axis = w.pick(2, 1)
    end = w.pick(_LAST, 2**31 - 1, 1000) if axis == 1 else w.pick(_LAST, w.sizes.hidden)
    steps = (w.integers(1),) if w.chance() else ()
    return w.op("Slice", x, w.integers(0), w.integers(end), w.integers(axis), *steps, dims=x.dims)


def _expanded(w: Writer, x: Value) -> Value:
    shape = w.op("Shape", x, kind=INT64, dims=[3]) if w.chance() else w.integers(1, *w.pick((1, 1), (1, w.sizes.hidden)))
    return w.op("Expand", x, shape, dims=x.dims)


def _reshaped(w: Writer, x: Value) -> Value:
    if w.chance():
        return w.op("Reshape", x, w.op("Shape", w.read(), kind=INT64, dims=[3]), dims=x.dims)
    flat = w.op("Reshape", x, w.integers(-1), dims=[None]) if w.chance() else w.op("Flatten", x, dims=[x.dims[0], None])
    return w.op("Reshape", flat, w.op("Shape", x, kind=INT64, dims=[3]), dims=x.dims)


def _dropped(w: Writer, x: Value) -> Value:
    ratio = w.pick((), (w.constant(0.5, TensorProto.FLOAT),), (w.constant(0.5, TensorProto.FLOAT), w.constant(False, BOOL)))
    return w.op("Dropout", x, *ratio, dims=x.dims)


def _joined(w: Writer, x: Value) -> Value:
    """Parts that are put together again, or one part alone."""
    form = w.pick("one", "split", "slices")
    if form == "one":
        return w.op("Concat", x, dims=x.dims, axis=w.pick(0, -1))
    if form == "split":
        return w.op("Concat", *w.split(x, 2, 2), dims=x.dims, axis=2)
    middle = w.sizes.hidden // 2
    bounds = ((0, middle), (middle, _LAST))
    parts = [w.op("Slice", x, w.integers(a), w.integers(b), w.integers(-1), dims=[*x.dims[:2], middle]) for a, b in bounds]
    return w.op("Concat", *parts, dims=x.dims, axis=-1)


_NOTHING: dict[str, Callable[[Writer, Value], Value]] = {
    "identity": lambda w, x: w.op("Identity", x),
    "arithmetic": _arithmetic,
    "slice": _sliced,
    "cast": lambda w, x: w.cast(x, w.kind),
    "expand": _expanded,
    "reshape": _reshaped,
    "dropout": _dropped,
    "concat": _joined,
    "squeeze": lambda w, x: w.squeeze(w.unsqueeze(x, 1), 1),
    "gather": lambda w, x: w.op("Gather", x, w.integers(*range(w.sizes.hidden)), dims=x.dims, axis=2),
    "pad": lambda w, x: w.op("Pad", x, w.integers(0, 0, 0, 0, 0, 0), *w.pick((), (w.constant(1.0),)), dims=x.dims),
    "sum": lambda w, x: w.op(w.pick("Sum", "Max"), x),
    "tile": lambda w, x: w.op("Tile", x, w.integers(1, 1, 1), dims=x.dims),
    "where": lambda w, x: w.op("Where", w.constant(True, BOOL), x, w.read(), kind=w.kind, dims=x.dims),
    "negated": lambda w, x: w.op("Neg", w.op("Neg", x)),
}


def rotated(w: Writer) -> Value:
    """The last axis in another order: reversed, or its halves exchanged."""
    x, hidden = w.read(), w.sizes.hidden
    if w.chance():
        first, last = w.split(x, 2, 2)
        return w.op("Concat", last, first, dims=x.dims, axis=-1)
    if w.chance():
        return w.op("Slice", x, w.integers(-1), w.integers(-_LAST), w.integers(2), w.integers(-1), dims=x.dims)
    return w.op("Gather", x, w.integers(*reversed(range(hidden))), dims=x.dims, axis=w.pick(-1, 2))


def first_token(w: Writer) -> Value:
    """One position's row, as a summand for all."""
    x = w.read()
    if w.chance():
        row = w.unsqueeze(w.op("Gather", x, w.constant(0, INT64), dims=[x.dims[0], x.dims[2]], axis=1), 1)
    else:
        row = w.op("Slice", x, w.integers(-1), w.integers(_LAST), w.integers(1), dims=[x.dims[0], 1, x.dims[2]])
    return w.commuted("Add", x, w.op("Tanh", row))


def top(w: Writer) -> Value:
    """The largest elements of an input, as summands; the indices may be read too."""
    x, count = w.root.values[0] if not w.is_function else w.values[0], w.pick(1, 2)
    if w.kind != TensorProto.FLOAT:
        return nothing(w)
    values, indices = w.fresh(x.kind, [*x.dims[:2], count]), w.fresh(INT64, [*x.dims[:2], count])
    w.nodes_of("TopK", [x, w.integers(count)], [values, indices], axis=-1)
    w.others.append(indices)
    return w.op("Sub", w.read(), w.op("Tanh", w.reduce("ReduceMax", values, [-1])))


PARTS: dict[str, Part] = {
    "transposes": transposes,
    "nothing": nothing,
    "rotated": rotated,
    "first-token": first_token,
    "top": top,
}
