"""One output against its reference: what was measured, whether it agrees, and what would have made it agree."""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from rewright.verify.budget import QuantizationBudget
from rewright.verify.tolerance import Tolerance, is_floating

Floats = npt.NDArray[np.float64]

MAXIMUM_SQNR_DB: Final = 200.0
"""Reported for equal arrays, whose ratio is infinite; float64 itself cannot reach it."""


NOISE_MULTIPLE: Final = 2.0
"""How many times the movement of the original under a unit in the last place is added to what the tolerance allows."""

NOISE_CEILING: Final = 8.0
"""What exceeds the tolerance by more than this factor is a difference, whatever the noise."""

_NOISE_ROW: Final = 8
"""Elements from which on a row of the last axis has a noise of its own; of fewer the largest of a few samples says little."""

Noise = Callable[[], npt.NDArray[np.float64] | None]
"""Measures how far each element of the reference moves by rounding; None where that is not known."""


class OutputEvidence(BaseModel):
    """One output of the candidate against the reference's, over one input set or, merged, the worst of several.

    `max_abs` and `max_rel` are taken where both are finite; `max_rel` where the reference exceeds `atol`. `atol` is the
    bound that was applied, scale included. `needed_rtol` is the smallest `rtol` that passes with that `atol`, None when
    no `rtol` does. `noise` is how far a unit in the last place of its inputs moves the reference itself, at most; it is
    measured only where the tolerance was exceeded by a small factor. `vacuous` is the reason why equality says nothing
    here, or empty. `sqnr_db`, `cosine` and `top1` are measured for quantizing passes only.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    dtype: str
    shape: list[int]
    max_abs: float | None = None
    max_rel: float | None = None
    rtol: float
    atol: float
    needed_rtol: float | None = None
    noise: float | None = None
    vacuous: str = ""
    equal: bool
    message: str = ""
    input_set: str = ""
    sqnr_db: float | None = None
    cosine: float | None = None
    top1: float | None = None


def compare(
    name: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    tolerance: Tolerance,
    budget: QuantizationBudget | None = None,
    noise: Noise | None = None,
) -> OutputEvidence:
    """Judge `candidate` against `reference`: dtype and shape strictly, then every element.

    NaN and infinities have to stand at the same positions, infinities with the same sign. With a `budget` the finite
    elements are judged by it instead of by `tolerance`, whose excess is then only reported. With `noise`, elements that
    exceed the tolerance by up to NOISE_CEILING times are accepted where they lie within the noise.
    """
    evidence = OutputEvidence(
        name=name,
        dtype=_dtype_name(candidate.dtype),
        shape=list(candidate.shape),
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        vacuous=vacuity(reference),
        equal=False,
    )
    if _dtype_name(candidate.dtype) != _dtype_name(reference.dtype):
        evidence.message = f"dtype is {_dtype_name(candidate.dtype)}, the reference has {_dtype_name(reference.dtype)}"
    elif candidate.shape != reference.shape:
        evidence.message = f"shape is {list(candidate.shape)}, the reference has {list(reference.shape)}"
    elif _is_text(reference):
        differing = int(np.sum(reference != candidate))
        evidence.equal = differing == 0
        evidence.message = f"{differing} of {reference.size} strings differ" if differing else ""
    elif is_floating(reference.dtype):
        _compare_floats(evidence, _float64(reference), _float64(candidate), tolerance, budget, noise)
    else:
        _compare_integers(evidence, reference, candidate, budget)
    return evidence


def merge(evidences: Iterable[OutputEvidence]) -> OutputEvidence:
    """The worst of one output's evidence over several input sets.

    A failure outranks a pass, then the larger `needed_rtol`, then the larger `max_abs`. The output is vacuous only if
    it is so on every set.

    Raises:
        ValueError: there is nothing to merge.
    """
    ranked = list(evidences)
    worst = max(ranked, key=_badness).model_copy()
    worst.max_abs = _largest(evidence.max_abs for evidence in ranked)
    worst.max_rel = _largest(evidence.max_rel for evidence in ranked)
    worst.sqnr_db = _smallest(evidence.sqnr_db for evidence in ranked)
    worst.cosine = _smallest(evidence.cosine for evidence in ranked)
    worst.top1 = _smallest(evidence.top1 for evidence in ranked)
    # A set that passed may still carry a note, such as positions that were left out.
    worst.message = worst.message or next((evidence.message for evidence in ranked if evidence.message), "")
    if any(not evidence.vacuous for evidence in ranked):
        worst.vacuous = ""
    return worst


def vacuity(reference: np.ndarray) -> str:
    """Why agreeing with this reference would prove nothing, or the empty string.

    A single element is not called constant: one input set cannot tell.
    """
    if reference.size == 0:
        return "empty"
    if _is_text(reference) or not is_floating(reference.dtype):
        values = reference.reshape(-1)
        return "constant" if values.size > 1 and bool(np.all(values == values[0])) else ""
    values = _float64(reference).reshape(-1)
    if np.isnan(values).all():
        return "all NaN"
    if values.size > 1 and not np.isnan(values).any() and bool(np.all(values == values[0])):
        return "constant"
    return ""


def sqnr_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Signal to quantization noise ratio, `10 log10(sum reference^2 / sum difference^2)`, capped to +-200 dB."""
    wanted, got = _float64(reference), _float64(candidate)
    noise = float(np.sum(np.square(got - wanted)))
    if noise == 0.0:
        return MAXIMUM_SQNR_DB
    signal = float(np.sum(np.square(wanted)))
    if signal == 0.0:
        return -MAXIMUM_SQNR_DB
    return float(np.clip(10.0 * np.log10(signal / noise), -MAXIMUM_SQNR_DB, MAXIMUM_SQNR_DB))


def cosine(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Cosine similarity of the flattened arrays; 1 when both are zero, 0 when one is."""
    wanted, got = _float64(reference).reshape(-1), _float64(candidate).reshape(-1)
    norms = float(np.linalg.norm(wanted) * np.linalg.norm(got))
    if norms == 0.0:
        return float(np.array_equal(wanted, got))
    return float(np.clip(wanted @ got / norms, -1.0, 1.0))


def top1_agreement(reference: np.ndarray, candidate: np.ndarray) -> float | None:
    """Share of rows whose largest element stays in place; None when the last axis has fewer than two elements."""
    if reference.ndim == 0 or reference.shape[-1] < 2 or reference.size == 0:
        return None
    same = np.argmax(_float64(reference), axis=-1) == np.argmax(_float64(candidate), axis=-1)
    return float(np.mean(same))


def _compare_floats(
    evidence: OutputEvidence,
    wanted: Floats,
    got: Floats,
    tolerance: Tolerance,
    budget: QuantizationBudget | None,
    noise: Noise | None,
) -> None:
    finite = np.isfinite(wanted) & np.isfinite(got)
    difference = np.abs(got[finite] - wanted[finite])
    magnitude = np.abs(wanted[finite])
    root_mean_square = _rms(magnitude)
    atol = tolerance.atol * max(1.0, root_mean_square)
    evidence.atol = atol
    evidence.max_abs = float(difference.max(initial=0.0))
    significant = magnitude > atol
    evidence.max_rel = float((difference[significant] / magnitude[significant]).max(initial=0.0))

    misplaced = _misplaced(wanted, got)
    if misplaced:
        evidence.message = misplaced
        return
    evidence.needed_rtol = _needed_rtol(difference, magnitude, atol)
    if budget is not None:
        evidence.top1 = top1_agreement(wanted, got)
        _judge_by_budget(evidence, wanted[finite], got[finite], budget)
        return
    allowed = atol + tolerance.rtol * magnitude
    exceeding = difference > allowed
    drift = _rms(difference) / root_mean_square if root_mean_square else 0.0
    if exceeding.any() and noise is not None and not bool(np.any(difference > NOISE_CEILING * allowed)):
        exceeding = _beyond_noise(evidence, difference - allowed, finite, noise())
    if exceeding.any():
        evidence.message = _worst_element(wanted, got, finite, difference - tolerance.rtol * magnitude, exceeding)
    elif drift > tolerance.drift:
        evidence.message = f"the output drifts by {drift:.1e} of its magnitude, at most {tolerance.drift:.1e} is allowed"
    evidence.equal = not evidence.message
    if evidence.equal and evidence.noise is not None:
        evidence.message = f"beyond the tolerance, within the rounding noise of the original, which moves by {evidence.noise:.1e}"


def _beyond_noise(
    evidence: OutputEvidence, excess: Floats, finite: npt.NDArray[np.bool_], moved: Floats | None
) -> npt.NDArray[np.bool_]:
    """The finite elements whose excess over the tolerance the noise of their row does not explain."""
    if moved is None:
        return excess > 0.0
    evidence.noise = float(moved.max(initial=0.0))
    has_rows = moved.ndim > 0 and moved.shape[-1] >= _NOISE_ROW
    of_row = moved.max(axis=-1, keepdims=True) if has_rows else np.full_like(moved, evidence.noise)
    return np.asarray(excess > NOISE_MULTIPLE * np.broadcast_to(of_row, moved.shape)[finite])


def _compare_integers(
    evidence: OutputEvidence, reference: np.ndarray, candidate: np.ndarray, budget: QuantizationBudget | None
) -> None:
    # float64 holds the difference of two int64 only roughly, which is enough for a figure; equality is asked of the
    # integers themselves.
    differing = np.asarray(reference != candidate)
    difference = np.abs(candidate.astype(np.float64) - reference.astype(np.float64))
    evidence.max_abs = float(difference.max(initial=0.0))
    evidence.max_rel = float((difference / np.maximum(np.abs(reference.astype(np.float64)), 1.0)).max(initial=0.0))
    evidence.needed_rtol = None if differing.any() else 0.0
    allowed = False
    if budget is not None and differing.any():
        agreement = 1.0 - float(np.mean(differing))
        evidence.top1 = agreement
        is_quantized_level = reference.dtype.itemsize == 1 and reference.dtype != np.bool_
        allowed = agreement >= budget.agreement or (is_quantized_level and evidence.max_abs <= budget.step)
    evidence.equal = allowed or not differing.any()
    if not evidence.equal:
        where = np.unravel_index(int(np.argmax(differing)), differing.shape)
        evidence.message = (
            f"{int(differing.sum())} of {reference.size} elements differ, the first at {_place(where)}: "
            f"{candidate[where]} instead of {reference[where]}"
        )


def _judge_by_budget(evidence: OutputEvidence, wanted: Floats, got: Floats, budget: QuantizationBudget) -> None:
    evidence.sqnr_db = sqnr_db(wanted, got)
    evidence.cosine = cosine(wanted, got)
    if evidence.sqnr_db < budget.sqnr_db:
        evidence.message = f"SQNR is {evidence.sqnr_db:.1f} dB, the budget asks for {budget.sqnr_db:.1f} dB"
    elif evidence.cosine < budget.cosine:
        evidence.message = f"cosine similarity is {evidence.cosine:.4f}, the budget asks for {budget.cosine:.4f}"
    elif budget.max_abs is not None and evidence.max_abs is not None and evidence.max_abs > budget.max_abs:
        evidence.message = f"the largest difference is {evidence.max_abs:.3g}, the budget asks for {budget.max_abs:.3g}"
    elif budget.top1 is not None and evidence.top1 is not None and evidence.top1 < budget.top1:
        evidence.message = f"the top element agrees in {evidence.top1:.2%} of the rows, the budget asks for {budget.top1:.2%}"
    evidence.equal = not evidence.message


def _misplaced(wanted: Floats, got: Floats) -> str:
    """Where NaN or an infinity stands on one side only, in words; empty when they agree."""
    nan_differs = np.isnan(wanted) != np.isnan(got)
    if nan_differs.any():
        where = np.unravel_index(int(np.argmax(nan_differs)), nan_differs.shape)
        return (
            f"NaN positions differ at {int(nan_differs.sum())} of {wanted.size} elements, the first at "
            f"{_place(where)}: {got[where]:.6g} instead of {wanted[where]:.6g}"
        )
    infinite = np.isinf(wanted) | np.isinf(got)
    infinity_differs = infinite & (wanted != got)
    if infinity_differs.any():
        where = np.unravel_index(int(np.argmax(infinity_differs)), infinity_differs.shape)
        return (
            f"infinities differ at {int(infinity_differs.sum())} of {wanted.size} elements, the first at "
            f"{_place(where)}: {got[where]:.6g} instead of {wanted[where]:.6g}"
        )
    return ""


def _needed_rtol(difference: Floats, magnitude: Floats, atol: float) -> float | None:
    excess = difference - atol
    over = excess > 0.0
    if not over.any():
        return 0.0
    if not magnitude[over].all():
        return None
    return float((excess[over] / magnitude[over]).max())


def _worst_element(
    wanted: Floats, got: Floats, finite: npt.NDArray[np.bool_], excess: Floats, exceeding: npt.NDArray[np.bool_]
) -> str:
    where = np.unravel_index(int(np.flatnonzero(finite)[int(np.argmax(excess))]), wanted.shape)
    return (
        f"{int(exceeding.sum())} of {wanted.size} elements differ too much, the worst at {_place(where)}: "
        f"{got[where]:.7g} instead of {wanted[where]:.7g}"
    )


def _badness(evidence: OutputEvidence) -> tuple[bool, float, float]:
    needed = float("inf") if evidence.needed_rtol is None else evidence.needed_rtol
    largest = float("inf") if evidence.max_abs is None else evidence.max_abs
    return not evidence.equal, needed, largest


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _float64(array: np.ndarray) -> Floats:
    """Every rounded type as float64; a complex array gets a last axis of (real, imaginary)."""
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], axis=-1).astype(np.float64)
    return np.asarray(array, dtype=np.float64)


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "OUST"


def _dtype_name(dtype: np.dtype) -> str:
    return "string" if dtype.kind in "OUST" else dtype.name


def _place(index: tuple[np.intp, ...]) -> str:
    return str([int(axis) for axis in index])


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _smallest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
