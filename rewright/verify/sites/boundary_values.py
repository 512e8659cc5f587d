"""Values for the boundary of a section: those that occurred in runs of the model, and harder ones made of them.

Each kind shows faults that others hide: rows of low variance a wrong epsilon, large offsets a mean that is not subtracted,
numbers of many scales a wrong scale, a shifted mask one that was dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

import numpy as np

from rewright.verify.inputs import LARGE, LOW_VARIANCE_DEVIATION, LOW_VARIANCE_OFFSET, TINY
from rewright.verify.tolerance import is_floating

Arrays = Mapping[str, np.ndarray]
Maker = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]

_OFFSET: Final = 2.0
_MINUTE: Final = 1e-6
"""Rows whose variance, 1e-12, is that of the smallest usual epsilon: larger ones do not tell 1e-12 from 1e-11."""

_MASKED_BELOW: Final = -1e3
_LARGEST_MASK: Final = 2**22
_LARGEST_HALF: Final = 65504.0
_HEAVY_CAPTURED: Final = 2
_HEAVY_KINDS: Final = 4


@dataclass(frozen=True)
class BoundarySet:
    """One value for each boundary input of a section.

    Attributes:
        name: how reports refer to it.
        arrays: by value name.
        origin: number of the input set that it was captured from, or made of.
        is_captured: whether it is as it occurred.
        shift: by how many positions the masks were moved.
    """

    name: str
    arrays: Arrays = field(repr=False)
    origin: int
    is_captured: bool
    shift: int = 0


def _rows(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Each row along the last axis has a scale of its own, from 0.001 to 30."""
    scales = 10.0 ** rng.uniform(np.log10(TINY), np.log10(LARGE), (*shape[:-1], 1) if shape else ())
    return np.asarray(scales * rng.standard_normal(shape))


def _tiny(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Rows along the last axis by turns of the scale 0.001 and a thousandth of that."""
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    scales = np.resize([TINY, _MINUTE], rows).reshape(*shape[:-1], 1) if shape else np.asarray(TINY)
    return np.asarray(scales * rng.standard_normal(shape))


_FLOATS: Final[dict[str, Maker]] = {
    "normal": lambda shape, rng: rng.standard_normal(shape),
    "low variance": lambda shape, rng: LOW_VARIANCE_OFFSET + LOW_VARIANCE_DEVIATION * rng.standard_normal(shape),
    "rows of different scale": _rows,
    "large": lambda shape, rng: LARGE * rng.standard_normal(shape),
    "large offset": lambda shape, rng: _OFFSET + rng.standard_normal(shape),
    "tiny": _tiny,
    "heavy-tailed": lambda shape, rng: np.clip(rng.standard_t(2.0, shape), -LARGE, LARGE),
    "zeros": lambda shape, rng: np.zeros(shape),
}


def boundary_sets(
    captured: Sequence[tuple[int, Arrays]],
    free: tuple[str, ...],
    seed: int = 0,
    *,
    is_heavy: bool = False,
    bounds: Sequence[float] = (),
    added: Mapping[str, np.ndarray] | None = None,
    indices: Mapping[str, tuple[int, int]] | None = None,
    held: Collection[str] = (),
) -> Iterator[BoundarySet]:
    """The captured sets, then those with made-up numbers in place of the free values, then those with other masks.

    Args:
        captured: values by name, with the number of the input set that they occurred in; at least one.
        free: names of values that can be any floating-point number.
        seed: of the made numbers; the same for the same seed on every machine.
        is_heavy: whether running the section is much work, so that fewer sets have to do.
        bounds: numbers around which the section behaves otherwise, and which the usual made-up numbers do not reach.
        added: constant vectors that the section adds to free values, by the names of these.
        indices: values that pick rows of a table: the first row, and how many there are up to the last.
        held: names of values that stay as they occurred; masks beside one of them that is a mask stay, too.
    """
    for number, arrays in captured[: _HEAVY_CAPTURED if is_heavy else None]:
        yield BoundarySet(f"captured from input set {number}", arrays, number, True)
    number, base = _telling(captured)
    floats = [name for name in free if name in base and is_floating(base[name].dtype) and base[name].size]
    has_halves = any(base[name].dtype == np.float16 for name in floats)
    bounds = [bound for bound in bounds if not has_halves or bound**2 <= _LARGEST_HALF]  # their products would be infinite
    kinds = list(_FLOATS.items())[: _HEAVY_KINDS if is_heavy else None] + [_around(bound) for bound in bounds]
    for kind, make in kinds if floats else ():
        made = {
            name: make(base[name].shape, np.random.default_rng([seed, crc32(kind.encode()), position])).astype(base[name].dtype)
            for position, name in enumerate(floats)
        }
        yield BoundarySet(kind, {**base, **made}, number, False)
    cancelling = _cancelling(base, floats, added or {}, seed)
    if cancelling:
        yield BoundarySet("sums near zero", {**base, **cancelling}, number, False)
    longest, most = max(captured, key=lambda entry: sum(entry[1][name].size for name in indices or () if name in entry[1]))
    picked = {name: _ends(most[name], *limits) for name, limits in (indices or {}).items() if name in most and most[name].size}
    if picked:
        yield BoundarySet("first and last rows", {**most, **picked}, longest, False)
    masks = [name for name, array in base.items() if name not in floats and _is_mask(array)]
    if any(name in held for name in masks):
        masks = []
    for shift in range(1, 2 if is_heavy else 3) if masks else ():
        moved = {name: np.roll(base[name], shift, axis=-1) for name in masks}
        normal = {
            name: np.random.default_rng([seed, shift, position]).standard_normal(base[name].shape).astype(base[name].dtype)
            for position, name in enumerate(floats)
        }
        yield BoundarySet(f"masks moved by {shift}", {**base, **normal, **moved}, number, False, shift)


def _around(bound: float) -> tuple[str, Maker]:
    return f"around {bound:g}", lambda shape, rng: 2 * bound * rng.standard_normal(shape)


def _cancelling(base: Arrays, floats: Sequence[str], added: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Values that leave next to nothing of the vectors that are added to them; zeros for all others.

    A vector that is added hides how rows of low variance are treated: its own variance is larger. With zeros beside it the sums
    are exact in whatever order they are taken.
    """
    made: dict[str, np.ndarray] = {}
    for position, name in enumerate(floats):
        array = base[name]
        if name in added and array.ndim and added[name].shape == array.shape[-1:]:
            rng = np.random.default_rng([seed, crc32(b"cancelling"), position])
            made[name] = (_tiny(array.shape, rng) - added[name]).astype(array.dtype)
    return {**{name: np.zeros_like(base[name]) for name in floats}, **made} if made else {}


def _ends(array: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Indices from both ends of a table by turns: a fault in a row shows only if something looks it up."""
    steps = np.arange(array.size) // 2
    limits = np.where(np.arange(array.size) % 2 == 0, first + steps, stop - 1 - steps)
    return np.clip(limits, first, stop - 1).reshape(array.shape).astype(array.dtype)


def _telling(captured: Sequence[tuple[int, Arrays]]) -> tuple[int, Arrays]:
    """The smallest captured set with a mask that masks something, else the smallest."""
    masked = [entry for entry in captured if any(_is_mask(array) for array in entry[1].values())]
    return min(masked or captured, key=lambda entry: sum(array.size for array in entry[1].values()))


def _is_mask(array: np.ndarray) -> bool:
    """Whether an array looks like a mask of keys: two different values, one of which lets pass."""
    if array.ndim < 2 or array.shape[-1] < 2 or not 0 < array.size <= _LARGEST_MASK:
        return False
    if array.dtype == np.bool_:
        return bool(array.any() and not array.all())
    is_number = array.dtype.kind in "iu"
    if not is_number and not is_floating(array.dtype):
        return False
    low, high = array.min(), array.max()
    if not (low == 0 and high == 1 if is_number else high == 0 and low <= _MASKED_BELOW):
        return False
    return bool(np.all((array == low) | (array == high)))
