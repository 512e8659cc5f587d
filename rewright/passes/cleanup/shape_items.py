"""See ``rewright.shapes.items``."""

from rewright.shapes.items import Item, Items

__all__ = ["Item", "Items"]
