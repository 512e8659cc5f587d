"""Keys and values that several heads share: which heads those are, and com.microsoft.GroupQueryAttention."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from onnx import TensorProto

from rewright.model.facts import dtype_of, shape_of
from rewright.ops.microsoft import DOMAIN
from rewright.passes.attention.axes import Axis, Layout, Unproven, length, number
from rewright.passes.attention.bias import bias, whole
from rewright.passes.attention.causal import Causal, causal
from rewright.passes.attention.guard import guarded
from rewright.passes.attention.operands import Place
from rewright.passes.attention.writing import Writer
from rewright.pattern.values import Value

_HEAD_SIZE_MULTIPLE: Final = 8
_PAD_WITH_INPUTS_SINCE: Final = 11
_SHORT: Final = 512
"""Up to this length GroupQueryAttention was measured to be faster than MultiHeadAttention over repeated keys, without a mask."""


def key_heads(writer: Writer) -> Axis:
    """The heads of keys and values, of which head n of N queries uses number n // (N / G): the outer atoms of the heads."""
    roles = writer.attention.roles
    heads = writer.axes.atoms(roles.heads)
    count = max(_present(writer, places, heads) for places in (writer.attention.keys, writer.attention.values))
    return heads[:count]


def _present(writer: Writer, places: list[Place], heads: Axis) -> int:
    """How many of the outer atoms of the heads the value has where it has the fewest."""
    found = len(heads)
    for place in places:
        held = {atom for axis in writer.axes.resolve(place.layout) for atom in axis}
        inner = [index for index, atom in enumerate(heads) if atom in held]
        found = min(found, inner[-1] + 1 if inner else 0)
    return found


def layouts(writer: Writer) -> tuple[Layout, Layout, Layout]:
    """Those of queries, keys and values with three axes, the heads of keys and values not repeated."""
    roles, shared = writer.attention.roles, key_heads(writer)
    return (
        (roles.batch, roles.rows, roles.heads + roles.size),
        (roles.batch, roles.columns, shared + roles.size),
        (roles.batch, roles.columns, shared + roles.value_size),
    )


def operands(writer: Writer) -> tuple[list[Value], float]:
    """Queries, keys and values in these layouts, and the scale of the scores.

    Raises:
        Unproven: they cannot be written so.
    """
    attention, heads, shared = writer.attention, writer.attention.roles.heads, key_heads(writer)
    wanted = layouts(writer)
    queries = writer.cheapest(attention.queries, wanted[0])
    keys = writer.cheapest(attention.keys, wanted[1])
    values = writer.cheapest(attention.values, wanted[2], scaled=False)
    made = [
        writer.rows(place, layout, axis)
        for place, layout, axis in zip((queries, keys, values), wanted, (heads, shared, shared), strict=True)
    ]
    return made, writer.scale(queries.scale, keys.scale)


def group_query(writer: Writer) -> Value:
    """com.microsoft.GroupQueryAttention over (batch, sequence, heads x size) inputs.

    Raises:
        Unproven: the op cannot stand for this attention, or another op is faster.
    """
    attention, roles = writer.attention, writer.attention.roles
    mask = causal(writer)
    mask = None if mask is None or mask.rest else mask
    heads, groups = attention.head_count, number(key_heads(writer))
    _check(writer, groups, mask)
    inputs, scale = operands(writer)
    size, value_size = number(roles.size) or 0, number(roles.value_size) or 0
    width = -(-max(size, value_size) // _HEAD_SIZE_MULTIPLE) * _HEAD_SIZE_MULTIPLE
    counts = zip(inputs, (heads, groups or 0, groups or 0), (size, size, value_size), strict=True)
    inputs = [_widened(writer, value, count, held, width) for value, count, held in counts]
    added = bias(writer) if mask is None else None
    optional = [None, None, *_lengths(writer, inputs[0])]
    if added is not None:
        optional += [None, None, None, whole(writer, added)]
    made: Value = writer.op.GroupQueryAttention(
        *inputs,
        *optional,
        domain=DOMAIN,
        num_heads=heads,
        kv_num_heads=groups,
        scale=scale,
        softcap=attention.scores.softcap,
        causal=0 if mask is None else 1,
        local_window_size=None if mask is None else mask.window,
    )
    made = _narrowed(writer, made, heads, width, value_size)
    return finished(writer, made, inputs[0], heads * value_size, added)


def _widened(writer: Writer, value: Value, heads: int, size: int, width: int) -> Value:
    """Each head with zeros behind it, up to ``width``: they add nothing to a score."""
    if size == width:
        return value
    op = writer.op
    split = op.Reshape(value, op.constant(np.array([0, 0, heads, size], np.int64), "split"))
    padded = op.Pad(split, op.constant(np.array([0] * 7 + [width - size], np.int64), "zeros"))
    made: Value = op.Reshape(padded, op.constant(np.array([0, 0, heads * width], np.int64), "joined"))
    made.tensor.shape = [*(shape_of(value.tensor) or (None, None))[:2], heads * width]
    return made


def _narrowed(writer: Writer, value: Value, heads: int, width: int, size: int) -> Value:
    """The first ``size`` elements of each head."""
    if size == width:
        return value
    op = writer.op
    split = op.Reshape(value, op.constant(np.array([0, 0, heads, width], np.int64), "split"))
    bounds = (op.constant(np.array([number], np.int64), "bound") for number in (0, size, 3))
    made: Value = op.Reshape(op.Slice(split, *bounds), op.constant(np.array([0, 0, heads * size], np.int64), "joined"))
    return made


def _check(writer: Writer, groups: int | None, mask: Causal | None) -> None:
    attention, roles = writer.attention, writer.attention.roles
    size = number(roles.size)
    if writer.target != "cpu":
        raise Unproven("what GroupQueryAttention does with a mask is known of the cpu only", attention.softmax)
    if groups is None or not groups:
        raise Unproven("the number of heads of the keys is not known", attention.softmax)
    if groups == attention.head_count and mask is None and attention.scores.softcap is None:
        raise Unproven("each head has keys of its own, and the mask is not just causal: MultiHeadAttention is as fast")
    if length(roles.rows) != length(roles.columns):
        raise Unproven("GroupQueryAttention needs as many keys as queries, which is not known here", attention.softmax)
    if size is None or number(roles.value_size) is None:
        raise Unproven("the head size is not known", attention.softmax)
    # Heads filled up with zeros are worth it where no other op has a soft cap.
    if attention.scores.softcap is None and size % _HEAD_SIZE_MULTIPLE:
        raise Unproven(f"GroupQueryAttention needs a head size that is a multiple of 8, not {size}", attention.softmax)
    if attention.scores.softcap is None and number(roles.value_size) != size:
        raise Unproven("the values have another head size than the keys", attention.softmax)
    if writer.opset < _PAD_WITH_INPUTS_SINCE:
        raise Unproven(
            f"the model is at opset {writer.opset}, and the nodes around the op are written for 11 on", attention.softmax
        )
    rows = number(roles.rows)
    if not attention.scores.terms and attention.scores.softcap is None and rows is not None and rows > _SHORT:
        raise Unproven(f"without a mask, MultiHeadAttention over repeated keys is faster for {rows} positions")


def _lengths(writer: Writer, queries: Value) -> list[Value]:
    """seqlens_k, one less than the number of keys of each sequence, and total_sequence_length: int32, shared by all sites."""
    roles = writer.attention.roles
    sizes = (length(roles.batch), length(roles.rows))
    last, total = ("last keys", *sizes), ("total keys", *sizes)
    values, op = writer.shared.values, writer.op
    if last not in values:
        batch, rows = sizes
        if isinstance(batch, int) and isinstance(rows, int):
            made = (op.constant(np.full(batch, rows - 1, np.int32), "last"), op.constant(np.array(rows, np.int32), "total"))
        else:
            made = _measured(writer, queries)
        values[last], values[total] = made
        writer.made[last], writer.made[total] = made
    return [values[last], values[total]]


def _measured(writer: Writer, queries: Value) -> tuple[Value, Value]:
    op = writer.op
    shape = op.Cast(op.Shape(queries), to=TensorProto.INT32)
    total = op.Gather(shape, op.constant(np.array(1, np.int64), "rows"))
    less = op.Sub(total, op.constant(np.array(1, np.int32), "one"))
    batch = op.Gather(op.Shape(queries), op.constant(np.array([0], np.int64), "batch"))
    return op.Expand(less, batch), total


def finished(writer: Writer, made: Value, rows: Value, width: int | None, added: Value | None) -> Value:
    """The result (batch, rows, width) with its facts, and zeros where the model's guard puts them."""
    made.tensor.dtype = dtype_of(rows.tensor)
    first: tuple[Any, ...] = shape_of(rows.tensor) or (None, None)
    made.tensor.shape = [first[0], first[1], width]
    return guarded(writer, made, added)
