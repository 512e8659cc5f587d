"""The elements of a small integer tensor, as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any

import numpy as np

from rewright.shapes.dimensions import Size

Item = Size | None


@dataclass(frozen=True)
class Items:
    """The elements of a scalar or vector of integers or booleans; None for an element that is not known."""

    items: tuple[Item, ...]
    is_vector: bool
    dtype: np.dtype[Any]

    def array(self) -> np.ndarray[Any, Any] | None:
        """The value, if every element is a number that the dtype holds."""
        if not self.is_certain:
            return None
        array = np.array(self.items, dtype=self.dtype)
        return array if self.is_vector else array.reshape(())

    @property
    def is_certain(self) -> bool:
        """Whether every element is a number that the dtype holds."""
        least, most = _limits(self.dtype)
        return all(isinstance(item, int) and least <= item <= most for item in self.items)

    def numbers(self) -> list[int] | None:
        """The elements, if all are numbers."""
        found = [item for item in self.items if isinstance(item, int)]
        return found if len(found) == len(self.items) else None


@cache
def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The least and the largest element; any number stands for a truth value."""
    if dtype.kind not in "iu":
        return -inf, inf
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
