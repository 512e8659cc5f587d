"""The elements of a small integer tensor, as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass
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
        if not all(isinstance(item, int) for item in self.items):
            return None
        flat = np.asarray(self.items, dtype=object)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            if any(not limits.min <= int(item) <= limits.max for item in flat):
                return None
        array = flat.astype(self.dtype)
        return array if self.is_vector else array.reshape(())

    def numbers(self) -> list[int] | None:
        """The elements, if all are numbers."""
        found = [item for item in self.items if isinstance(item, int)]
        return found if len(found) == len(self.items) else None
