"""ai.onnx Attention, which came with opset 23.

What the specification and ONNX Runtime's CPU kernel (1.32) make of a row that is masked as a whole differs from Softmax, and from
version to version: all -inf gave NaN and now gives zeros, and the kernel gives zeros for the lowest finite number too. Otherwise
``attn_mask`` is added after ``softcap``; its last two axes do not broadcast in the kernel; the scale must be positive; a batch or
a sequence of length 0 is refused. ``is_causal`` lets query i see the keys up to i.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rewright.model.facts import constant_of, dtype_of, is_small_constant
from rewright.passes.attention.axes import Unproven, number
from rewright.passes.attention.bias import bias, whole
from rewright.passes.attention.causal import causal
from rewright.passes.attention.extent import extent
from rewright.passes.attention.grouped import finished, key_heads, operands
from rewright.passes.attention.scores import lowest
from rewright.passes.attention.writing import Writer
from rewright.pattern.values import Value

SINCE: Final = 23
_MOST_ELEMENTS: Final = 1 << 22
_ABOVE_LOWEST: Final = 0.5
"""Half the lowest number masks as well, and is not taken for it."""


def obstacle(writer: Writer) -> str | None:
    """Why the standard op cannot stand for the attention, or None if it can."""
    if writer.opset < SINCE:
        return f"ai.onnx Attention came with opset {SINCE}, and the model is at {writer.opset}"
    if _is_causal(writer):
        return None
    found = extent(writer)
    terms = writer.attention.scores.terms
    if len(terms) == 1 and terms[0].kind == "add" and _leaves_a_key(terms[0].value):
        return None
    if found is None:
        return "the mask is not known to be free of rows without any key, of which ai.onnx Attention makes zeros"
    if found.masks and not writer.attention.guard:
        return "a row that is masked with -inf as a whole would be zeros in place of NaN"
    if found.masks and _is_lowest(writer, found.low):
        return "a row that is masked as a whole, in part with -inf, would be zeros"
    return None


def refuse_slow_softcap(writer: Writer) -> None:
    """Leaves a soft cap to the separate nodes where the kernel was measured to be several times slower.

    Raises:
        Unproven: there is one, and the target is cpu.
    """
    cap = writer.attention.scores.softcap
    if cap is not None and writer.target == "cpu":
        reason = f"the scores have a soft cap ({cap:g}), for which the kernel is slower than the separate nodes"
        raise Unproven(f"{reason}; see the option softcap", writer.attention.softmax)


def standard(writer: Writer) -> Value:
    """ai.onnx Attention over (batch, sequence, heads x size) inputs, where there is no ``obstacle``.

    Raises:
        Unproven: queries, keys or values cannot be written so.
    """
    attention, roles = writer.attention, writer.attention.roles
    pure = _is_causal(writer)
    inputs, scale = operands(writer)
    added = None if pure else bias(writer)
    mask = None if added is None else whole(writer, _distinct(writer, added))
    kind, working = dtype_of(inputs[0].tensor), dtype_of(attention.softmax.inputs[0])
    made: Value = writer.op.Attention(
        *inputs,
        *([] if mask is None else [mask]),
        q_num_heads=attention.head_count,
        kv_num_heads=number(key_heads(writer)),
        scale=scale,
        softcap=attention.scores.softcap,
        is_causal=1 if pure else None,
        softmax_precision=1 if kind != working and working == np.float32 else None,
    )
    return finished(writer, made, inputs[0], number(roles.heads + roles.value_size), added)


def _is_causal(writer: Writer) -> bool:
    found = causal(writer)
    return found is not None and not found.rest and found.window is None


def _distinct(writer: Writer, added: Value) -> Value:
    """The bias without the lowest number, which the kernel takes for -inf."""
    found = extent(writer)
    if found is None or found.masks or not _is_lowest(writer, found.low):
        return added
    key = ("distinct", id(added.tensor))
    if key not in writer.shared.values:
        dtype: Any = dtype_of(added.tensor)
        least = writer.op.constant(np.asarray(lowest(dtype) * _ABOVE_LOWEST, dtype), "masked")
        writer.shared.values[key] = writer.made[key] = writer.op.Max(added, least)
    return writer.shared.values[key]


def _is_lowest(writer: Writer, low: float) -> bool:
    dtype: Any = dtype_of(writer.attention.scores.product.operands[0])
    return low <= lowest(dtype) * (1 - 1e-6)


def _leaves_a_key(tensor: Any) -> bool:
    """Whether a constant bias leaves a key in each row."""
    if not is_small_constant(tensor, _MOST_ELEMENTS):
        return False
    value = np.asarray(constant_of(tensor))
    return value.ndim > 0 and bool((value > lowest(value.dtype)).any(axis=-1).all())
