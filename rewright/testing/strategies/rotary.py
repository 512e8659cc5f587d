"""Rotary position embeddings, by halves or by neighbours, with signs that are right or wrong."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from rewright.testing.strategies.writer import INT64, Dims, Part, Value, Writer

_LAST = 2**63 - 1


def rotary(w: Writer) -> Value:
    """The stream split into heads, rotated, and merged."""
    x = w.read()
    rows: Dims = (*x.dims[:2], w.sizes.heads, w.sizes.size)
    split = w.transpose(w.reshape(x, x, rows), 0, 2, 1, 3)
    (turned,) = _rotated(w, [split], x)
    return w.reshape(w.transpose(turned, 0, 2, 1, 3), x, x.dims)


def rotated_heads(w: Writer, query: Value, key: Value, source: Value) -> tuple[Value, Value]:
    """Queries and keys (batch, heads, positions, size) rotated by the same angles."""
    first, second = _rotated(w, [query, key], source)
    return first, second


def _rotated(w: Writer, values: list[Value], source: Value) -> list[Value]:
    by_halves = w.chance() or w.chance()
    cos, sin = _caches(w, source, by_halves)
    return [_turned(w, x, cos, sin, by_halves) for x in values]


def _caches(w: Writer, x: Value, by_halves: bool) -> tuple[Value, Value]:
    """cos and sin of position times frequency, (1, 1, positions, size), or (positions, size)."""
    size, sequence = w.sizes.size, w.sizes.sequence
    frequencies = w.constant(np.power(100.0, -np.arange(0, size, 2) / size)[None])
    length = w.squeeze(w.size(x, 1), 0)
    counted = w.op("Range", w.constant(0, INT64), length, w.constant(1, INT64), dims=[sequence])
    angle = w.op("Mul", w.cast(w.unsqueeze(counted, 1), w.kind), frequencies, dims=[sequence, size // 2])
    if by_halves:
        angle = w.op("Concat", angle, angle, dims=[sequence, size], axis=-1)
    else:
        pairs = w.op("Concat", *[w.unsqueeze(angle, 2)] * 2, dims=[sequence, size // 2, 2], axis=-1)
        angle = w.op("Reshape", pairs, w.integers(-1, size), dims=[sequence, size])
    if w.chance():
        angle = w.unsqueeze(angle, 0, 1)
    cos, sin = w.op("Cos", angle), w.op("Sin", angle)
    if w.rarely():
        cos, sin = w.op("Mul", cos, w.scalar(1.25)), w.op("Mul", sin, w.scalar(1.25))
    return (sin, cos) if w.rarely() else (cos, sin)


def _turned(w: Writer, x: Value, cos: Value, sin: Value, by_halves: bool) -> Value:
    straight = w.op("Mul", x, cos, dims=x.dims) if w.chance() else w.op("Mul", cos, x, dims=x.dims)
    crossed = _exchanged(w, x) if by_halves else _exchanged_neighbours(w, x)
    return w.commuted("Add", straight, w.op("Mul", crossed, sin, dims=x.dims))


def _exchanged(w: Writer, x: Value) -> Value:
    """(x1, x2) -> (-x2, x1), or, wrongly, (x2, -x1)."""
    half = w.sizes.size // 2
    if w.chance():
        first, second = w.split(x, 3, 2)
    else:
        dims = [*x.dims[:3], half]
        bounds = ((0, half), (half, _LAST))
        first, second = (w.op("Slice", x, w.integers(a), w.integers(b), w.integers(3), dims=dims) for a, b in bounds)
    if w.rarely():
        return w.op("Concat", second, _negated(w, first), dims=x.dims, axis=-1)
    return w.op("Concat", _negated(w, second), first, dims=x.dims, axis=-1)


def _exchanged_neighbours(w: Writer, x: Value) -> Value:
    half = w.sizes.size // 2
    dims = [*x.dims[:3], half]
    first, second = (
        w.op("Slice", x, w.integers(start), w.integers(_LAST), w.integers(-1), w.integers(2), dims=dims) for start in (0, 1)
    )
    pair = [w.unsqueeze(item, 4) for item in (_negated(w, second), first)]
    joined = w.op("Concat", *pair, dims=[*dims, 2], axis=-1)
    return w.op("Reshape", joined, w.op("Shape", x, kind=INT64, dims=[4]), dims=x.dims)


def _negated(w: Writer, x: Value) -> Value:
    return w.op("Neg", x) if w.chance() else w.commuted("Mul", x, w.constant(-1.0))


def rotary_op(w: Writer) -> Value:
    """ai.onnx RotaryEmbedding over three dimensions."""
    if w.opset < 23 or w.kind != TensorProto.FLOAT:
        return rotary(w)
    x, half = w.read(), w.sizes.size // 2
    if isinstance(x.dims[0], str) or isinstance(x.dims[1], str):
        return rotary(w)  # caches without position ids have the batch's and the sequence's size
    caches = [w.weight(*(int(dim) for dim in x.dims[:2] if isinstance(dim, int)), half) for _ in range(2)]
    heads = {"num_heads": w.sizes.heads, "interleaved": w.pick(0, 1)}
    return w.op("RotaryEmbedding", x, *caches, dims=x.dims, **heads)


PARTS: dict[str, Part] = {"rotary": rotary, "rotary-op": rotary_op}
