"""Whether a new part of a model gives what the old one gave, given what the old one computes in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewright.passes.contract import Exactness
from rewright.verify.budget import QuantizationBudget
from rewright.verify.comparison import compare
from rewright.verify.inputs import InputSet
from rewright.verify.tolerance import is_floating, tolerance_for

_NOISE_FACTOR: Final = 4.0
"""How many times the old part's own distance from float64, in that row, the new part may be away from it."""

_SPREAD_FACTOR: Final = 3.0
"""The same for the largest distance in the whole tensor: which row rounding hits hardest is chance."""

_SMALLEST: Final = 1e-30


@dataclass(frozen=True)
class Judgement:
    """One output on one set. ``ratio`` is the largest difference in proportion to what is allowed: above 1 it has failed."""

    ratio: float
    max_abs: float = 0.0
    allowed: float = 0.0
    noise: float = 0.0
    message: str = ""


def judge(
    wanted: np.ndarray,
    got: np.ndarray,
    truth: np.ndarray | None,
    exactness: Exactness,
    *,
    is_captured: bool,
    budget: QuantizationBudget | None = None,
    shaken: Sequence[np.ndarray] = (),
    coarse: np.dtype | None = None,
) -> Judgement:
    """Compares two arrays.

    Every element may differ by the tolerance of its dtype and exactness, taken in proportion to the magnitude of the tensor, and
    by a few times the error that the old part itself has in that row and tensor. What is not finite in the old part has to be so
    in the new one, if the values occurred like that; where they were made up it is left out.

    Args:
        wanted: what the old part gave.
        got: what the new part gave.
        truth: what the old part gives in float64; None if that is not known.
        exactness: the promise of the pass.
        is_captured: whether the boundary values occurred in a run of the model.
        budget: of quantizing passes.
        shaken: what the old part gives in float64 where its inputs are off by their last place: what it then differs by counts as
            error of its own.
        coarse: the type of fewer digits that the values were made of, whose tolerance then counts.
    """
    if wanted.dtype != got.dtype:
        return Judgement(np.inf, message=f"dtype is {got.dtype.name} instead of {wanted.dtype.name}")
    if wanted.shape != got.shape:
        return Judgement(np.inf, message=f"shape is {list(got.shape)} instead of {list(wanted.shape)}")
    if exactness == "quantizing":
        found = compare("", wanted, got, tolerance_for(wanted.dtype, exactness), budget or QuantizationBudget())
        return Judgement(0.0 if found.equal else np.inf, found.max_abs or 0.0, message=found.message)
    if not is_floating(wanted.dtype) or wanted.dtype.kind == "c" or exactness == "exact":
        return _equal(wanted, got)
    return _close(wanted, got, truth, exactness, is_captured, shaken, coarse or wanted.dtype)


def _equal(wanted: np.ndarray, got: np.ndarray) -> Judgement:
    differing = np.asarray(wanted != got)
    if wanted.dtype.kind not in "OUSb" and is_floating(wanted.dtype):
        differing &= ~(np.isnan(wanted.astype(np.float64)) & np.isnan(got.astype(np.float64)))
    if not differing.any():
        return Judgement(0.0)
    largest = 0.0
    if wanted.dtype.kind not in "OUS":
        with np.errstate(invalid="ignore"):
            largest = float(np.nanmax(np.abs(got.astype(np.float64) - wanted.astype(np.float64))[differing], initial=0.0))
    place = [int(axis) for axis in np.argwhere(differing)[0]]
    where = f"{int(differing.sum())} of {wanted.size} elements differ, the first at {place}"
    return Judgement(np.inf, largest, message=f"{where}: {got[tuple(place)]} instead of {wanted[tuple(place)]}")


def _close(
    wanted: np.ndarray,
    got: np.ndarray,
    truth: np.ndarray | None,
    exactness: Exactness,
    is_captured: bool,
    shaken: Sequence[np.ndarray],
    dtype: np.dtype,
) -> Judgement:
    tolerance = tolerance_for(dtype, exactness)
    old, new = wanted.astype(np.float64), got.astype(np.float64)
    exact = truth.astype(np.float64) if truth is not None and truth.shape == old.shape else old
    finite = np.isfinite(old) & np.isfinite(exact)
    misplaced = _misplaced(old, new, exact, finite, is_captured)
    if misplaced:
        return Judgement(np.inf, message=misplaced)
    if not finite.any():
        return Judgement(0.0)
    error = np.where(finite, np.abs(np.where(finite, old, 0.0) - np.where(finite, exact, 0.0)), 0.0)
    for other in shaken:
        moved = np.where(finite, np.abs(other.astype(np.float64) - np.where(finite, exact, 0.0)), 0.0)
        error = np.maximum(error, np.where(np.isfinite(moved), moved, 0.0))
    magnitude = np.where(finite, np.abs(np.where(finite, exact, 0.0)), 0.0)
    difference = np.where(finite, np.abs(np.where(finite, new, 0.0) - np.where(finite, exact, 0.0)), 0.0)
    scale = float(np.sqrt(np.mean(np.square(magnitude[finite]))))
    if exactness == "approximate":
        scale = max(1.0, scale)  # what is approximated is off by so much for any input, however small its result
    row = error.max(axis=-1, keepdims=True) if error.ndim else error
    allowed = (
        tolerance.atol * scale
        + tolerance.rtol * magnitude
        + np.maximum(_NOISE_FACTOR * row, _SPREAD_FACTOR * error.max())
        + _SMALLEST
    )
    ratios = difference / allowed
    worst = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    ratio = float(ratios[worst])
    message = ""
    if ratio > 1.0:
        count = int((ratios > 1.0).sum())
        place = [int(axis) for axis in worst]
        message = f"{count} of {old.size} elements differ too much, the worst at {place}:"
        message += f" {new[worst]:.7g} instead of {exact[worst]:.7g}"
    return Judgement(ratio, float(difference[worst]), float(allowed[worst]), float(error.max()), message)


def _misplaced(old: np.ndarray, new: np.ndarray, exact: np.ndarray, finite: np.ndarray, is_captured: bool) -> str:
    lost = finite & ~np.isfinite(new)
    if lost.any():
        place = [int(axis) for axis in np.argwhere(lost)[0]]
        return f"{int(lost.sum())} of {old.size} elements are not finite, the first at {place}: {new[tuple(place)]}"
    if not is_captured:
        return ""
    odd = ~np.isfinite(old) & ~np.isfinite(exact)
    same = (np.isnan(old) & np.isnan(new)) | (old == new)
    if (odd & ~same).any():
        place = [int(axis) for axis in np.argwhere(odd & ~same)[0]]
        return f"at {place} it is {new[tuple(place)]} instead of {old[tuple(place)]}"
    return ""


def without_padded_rows(arrays: list[np.ndarray], input_set: InputSet, shift: int = 0) -> list[np.ndarray] | None:
    """The arrays, all of one shape, without the rows of positions that the input set's padding masks leave out.

    None if they have no such rows. A row belongs to a position if the first axis is as long as the mask's batch and a later one,
    but not the last, is as long as its sequence. ``shift`` is by how many positions the masks were moved.
    """
    shape = arrays[0].shape
    for name in input_set.padding_masks:
        valid = np.roll(np.asarray(input_set.arrays[name]).astype(np.bool_), shift, axis=-1)
        if valid.all() or len(shape) < 3 or shape[0] != valid.shape[0]:
            continue
        axes = [axis for axis in range(1, len(shape) - 1) if shape[axis] == valid.shape[1]]
        if axes:
            return [np.moveaxis(array, axes[-1], 1)[valid] for array in arrays]
    return None
