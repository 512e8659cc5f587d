"""Moved: see ``rewright.shapes.dimensions``."""

from rewright.shapes.dimensions import Polynomial, Size, add, divide, multiply, product, symbol

__all__ = ["Polynomial", "Size", "add", "divide", "multiply", "product", "symbol"]
