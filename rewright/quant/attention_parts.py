"""com.microsoft.Attention as products and MultiHeadAttention, for projections that only a product reads in fewer bits."""

from __future__ import annotations

from typing import Any, Final

from rewright.model.facts import attribute
from rewright.ops.microsoft import DOMAIN
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value

BIAS, MASK, PAST, SCORE_BIAS, PAST_LENGTH = 2, 3, 4, 5, 6
"""Inputs of Attention."""

_SHARED: Final = ("num_heads", "scale", "unidirectional", "mask_filter_value")
_UNKNOWN_HERE: Final = ("do_rotary", "past_present_share_buffer")
_MATRIX: Final = 2


def given(node: Any, index: int) -> Value | None:
    """An input, where it is given."""
    return Value(node.inputs[index]) if index < len(node.inputs) and node.inputs[index].name else None


def attributes(node: Any) -> dict[str, Any]:
    """What QAttention and MultiHeadAttention understand as Attention does."""
    return {name: value for name in _SHARED if (value := attribute(node, name)) is not None}


def sizes_of(node: Any, width: int) -> tuple[int, int, int] | None:
    """Columns of queries, keys and values, of ``width`` in all; None where these are not three equal parts."""
    sizes = attribute(node, "qkv_hidden_sizes")
    if sizes:
        queries, keys, values = (int(size) for size in sizes)
        return queries, keys, values
    return (width // 3,) * 3 if width % 3 == 0 else None


def unknown(node: Any) -> str:
    """What the node asks for that runs nowhere on the CPU, or that nothing is known of; empty where there is no such thing."""
    for name in _UNKNOWN_HERE:
        if attribute(node, name, 0):
            return f"it has {name}, which nothing runs on the CPU"
    return "it is told the length of its past" if given(node, PAST_LENGTH) is not None else ""


def obstacle_to_parts(node: Any) -> str:
    """Why MultiHeadAttention cannot take the place of the node once its projections stand before it; empty where it can."""
    if given(node, PAST) is not None or any(tensor.name for tensor in node.outputs[1:]):
        return "with a past there is no other way"
    mask = given(node, MASK)
    return f"the mask's rank is {mask.rank}, not 2" if mask is not None and mask.rank != _MATRIX else ""


def attend(op: Builder, node: Any, parts: list[Value], bias: Value | None = None) -> Value:
    """The attention of the node over its projected queries, keys and values (B, S, N*H); ``bias`` is theirs, packed."""
    inputs = [*parts, bias, given(node, MASK), given(node, SCORE_BIAS)]
    return op.MultiHeadAttention(*inputs, domain=DOMAIN, **attributes(node))  # type: ignore[no-any-return]
