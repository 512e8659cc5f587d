"""The ops that stand for an attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from onnx import TensorProto

from rewright.model.facts import dtype_of, shape_of
from rewright.ops.microsoft import DOMAIN
from rewright.passes.attention.axes import Axis, Layout, Unproven
from rewright.passes.attention.bias import bias, whole
from rewright.passes.attention.guard import guarded
from rewright.passes.attention.operands import Place
from rewright.passes.attention.padding import Padding, padding
from rewright.passes.attention.projection import Projection, projection
from rewright.passes.attention.writing import Writer, fact_of
from rewright.pattern.values import Value

Mask = Literal["auto", "raw", "bias", "index", "none"]
"""How a padding mask is given.

"raw": as the mask of zeros and ones, where that is proven to be the same; "auto" is that. "bias": as what is added to the scores.
"index": as lengths, which declares that padding is on the right. "none": not at all, which declares that nothing is padded. What
is declared and not so, parity finds."""

MASK_FORMATS: Final[dict[Mask, str]] = {"auto": "raw", "bias": "raw", "raw": "raw", "index": "index", "none": "none"}
"""What ``onnxruntime.transformers`` is asked for: it knows no bias."""


DECLARED: Final = {
    "index": "it was declared that the mask '{}' pads on the right only",
    "none": "it was declared that the mask '{}' pads nothing",
}


@dataclass(frozen=True)
class _Masking:
    """What the op gets for everything that is added to the scores: a mask of keys or a bias, or neither."""

    keys: Value | None = None
    filtered: float | None = None
    bias: Value | None = None


def multi_head(writer: Writer, mask: Mask) -> Value:
    """com.microsoft.MultiHeadAttention over (batch, sequence, heads x size) inputs."""
    _check_uncapped(writer)
    attention, roles = writer.attention, writer.attention.roles
    wanted = (
        (roles.batch, roles.rows, roles.heads + roles.size),
        (roles.batch, roles.columns, roles.heads + roles.size),
        (roles.batch, roles.columns, roles.heads + roles.value_size),
    )
    queries = writer.cheapest(attention.queries, wanted[0])
    keys = writer.cheapest(attention.keys, wanted[1])
    values = writer.cheapest(attention.values, wanted[2], scaled=False)
    direct = _heads_first(writer, keys, values, wanted)
    if direct is not None:
        keys, values = direct
    inputs = [writer.rows(queries, wanted[0], roles.heads)]
    for place, layout in ((keys, wanted[1]), (values, wanted[2])):
        inputs.append(writer.rows(place, layout, roles.heads) if direct is None else Value(place.tensor))
    masking = _masking(writer, mask)
    optional = [None, masking.keys, None if masking.bias is None else whole(writer, masking.bias)]
    made: Value = writer.op.MultiHeadAttention(
        *inputs,
        *optional,
        domain=DOMAIN,
        num_heads=attention.head_count,
        scale=writer.scale(queries.scale, keys.scale),
        mask_filter_value=masking.filtered,
    )
    return _finished(writer, made, inputs[0], wanted[2][2], masking.bias)


def _heads_first(writer: Writer, keys: Place, values: Place, wanted: tuple[Layout, ...]) -> tuple[Place, Place] | None:
    """Keys and values as (batch, heads, sequence, size), where both are there so, and would both have to be relaid otherwise."""
    attention, roles = writer.attention, writer.attention.roles
    if min(writer.cost(keys, wanted[1]), writer.cost(values, wanted[2])) < 2:
        return None
    if writer.whole(roles.size) != writer.whole(roles.value_size):
        return None
    found: list[Place] = []
    for places, size in ((attention.keys, roles.size), (attention.values, roles.value_size)):
        layout = (roles.batch, roles.heads, roles.columns, size)
        fitting = [place for place in places if writer.axes.resolve(place.layout) == layout and not place.steps]
        if not fitting:
            return None
        found.append(fitting[0])
    return (found[0], found[1]) if found[1].scale == 1 else None


def packed(writer: Writer, mask: Mask) -> Value:
    """com.microsoft.Attention over the value that queries, keys and values are projected from."""
    _check_uncapped(writer)
    attention, roles = writer.attention, writer.attention.roles
    row, column = (roles.batch, roles.rows), (roles.batch, roles.columns)
    found = (
        projection(writer, attention.queries, row, roles.heads + roles.size, "queries"),
        projection(writer, attention.keys, column, roles.heads + roles.size, "keys"),
        projection(writer, attention.values, column, roles.heads + roles.value_size, "values"),
    )
    if any(item.source is not found[0].source for item in found):
        raise Unproven("queries, keys and values are projected from different values", attention.softmax)
    if found[2].scale != 1:
        raise Unproven("the values are scaled", attention.softmax)
    heads, widths = attention.head_count, [len(item.columns) for item in found]
    if any(width % heads for width in widths):
        raise Unproven("the heads have different sizes", attention.softmax)
    source = Value(found[0].source)
    masking = _masking(writer, mask)
    inputs = [source, _weights(writer, found), _biases(writer, found), masking.keys]
    inputs += [None, None if masking.bias is None else whole(writer, masking.bias)]
    made: Value = writer.op.Attention(
        *inputs,
        domain=DOMAIN,
        num_heads=heads,
        scale=writer.scale(found[0].scale, found[1].scale),
        qkv_hidden_sizes=None if len(set(widths)) == 1 else widths,
        mask_filter_value=masking.filtered,
    )
    return _finished(writer, made, source, roles.heads + roles.value_size, masking.bias)


def _check_uncapped(writer: Writer) -> None:
    scores = writer.attention.scores
    if scores.softcap is not None:
        reason = f"the scores have a soft cap ({scores.softcap:g}), which the op does not have"
        raise Unproven(reason, writer.attention.softmax)


def _finished(writer: Writer, made: Value, rows: Value, value_heads: Axis, added: Value | None) -> Value:
    """The result, whose facts are set, with its guard."""
    roles = writer.attention.roles
    made.tensor.dtype = dtype_of(rows.tensor)
    made.tensor.shape = [fact_of(writer.whole(axis)) for axis in (roles.batch, roles.rows, value_heads)]
    return guarded(writer, made, added)


def _masking(writer: Writer, mask: Mask) -> _Masking:
    padded = padding(writer) if mask != "bias" else None
    if padded is None:
        return _Masking(bias=bias(writer))
    if mask in DECLARED:
        writer.assumptions.append(DECLARED[mask].format(padded.mask.name))
    elif not padded.truth:
        writer.assumptions.append(f"the mask '{padded.mask.name}' is taken to hold only zeros and ones")
    if mask == "none":
        return _Masking()
    keys = _key_mask(writer, padded)
    return _Masking(_lengths(writer, keys) if mask == "index" else keys, padded.filtered)


def _key_mask(writer: Writer, padded: Padding) -> Value:
    """The mask as the kernels take it: (batch, columns), int32."""
    key = ("key mask", id(padded.mask), padded.truth)
    if key not in writer.shared.values:
        mask = Value(padded.mask)
        if padded.truth and mask.dtype != np.bool_:
            mask = writer.op.Cast(mask, to=int(TensorProto.BOOL))
        cast: Value = writer.op.Cast(mask, to=int(TensorProto.INT32))
        writer.shared.values[key] = writer.made[key] = cast
    return writer.shared.values[key]


def _lengths(writer: Writer, mask: Value) -> Value:
    """How many keys of each sequence are kept: (batch), int32."""
    key = ("lengths", id(mask.tensor))
    if key not in writer.shared.values:
        if writer.opset >= 13:
            total: Value = writer.op.ReduceSum(mask, writer.op.constant(np.array([1], np.int64), "axes"), keepdims=0)
        else:
            total = writer.op.ReduceSum(mask, axes=[1], keepdims=0)
        writer.shared.values[key] = writer.made[key] = total
    return writer.shared.values[key]


def _weights(writer: Writer, found: tuple[Projection, ...]) -> Value:
    """(width, all columns): the weight that is there, if its columns are in order, or a packed copy."""
    first = found[0]
    columns = np.concatenate([item.columns for item in found])
    one = all(item.weight is first.weight and item.transposed == first.transposed and item.factor is None for item in found)
    total = (shape_of(first.weight) or (0, 0))[0 if first.transposed else 1]
    if one and not first.transposed and len(columns) == total and bool((columns == np.arange(len(columns))).all()):
        return Value(first.weight)
    packed_weights = np.concatenate([item.weights() for item in found], axis=1)
    made: Value = writer.op.constant(np.ascontiguousarray(packed_weights), "qkv_weight")
    return made


def _biases(writer: Writer, found: tuple[Projection, ...]) -> Value:
    """The packed bias, zeros if there is none: without it, onnxruntime 1.31 ends the process."""
    dtype: Any = dtype_of(found[0].weight)
    parts = [np.zeros(len(item.columns), dtype) if item.bias is None else item.bias for item in found]
    made: Value = writer.op.constant(np.concatenate(parts).astype(dtype), "qkv_bias")
    return made
