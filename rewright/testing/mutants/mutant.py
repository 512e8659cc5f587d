"""A fault of a pass on a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rewright.model.carrier import Model


@dataclass(frozen=True)
class Mutant:
    """A fault of a pass: at one of the places that have it, or at all.

    Attributes:
        kind: what is broken.
        fault: what it is broken into.
        where: "one site" or "all sites".
        op: the op that is broken, as "com.microsoft::Attention".
        change: breaks a copy of the pass's result.
        equivalent: why it cannot show, or empty.
    """

    kind: str
    fault: str
    where: str
    op: str
    change: Callable[[Model], None] = field(repr=False, compare=False)
    equivalent: str = ""

    @property
    def name(self) -> str:
        """What is broken, and where."""
        return f"{self.op}: {self.fault}, {self.where}"
