"""What a model is invariant to, asked of the original and of the result alike.

A decoder that no longer hides the future, a mask that no longer hides padding and a reshape that mixes rows may all agree with
the original on the inputs that were tried. Each probe runs a model twice, on inputs that differ only where the outputs that are
looked at must not care. What the original holds the result has to hold; what the original does not hold is only noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model
from rewright.passes.contract import Exactness
from rewright.verify.budget import QuantizationBudget
from rewright.verify.comparison import Noise, compare
from rewright.verify.inputs import InputSet
from rewright.verify.noise import NoiseFloor
from rewright.verify.process import SessionError, SessionRun, SessionWorker, SetResult, first_line
from rewright.verify.roles import InputRole
from rewright.verify.seeds import run_pinned
from rewright.verify.tolerance import Tolerance, is_floating, least_exact, tolerance_for

Feed = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]
Known = Mapping[int, Outputs]
Lower = Callable[[Model], Model]
Part = Callable[[str, np.ndarray], np.ndarray | None]
"""What of an output, by name, a probe looks at; None where the probe says nothing about that output."""

ProbeStatus = Literal["held", "broken", "not-held", "not-run"]

MARGIN: Final = 4.0
"""The result may move this many times as far as what counts as holding still for the original, so that an original that only
just holds does not blame a result that rounds otherwise."""

_LISTED: Final = 3


class ProbeEvidence(BaseModel):
    """What one probe showed.

    Attributes:
        name: "causality", "padding", "batch" or "cached-steps".
        subject: the inputs that were changed, or fed back.
        status: "held" by both, "broken" by the result although the original holds, "not-held" by the original,
            "not-run" where the model offers no place for the probe, or cannot run on its inputs.
        reason: why it is broken or was not run; else the outputs that the original does not hold, if there are any.
        figures: measured numbers: "original" and "candidate", the largest movement of an output that the original holds.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    subject: str = ""
    status: ProbeStatus
    reason: str = ""
    figures: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Two feeds, and the parts of the outputs that have to be equal.

    `needs_change`: whether an output counts only if it differs somewhere, since an output that does not depend on what was
    changed at all proves nothing.
    """

    name: str
    subject: str
    first: Feed
    second: Feed
    part_of_first: Part
    part_of_second: Part
    needs_change: bool = True


@dataclass(frozen=True)
class Bench:
    """What probes run with.

    Attributes:
        worker: runs both models.
        exactness: how exact the result promised to be.
        lower: replaces ops without a kernel here.
        budget: what quantizing passes may lose.
        coarse: outputs whose numbers were rounded to a coarser type than their own on the way.
    """

    worker: SessionWorker
    exactness: Exactness = "reassociating"
    lower: Lower | None = None
    budget: QuantizationBudget | None = None
    coarse: Mapping[str, np.dtype] = field(default_factory=dict)

    def run(self, model: Model, feeds: Sequence[Feed]) -> SessionRun:
        """Run the model on every feed.

        Raises:
            SessionError: it does not load, or the worker died.
        """
        return run_pinned(self.worker, self.lower(model) if self.lower is not None else model, feeds)

    def agree(
        self, name: str, wanted: np.ndarray, got: np.ndarray, margin: float = 1.0, noise: Noise | None = None
    ) -> tuple[bool, float]:
        """Whether two arrays are equal within `margin` times the tolerance, or within the noise; and the largest difference."""
        exactness = least_exact(["reassociating", self.exactness])
        tolerance = tolerance_for(self.coarse.get(name, wanted.dtype) if is_floating(wanted.dtype) else wanted.dtype, exactness)
        if is_floating(wanted.dtype):
            tolerance = Tolerance(margin * tolerance.rtol, margin * tolerance.atol, margin * tolerance.drift)
        budget = self.budget or QuantizationBudget() if exactness == "quantizing" else None
        judged = compare(name, wanted, got, tolerance, budget, noise if budget is None else None)
        return judged.equal, float("inf") if judged.max_abs is None else judged.max_abs

    def is_rounding(self, first: np.ndarray, second: np.ndarray, parts: tuple[np.ndarray, np.ndarray]) -> bool:
        """Whether a quantized output moves in the parts that should stay by no more than the budget allows the whole of it.

        Activations that are quantized at run time have one scale for all positions: what is large in one rounds the others too.
        """
        if self.exactness != "quantizing" or not is_floating(first.dtype) or not all(np.isfinite(each).all() for each in parts):
            return False
        signal = max(float(np.mean(np.square(each, dtype=np.float64))) for each in (first, second))
        noise = float(np.mean(np.square(parts[0].astype(np.float64) - parts[1])))
        budget = self.budget or QuantizationBudget()
        return bool(np.isfinite(signal)) and noise <= signal / 10.0 ** (budget.sqnr_db / 10.0)


def judge_trials(
    trials: Sequence[Trial],
    original: Model,
    candidate: Model,
    bench: Bench,
    known: Known | None = None,
    known_of_candidate: Known | None = None,
) -> list[ProbeEvidence]:
    """Run both models on the feeds of the trials, each feed once, and judge every trial.

    What the candidate no longer holds by a small factor is held against the rounding noise of the original. The candidate is
    run for what the original holds only. `known` are outputs of the original, by the `id` of the feed; the candidate's likewise.
    """
    of_original = {feed: SetResult(dict(outputs)) for feed, outputs in (known or {}).items()}
    of_candidate = {feed: SetResult(dict(outputs)) for feed, outputs in (known_of_candidate or {}).items()}
    _run(of_original, original, trials, bench)
    judged = [_of_original(trial, of_original[id(trial.first)], of_original[id(trial.second)], bench) for trial in trials]
    telling = [trial for trial, (_, held) in zip(trials, judged, strict=True) if held]
    _run(of_candidate, candidate, telling, bench)
    floor = NoiseFloor(original, bench.run)
    for trial, (evidence, held) in zip(trials, judged, strict=True):
        if held:
            results = of_candidate[id(trial.first)], of_candidate[id(trial.second)]
            moved = partial(floor.of, trial.first, of_original[id(trial.first)].outputs)
            _of_candidate(trial, evidence, held, results, bench, moved)
    return [evidence for evidence, _ in judged]


def _run(results: dict[int, SetResult], model: Model, trials: Sequence[Trial], bench: Bench) -> None:
    """Add the results of the feeds that are not there yet; a model that does not load has its error for each."""
    feeds = {id(feed): feed for trial in trials for feed in (trial.first, trial.second) if id(feed) not in results}
    if not feeds:
        return
    try:
        found = bench.run(model, list(feeds.values())).results
    except SessionError as error:
        found = tuple(SetResult({}, error.message) for _ in feeds)
    results.update(zip(feeds, found, strict=True))


def _of_original(trial: Trial, first: SetResult, second: SetResult, bench: Bench) -> tuple[ProbeEvidence, dict[str, float]]:
    """The evidence so far, and the outputs that the original holds, with their movements."""
    evidence = ProbeEvidence(name=trial.name, subject=trial.subject, status="not-run")
    error = first.error or second.error
    if error:
        evidence.reason = f"the original cannot be run on the inputs of the probe: {first_line(error)}"
        return evidence, {}
    held: dict[str, float] = {}
    loose: dict[str, float] = {}
    if bench.exactness == "quantizing":  # what the result may lose says nothing of what the original holds
        bench = replace(bench, exactness="reassociating")
    for name, wanted, got in _parts(trial, first.outputs, second.outputs):
        is_held, moved = bench.agree(name, wanted, got)
        (held if is_held else loose)[name] = moved
    if held or loose:
        evidence.status = "held" if held else "not-held"
        evidence.reason = f"not held by the original: {listed(list(loose))}" if loose else ""
        evidence.figures["original"] = max((held or loose).values())
    else:
        evidence.reason = "no output depends on what is changed and has positions that should not"
    return evidence, held


def _of_candidate(
    trial: Trial,
    evidence: ProbeEvidence,
    held: Mapping[str, float],
    results: tuple[SetResult, SetResult],
    bench: Bench,
    moved_by_noise: Callable[[], Outputs],
) -> None:
    first, second = results
    error = first.error or second.error
    if error:
        evidence.status, evidence.reason = "broken", f"the result cannot be run on the inputs of the probe: {first_line(error)}"
        return
    broken = []
    found = {
        name: (wanted, got) for name, wanted, got in _parts(replace(trial, needs_change=False), first.outputs, second.outputs)
    }
    for name, moved_before in held.items():
        if name not in found:
            broken.append(f"'{name}' has another shape")
            continue
        is_held, moved = bench.agree(name, *found[name], margin=MARGIN)
        if not is_held:
            noise = partial(_part_of_noise, trial, name, moved_by_noise)
            is_held, _ = bench.agree(name, *found[name], noise=noise)
        is_held = is_held or bench.is_rounding(first.outputs[name], second.outputs[name], found[name])
        evidence.figures["candidate"] = max(moved, evidence.figures.get("candidate", 0.0))
        if not is_held:
            broken.append(f"'{name}' moves by {moved:.1e}, in the original by {moved_before:.1e}")
    if broken:
        evidence.status, evidence.reason = "broken", listed(broken, "; ")


def _part_of_noise(trial: Trial, name: str, moved_by_noise: Callable[[], Outputs]) -> np.ndarray | None:
    moved = moved_by_noise()
    return trial.part_of_first(name, moved[name]) if name in moved else None


def _parts(trial: Trial, first: Outputs, second: Outputs) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name in first:
        if name not in second:
            continue
        if trial.needs_change and first[name].shape == second[name].shape and _is_equal(first[name], second[name]):
            continue
        wanted, got = trial.part_of_first(name, first[name]), trial.part_of_second(name, second[name])
        if wanted is not None and got is not None and wanted.shape == got.shape and wanted.size:
            yield name, wanted, got


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first few; a model with a cache has an output for every layer."""
    more = f"{separator}and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return separator.join(items[:_LISTED]) + more


def _is_equal(first: np.ndarray, second: np.ndarray) -> bool:
    if is_floating(first.dtype):
        return bool(np.array_equal(first.astype(np.float64), second.astype(np.float64), equal_nan=True))
    return bool(np.array_equal(first, second))


def token_inputs(roles: Sequence[InputRole], arrays: Feed) -> list[InputRole]:
    """Inputs that hold one token, or one vector, for each position: (batch, length) ids, (batch, length, features) numbers."""
    return [
        role
        for role in roles
        if (role.kind == "index" and arrays[role.name].ndim == 2) or (role.kind == "float" and arrays[role.name].ndim == 3)
    ]


def changed(role: InputRole, array: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Other legal values where `where`, a boolean array over the leading axes, is true."""
    copy = array.copy()
    if role.kind == "index":
        count = max((2 if role.bound is None else role.bound) - role.low, 1)
        copy[where] = role.low + (copy[where] - role.low + 1 + count // 3) % count
    else:
        widened = copy[where].astype(np.float64)
        copy[where] = (1.0 + np.abs(widened).max(initial=0.0) - widened).astype(copy.dtype)
    return copy


def first_suiting(sets: Sequence[InputSet], suits: Callable[[InputSet], bool]) -> InputSet | None:
    """The first of the input sets that suits a probe."""
    return next((input_set for input_set in sets if suits(input_set)), None)
