"""The original in a comparison: what it computes on each input set, and how far that can be relied on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewright.model.carrier import Model
from rewright.verify.comparison import compare
from rewright.verify.expectations import ExpectationEvidence, judge_expectations
from rewright.verify.inputs import InputSet
from rewright.verify.process import Optimization, SessionCrash, SessionError, SessionRun, SessionWorker, SetResult, first_line
from rewright.verify.seeds import draws, pin_seeds, random_values, run_pinned
from rewright.verify.tolerance import EXACT, tolerance_for

Outputs = Mapping[str, np.ndarray]


@dataclass
class Reference:
    """What the original computes: outputs by input set, and which of them cannot be relied on.

    Attributes:
        sets, outputs: the input sets that it runs on, and its outputs on each.
        dropped: the sets that it does not run on, with the reason.
        nondeterministic: outputs that two runs compute differently.
        jittering: outputs that two runs compute alike up to rounding.
        drawn: outputs that depend on the seeds of its random values.
        random_values: these values.
        expected: whether it reproduces the outputs that came with the sets.
        failure: why there is nothing to compare with; else empty.
    """

    sets: list[InputSet] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    nondeterministic: set[str] = field(default_factory=set)
    jittering: set[str] = field(default_factory=set)
    drawn: set[str] = field(default_factory=set)
    random_values: frozenset[tuple[str, str]] = frozenset()
    expected: list[ExpectationEvidence] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True)
class Runner:
    """Runs models alike: with the ops replaced that have no kernel here, and with pinned seeds."""

    worker: SessionWorker
    lower: Callable[[Model], Model] | None

    def lowered(self, model: Model) -> Model:
        """The model as it is run."""
        return self.lower(model) if self.lower is not None else model

    def run(self, model: Model, sets: Sequence[InputSet], optimization: Optimization = "ORT_DISABLE_ALL") -> SessionRun:
        """Run a model on every set.

        Raises:
            SessionError: see `SessionWorker.run`.
        """
        return run_pinned(self.worker, self.lowered(model), [input_set.arrays for input_set in sets], optimization)

    def draws_otherwise(self, model: Model, reference: Reference) -> bool:
        """Whether the model has random values that the original has not, or not under that name."""
        return draws(model) and not random_values(pin_seeds(self.lowered(model))) <= reference.random_values


def measure(original: Model, wanted: Sequence[InputSet], fallbacks: Iterable[InputSet], runner: Runner) -> Reference:
    """Run the original: on every wanted set, on fallbacks for those that fail, and on the first one twice."""
    found = Reference()
    try:
        results = _run_original(original, runner, [*wanted, *wanted[:1]])
        _take(found, wanted, results[: len(wanted)])
        for fallback in fallbacks:
            missing = _missing_flags(wanted, found.sets)
            if len(found.sets) >= len(wanted) and not missing:
                break
            if len(found.sets) < len(wanted) or _has_one(fallback, missing):
                _take(found, [fallback], _run_original(original, runner, [fallback]))
        for name, value in _missing_flags(wanted, found.sets) if found.sets else ():
            found.dropped.append(f"every set with {name} = {str(value).lower()}, so that what it switches on is not compared")
        if found.sets:
            repeated = results[-1]
            if found.sets[0] is not wanted[0] or repeated.error:
                (repeated,) = _run_original(original, runner, found.sets[:1])
            _expose_nondeterminism(found, repeated.outputs)
            _expose_draws(found, original, runner)
            found.expected = judge_expectations(found.sets, found.outputs)
    except SessionError as error:
        found.failure = f"the original cannot be run: {first_line(error.message)}"
        return found
    if not found.sets:
        reason = found.dropped[0] if found.dropped else "there are no input sets"
        found.failure = f"the original cannot be run on any input set; {reason}"
    elif not found.outputs[0]:
        found.failure = "the original has no tensor outputs"
    return found


def _missing_flags(wanted: Sequence[InputSet], found: Sequence[InputSet]) -> set[tuple[str, bool]]:
    """The values of flags that are in wanted sets, and in none of those that were found to run."""
    return _flags(wanted) - _flags(found)


def _flags(sets: Sequence[InputSet]) -> set[tuple[str, bool]]:
    switches = ((name, array) for each in sets for name, array in each.arrays.items() if array.dtype == np.bool_)
    return {(name, bool(array.reshape(-1)[0])) for name, array in switches if array.size == 1}


def _has_one(input_set: InputSet, missing: set[tuple[str, bool]]) -> bool:
    return bool(_flags([input_set]) & missing)


def _run_original(original: Model, runner: Runner, sets: Sequence[InputSet]) -> Sequence[SetResult]:
    """Run the original; if that ends the process, which may be one set's doing or nobody's, each set by itself."""
    try:
        return runner.run(original, sets).results
    except SessionCrash as error:
        if error.is_timeout:
            raise
        if len(sets) == 1:
            return [SetResult({}, error.message)]
    results: list[SetResult] = []
    for one in sets:
        try:
            results.extend(runner.run(original, [one]).results)
        except SessionCrash as error:
            results.append(SetResult({}, error.message))
    return results


def _take(found: Reference, sets: Sequence[InputSet], results: Sequence[SetResult]) -> None:
    for input_set, result in zip(sets, results, strict=True):
        if result.error:
            found.dropped.append(f"{input_set.name} ({input_set.description}): {first_line(result.error)}")
        else:
            found.sets.append(input_set)
            found.outputs.append(result.outputs)


def _expose_nondeterminism(found: Reference, second: Outputs) -> None:
    """Note the outputs that a second run on the first set computes differently.

    Those that differ by rounding only (a reduction over threads) are compared as if their pass reassociated; the others
    cannot be compared at all.
    """
    for name, array in found.outputs[0].items():
        if name not in second:  # a sequence of another length
            found.nondeterministic.add(name)
        elif not compare(name, array, second[name], tolerance_for(array.dtype, "exact")).equal:
            is_noise = compare(name, array, second[name], tolerance_for(array.dtype, "reassociating")).equal
            (found.jittering if is_noise else found.nondeterministic).add(name)


def _expose_draws(found: Reference, original: Model, runner: Runner) -> None:
    """Note the random values, and the outputs that other seeds change."""
    lowered = runner.lowered(original)
    found.random_values = random_values(pin_seeds(lowered))
    if found.random_values:
        (other,) = run_pinned(runner.worker, lowered, [found.sets[0].arrays], salt="another").results
        names = found.outputs[0].keys() | other.outputs.keys()
        found.drawn = {name for name in names if not _is_same(found.outputs[0].get(name), other.outputs.get(name))}


def _is_same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return first is not None and second is not None and compare("", first, second, EXACT).equal
