"""What passes ask about sizes: dimensions and elements of small integer tensors, from what ``rewright.shapes`` knows."""

from __future__ import annotations

from typing import Any

from rewright.shapes import terms
from rewright.shapes.dimensions import Size
from rewright.shapes.items import Item, Items
from rewright.shapes.walk import Shapes


class ShapeValues:
    """The dimensions and the shape arithmetic of one view."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def dims_of(self, tensor: Any) -> list[Size] | None:
        """The dimensions of a value; None if the rank is unknown."""
        return self.shapes.dims(tensor)

    def of(self, tensor: Any) -> Items | None:
        """What is known about the elements of a small integer value."""
        return self.shapes.items(tensor)

    def smaller(self, size: Size, limit: Size) -> Item:
        """``min(size, limit)`` for a size that is not negative and a positive number; None else."""
        return terms.minimum(size, limit) if isinstance(limit, int) and limit >= 1 else None

    def bound_of(self, size: Item) -> Size | None:
        """``a`` if the size is ``min(a, positive number)``."""
        held = terms.term_of(size, "min")
        others = [argument for argument in held.arguments if not isinstance(argument, int)] if held is not None else []
        return others[0] if held is not None and len(held.arguments) == 2 and len(others) == 1 else None

    def forget_input_names(self) -> None:
        """Nothing has to be taken back: derived names never reach the signature."""
