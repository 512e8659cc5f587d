"""The parts of the constants that attention packs: what belongs to queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rewright.testing.mutants.spots import Spot

_ROLES: Final = ("the query part", "the key part", "the value part")
_KEY_BIAS: Final = "what is added to all keys adds the same number to all scores of a query, which softmax cancels"


@dataclass(frozen=True)
class Block:
    """One part: its name, where it lies, and why breaking it changes nothing."""

    name: str
    where: tuple[slice, ...]
    equivalent: str = ""


def of_weights(spot: Spot) -> Iterator[Block]:
    """The columns of ``weights`` (D, 3 * N * H)."""
    weights = spot.constant("weights")
    if weights is None:
        return
    for role, columns in zip(_ROLES, _columns(spot, weights.shape[1]), strict=True):
        yield Block(role, (slice(None), columns))


def of_bias(spot: Spot) -> Iterator[Block]:
    """The elements of ``bias`` (3 * N * H)."""
    bias = spot.constant("bias")
    if bias is None:
        return
    for role, elements in zip(_ROLES, _columns(spot, bias.shape[0]), strict=True):
        yield Block(role, (elements,), _KEY_BIAS if role == _ROLES[1] else "")


def _columns(spot: Spot, total: int) -> list[slice]:
    sizes = spot.attribute("qkv_hidden_sizes") or [total // 3] * 3
    return [slice(sum(sizes[:part]), sum(sizes[: part + 1])) for part in range(3)]
