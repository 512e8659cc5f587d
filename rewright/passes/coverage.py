"""What a quantizing pass did with each node that it is for, and why not with the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["quantized", "missed", "excluded"]


@dataclass(frozen=True)
class Covered:
    """One node that a quantizing pass is for.

    Attributes:
        node: its name, or its first output's where it has none.
        op: as "MatMul" or "com.microsoft::Attention".
        outcome: "quantized"; "missed", where the pass could not; "excluded", where it was told not to.
        reason: why it was missed, or what excluded it.
        weight: the initializer that was quantized; empty where there is none.
        became: what it holds now, such as "uint8 x int8 per channel" or "int4 blocks of 32".
        bytes_before, bytes_after: of the weight, scales and zero points included; 0 where another node counts it already.
        error: of the weight, root mean square relative to the weight's own; None where nothing is known.
        worst_channel, worst_error: the channel whose relative error is the largest, and that error.
    """

    node: str
    op: str
    outcome: Outcome
    reason: str = ""
    weight: str = ""
    became: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    error: float | None = None
    worst_channel: int | None = None
    worst_error: float | None = None
