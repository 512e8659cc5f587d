"""What the rules know about the walk that asks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from rewright.shapes.dimensions import Size
from rewright.shapes.items import Item, Items

Dims: TypeAlias = list[Item]
"""The dimensions of a value; None for one about which a rule can say nothing."""


class Known(Protocol):
    """What is known so far, and where what follows from a node being computable at all is noted."""

    opset: int

    def dims(self, tensor: Any) -> list[Size] | None:
        """The dimensions of a value; None if its rank is not known."""

    def items(self, tensor: Any) -> Items | None:
        """The elements of a small integer value, as far as they are known."""

    def numbers(self, node: Any, index: int) -> list[int] | None:
        """The elements of an operand, if it is given and all are numbers."""

    def setting(self, node: Any, name: str, index: int, since: int, default: list[int] | None) -> list[int] | None:
        """An operand that was an attribute before opset ``since``; ``default`` where it is absent, None where it is not known."""

    def is_dimension(self, size: Size) -> bool:
        """Whether the size cannot be negative: by what it is made of, or because a value has it."""

    def not_negative(self, size: Size) -> None:
        """The size is not negative, or the node cannot be computed."""

    def equal(self, one: Size, other: Size) -> None:
        """Both sizes are equal, or the node cannot be computed."""

    def broadcast(self, shapes: list[Dims]) -> Dims:
        """The dimensions of what broadcasting makes of these."""


Rule: TypeAlias = Callable[[Known, Any], list[Dims | None] | None]
"""(what is known, node) -> the dimensions of each output, None for an output of which not even the rank is known. They hold
whenever the node can be computed."""
