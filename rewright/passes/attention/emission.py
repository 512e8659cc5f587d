"""The ops that stand for an attention."""

from __future__ import annotations

from rewright.model.facts import dtype_of, shape_of
from rewright.ops.microsoft import DOMAIN
from rewright.passes.attention.axes import number
from rewright.passes.attention.bias import bias, whole
from rewright.passes.attention.guard import guarded
from rewright.passes.attention.writing import Writer
from rewright.pattern.values import Value


def multi_head(writer: Writer) -> Value:
    """com.microsoft.MultiHeadAttention over (batch, sequence, heads x size) inputs."""
    attention, roles = writer.attention, writer.attention.roles
    wanted = (
        (roles.batch, roles.rows, roles.heads + roles.size),
        (roles.batch, roles.columns, roles.heads + roles.size),
        (roles.batch, roles.columns, roles.heads + roles.value_size),
    )
    queries = writer.cheapest(attention.queries, wanted[0])
    keys = writer.cheapest(attention.keys, wanted[1])
    values = writer.cheapest(attention.values, wanted[2], scaled=False)
    scale = attention.scores.scale * queries.scale * keys.scale
    inputs = [
        writer.rows(place, layout, roles.heads) for place, layout in zip((queries, keys, values), wanted, strict=True)
    ]
    added = bias(writer)
    made: Value = writer.op.MultiHeadAttention(
        *inputs,
        *((None, None, whole(writer, added)) if added is not None else ()),
        domain=DOMAIN,
        num_heads=attention.head_count,
        scale=scale,
    )
    made.tensor.dtype = dtype_of(queries.tensor)
    first = shape_of(inputs[0].tensor) or (None, None)
    width = number(wanted[2][2])
    made.tensor.shape = [first[0], first[1], width]
    return guarded(writer, made, added)
