"""See ``rewright.shapes.layout``; here with the arguments that passes give."""

from __future__ import annotations

from typing import Any

from rewright.passes.cleanup.shape_values import ShapeValues
from rewright.shapes import layout
from rewright.shapes.items import Item
from rewright.shapes.layout import reaches


def slice_ranges(node: Any, values: ShapeValues) -> dict[int, tuple[Item, Item, Item]] | None:
    """Start, end and step of a Slice by axis; None if the axes are not known."""
    return layout.slice_ranges(values.shapes, node)


__all__ = ["reaches", "slice_ranges"]
