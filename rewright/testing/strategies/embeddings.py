"""Embeddings: tables that ids, positions and types look up, their sum, and its normalisation."""

from __future__ import annotations

from onnx import TensorProto

from rewright.testing.strategies.elementwise import unary
from rewright.testing.strategies.normalizations import layer_norm, norm_op
from rewright.testing.strategies.writer import INT64, Part, Value, Writer

_WORDS, _POSITIONS, _TYPES = 20, 64, 2


def embedding(w: Writer) -> Value:
    """Words, perhaps positions and types, in any order of their sum."""
    if w.is_function:
        return unary(w)
    sizes = w.sizes
    ids = w.input("ids", w.pick(INT64, TensorProto.INT32), sizes.batch, sizes.sequence)
    summands = [_looked_up(w, _WORDS, ids)]
    if w.chance():
        summands.append(_positions(w, ids))
    if w.chance():
        types = w.input("types", INT64, sizes.batch, sizes.sequence)
        summands.append(_looked_up(w, _TYPES, types))
    order = [w.pick(*summands)]
    order += [item for item in summands if item is not order[0]]
    total = order[0]
    for item in order[1:]:
        total = w.commuted("Add", total, item)
    w.values.append(total)
    end = w.pick("op", "decomposed", "none")
    if end == "none" or total.dims != sizes.stream:
        return total
    return layer_norm(w, total) if end == "decomposed" else norm_op(w)


def _looked_up(w: Writer, rows: int, ids: Value) -> Value:
    table = w.weight(rows, w.sizes.hidden)
    attributes = {"axis": 0} if w.chance() else {}
    return w.op("Gather", table, ids, dims=[*ids.dims, w.sizes.hidden], **attributes)


def _positions(w: Writer, ids: Value) -> Value:
    """The rows 0, 1, ... of a table: sliced, or looked up by a Range or by a sliced constant."""
    sizes, sequence = w.sizes, w.sizes.sequence
    form = w.pick("range", "stored", "rows")
    dims = [1, sequence, sizes.hidden]
    if form == "rows":
        table = w.weight(1, _POSITIONS, sizes.hidden)
        return w.op("Slice", table, w.integers(0), w.size(ids, 1), w.integers(1), dims=dims)
    if form == "stored":
        stored = w.constant([list(range(_POSITIONS))], INT64)
        places = w.op("Slice", stored, w.integers(0), w.size(ids, 1), w.integers(1), dims=[1, sequence])
    else:
        length = w.squeeze(w.size(ids, 1), 0)
        start = 2 if w.rarely() else 0
        counted = w.op("Range", w.constant(0, INT64), length, w.constant(1, INT64), dims=[sequence])
        places = w.unsqueeze(w.op("Add", counted, w.constant(start, INT64)) if start else counted, 0)
    if w.rarely():
        shape = w.op("Shape", ids, kind=INT64, dims=[2])
        places = w.op("Expand", places, shape, dims=ids.dims)
    return _looked_up(w, _POSITIONS, places)


PARTS: dict[str, Part] = {"embedding": embedding}
