"""What is done to attention scores before the softmax: padding masks, causal masks, biases."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from rewright.testing.strategies.writer import BOOL, FLOAT, INT64, Value, Writer

_FILLS = (-1e4, float(np.finfo(np.float32).min), -1e9, -10.0)
_HALF_FILLS = (-1e4, -6e4, -10.0)


def masked(w: Writer, scores: Value, source: Value, key: Value) -> Value:
    """Scores (batch, heads, queries, keys) with a padding mask, a causal one, a bias, several of them or none."""
    is_self = key.dims[2] == w.sizes.sequence
    if is_self and not w.is_function and w.chance():
        scores = _padding(w, scores)
    if is_self and w.chance():
        scores = _causal(w, scores, source)
    if w.rarely():
        scores = w.commuted("Add", scores, w.weight(w.sizes.heads, 1, 1))
    return scores


def _fill(w: Writer) -> float:
    fills: tuple[float, ...] = _HALF_FILLS if w.kind == TensorProto.FLOAT16 else _FILLS
    return w.pick(*fills)


def _padding(w: Writer, scores: Value) -> Value:
    """The model's mask (batch, positions), 1 where a token is valid, over the keys; or, wrongly, over the queries."""
    mask = w.input("mask", INT64, w.sizes.batch, w.sizes.sequence)
    axes = (1, 3) if w.rarely() else (1, 2)
    wide = w.unsqueeze(mask, *axes) if w.chance() else w.unsqueeze(w.unsqueeze(mask, 1), 2)
    form, fill = w.pick("additive", "where", "select", "inverted"), _fill(w)
    if form == "additive":
        kept = w.cast(wide, w.kind)
        return w.commuted("Add", scores, w.commuted("Mul", w.op("Sub", w.scalar(1.0), kept), w.scalar(fill)))
    if form == "where":
        kept = w.cast(wide, BOOL)
        return w.commuted("Add", scores, w.op("Where", kept, w.scalar(0.0), w.scalar(fill), kind=w.kind))
    if form == "select":
        return w.op("Where", w.cast(wide, BOOL), scores, w.scalar(fill), kind=w.kind, dims=scores.dims)
    missing = w.op("Equal", wide, w.constant(0, INT64), kind=BOOL)
    return w.op("Where", missing, w.scalar(fill), scores, kind=w.kind, dims=scores.dims)


def _causal(w: Writer, scores: Value, source: Value) -> Value:
    allowed, fill = _allowed(w, source), w.scalar(_fill(w))
    form = w.pick("add", "select", "blend")
    if form == "select":
        return w.op("Where", allowed, scores, fill, kind=w.kind, dims=scores.dims)
    if form == "blend":
        kept = w.cast(allowed, w.kind)
        off = w.commuted("Mul", w.op("Sub", w.scalar(1.0), kept), fill)
        return w.op("Add", w.commuted("Mul", scores, kept), off)
    return w.commuted("Add", scores, w.op("Where", allowed, w.scalar(0.0), fill, kind=w.kind))


def _allowed(w: Writer, x: Value) -> Value:
    """Which key a query sees: those up to itself, or, wrongly, those from itself on, or those near it."""
    square = [w.sizes.sequence] * 2
    form = w.nearly(w.pick("ranges", "triangle", "not"), "window")
    if form == "triangle" and w.opset >= 14:
        one = numpy_helper.from_array(np.ones(1, np.float32))
        sides = w.op("Concat", w.size(x, 1), w.size(x, 1), dims=[2], axis=0)
        ones = w.op("ConstantOfShape", sides, kind=FLOAT, dims=square, value=one)
        below = w.pick((), (w.constant(0, INT64),), (w.constant(-1, INT64),))
        return w.cast(w.op("Trilu", ones, *below, dims=square, upper=1 if w.rarely() else 0), BOOL)
    query, key = w.unsqueeze(_positions(w, x), 1), w.unsqueeze(_positions(w, x), 0)
    if form == "not":
        return w.op("Not", w.op("Greater", key, query, kind=BOOL, dims=square))
    if form == "window":
        near = w.op("Abs", w.op("Sub", query, key, dims=square))
        return w.op("LessOrEqual", near, w.constant(1, INT64), kind=BOOL)
    op = w.nearly("LessOrEqual", "GreaterOrEqual", "Less")
    return w.op(op, key, query, kind=BOOL, dims=square)


def _positions(w: Writer, x: Value) -> Value:
    length = w.squeeze(w.size(x, 1), 0)
    return w.op("Range", w.constant(0, INT64), length, w.constant(1, INT64), dims=[w.sizes.sequence])
