"""Lets nodes stay in float32 where computing in the narrow type would cost more casts than it saves."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import onnx_graphsurgeon as gs

from rewright.model.facts import is_constant, producer
from rewright.passes.precision.keeping import Keeping
from rewright.passes.precision.operands import Role

HEAVY: Final = frozenset((
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention", "LSTM",
    "GRU", "RNN", "EmbedLayerNormalization", "GemmFastGelu", "FusedMatMul", "FusedConv",
))  # fmt: skip
"""Ops that are worth casts."""
_MANY: Final = 1 << 12
_REASON: Final = "what surrounds it is float32, and casts would cost more than it saves"


def merge_islands(keeping: Keeping, nodes: list[Any], returned_wide: set[int]) -> None:
    """Adds nodes to what stays in float32 until that no longer makes casts fewer. Linear: a node goes over once.

    Args:
        keeping: what was decided so far.
        nodes: all nodes that there is a choice for.
        returned_wide: values that a graph returns as float32.
    """
    pending = deque(node for node in nodes if keeping.is_narrow(node) and node.op not in HEAVY)
    queued = {id(node) for node in pending}
    while pending:
        node = pending.popleft()
        queued.discard(id(node))
        if not keeping.is_narrow(node) or _has_weight(node):
            continue
        if _casts(keeping, node, returned_wide, narrow=False) < _casts(keeping, node, returned_wide, narrow=True):
            keeping.keep(node, _REASON)
            for other in _neighbours(node):
                if keeping.is_narrow(other) and other.op not in HEAVY and id(other) not in queued:
                    queued.add(id(other))
                    pending.append(other)


def _has_weight(node: Any) -> bool:
    """Whether a large constant becomes smaller with the node."""
    return any(isinstance(tensor, gs.Constant) and _size(tensor) >= _MANY for tensor in node.inputs)


def _size(tensor: Any) -> int:
    size = 1
    for dim in tensor._values.shape:
        size *= int(dim)
    return size


def _casts(keeping: Keeping, node: Any, returned_wide: set[int], *, narrow: bool) -> int:
    """How many casts stand around the node if it computes in the narrow type, or if it does not."""
    roles = keeping.roles[id(node)]
    count = 0
    seen: set[int] = set()
    for tensor, role in zip(node.inputs, roles.inputs, strict=True):
        if role in (None, Role.EITHER) or is_constant(tensor) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        wanted = narrow and role is Role.NARROW
        if is_made_narrow(keeping, tensor) != wanted and not _others_want(keeping, tensor, node, wanted, returned_wide):
            count += 1
    for tensor, role in zip(node.outputs, roles.outputs, strict=True):
        if role is None:
            continue
        made = narrow and role is Role.NARROW
        count += _others_want(keeping, tensor, node, not made, returned_wide)
    return count


def _others_want(keeping: Keeping, tensor: Any, node: Any, narrow: bool, returned_wide: set[int]) -> bool:
    """Whether anything but the node wants the value in the one type or the other."""
    if not narrow and id(tensor) in returned_wide:
        return True
    if narrow and id(tensor) in keeping.narrow_results:
        return True
    return any(user is not node and narrow in wants(keeping, user, tensor) for user in tensor.outputs)


def wants(keeping: Keeping, user: Any, tensor: Any) -> set[bool]:
    """How a node wants a value: {True} in the narrow type, {False} in float32, both for two operands, or nothing."""
    roles = keeping.roles.get(id(user))
    if roles is None or not getattr(user, "alive", True):
        return set() if roles is not None else {False}
    found = set()
    is_narrow = keeping.is_narrow(user)
    for item, role in zip(user.inputs, roles.inputs, strict=True):
        if item is tensor and role is not None and role is not Role.EITHER:
            found.add(is_narrow and role is Role.NARROW)
    return found


def is_made_narrow(keeping: Keeping, tensor: Any) -> bool:
    """Whether what computes the value computes it in the narrow type."""
    if id(tensor) in keeping.narrow_inputs:
        return True
    node = producer(tensor)
    if node is None or not keeping.is_narrow(node):
        return False
    roles = keeping.roles[id(node)]
    return any(item is tensor and role is Role.NARROW for item, role in zip(node.outputs, roles.outputs, strict=True))


def _neighbours(node: Any) -> list[Any]:
    makers = [producer(tensor) for tensor in node.inputs]
    return [maker for maker in makers if maker is not None] + [user for tensor in node.outputs for user in tensor.outputs]
