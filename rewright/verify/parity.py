"""The parity gate: a candidate's outputs against the original model's, on the same inputs, in the same runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model
from rewright.passes.contract import Exactness
from rewright.verify.comparison import OutputEvidence, QuantizationBudget, compare, merge
from rewright.verify.inputs import DEFAULT_COUNT, InputSet, make_fallback_sets, make_input_sets
from rewright.verify.padding import without_padding
from rewright.verify.process import Optimization, SessionError, SessionRun, SessionWorker, first_line
from rewright.verify.tolerance import ORDER, least_exact, tolerance_for

Outputs = Mapping[str, np.ndarray]

NONDETERMINISTIC: Final = "not comparable: two runs of the original differ"


class ParityEvidence(BaseModel):
    """What the parity gate measured.

    `status` is `passed` only if every output agreed on every input set and at least one of them could have disagreed;
    otherwise `vacuous`. It is `not-run` when the original itself cannot be run. `outputs` has each output once, its worst
    set merged in; `dropped` names the input sets that the original could not run on, with ONNX Runtime's reason.
    """

    model_config = ConfigDict(extra="forbid")

    gate: Literal["parity"] = "parity"
    status: Literal["passed", "failed", "vacuous", "not-run"]
    exactness: Exactness
    input_sets: list[str] = Field(default_factory=list)
    outputs: list[OutputEvidence] = Field(default_factory=list)
    reason: str = ""
    worst_input_set: str = ""
    dropped: list[str] = Field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Reference:
    """What the original computes: outputs by input set, and which of them cannot be relied on."""

    sets: list[InputSet] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    nondeterministic: set[str] = field(default_factory=set)
    jittering: set[str] = field(default_factory=set)
    failure: str = ""


class ParityGate:
    """Compares candidates with one original, whose outputs are computed once, when the first candidate comes.

    A candidate is compared with the original at the tolerance of the least exact pass that was kept so far, and, where
    its own pass promises more than that, also with the last candidate that was kept, at its own tolerance: an `exact`
    pass after a quantizing one still has to be exact.

    Args:
        reference: the original model.
        input_sets: what to run; None makes them from the model, with further sizes where it cannot run on the first.
        worker: the process that holds the sessions, for the original and the candidates alike.
        seed: of the made input sets.
        count: how many input sets are made.
        lower: replaces ops that this machine has no kernel for by their meaning in standard ops, before a model is run.
        budget: what quantizing passes may lose.
        candidate_optimization: onnxruntime's own optimizations on the candidate; they are off for the original.
    """

    def __init__(
        self,
        reference: Model,
        input_sets: Sequence[InputSet] | None,
        worker: SessionWorker,
        *,
        seed: int = 0,
        count: int = DEFAULT_COUNT,
        lower: Callable[[Model], Model] | None = None,
        budget: QuantizationBudget | None = None,
        candidate_optimization: Optimization = "ORT_DISABLE_ALL",
    ) -> None:
        self.reference = reference
        self.worker = worker
        self.lower = lower
        self.budget = budget or QuantizationBudget()
        self.candidate_optimization = candidate_optimization
        self.kept: list[Exactness] = []
        if input_sets is None:
            self._wanted = make_input_sets(reference, seed, count)
            self._fallbacks: Iterable[InputSet] = make_fallback_sets(reference, seed)
        else:
            self._wanted, self._fallbacks = list(input_sets), ()
        self._original: _Reference | None = None
        self._checked: list[Outputs] = []
        self._baseline: list[Outputs] = []

    @property
    def input_sets(self) -> list[InputSet]:
        """The input sets that the original runs on; runs it if that has not happened yet."""
        return self._measured().sets

    def check(self, candidate: Model, exactness: Exactness) -> ParityEvidence:
        """Run the candidate on every input set and compare all outputs.

        A candidate that does not load, does not run, or crashes the worker has failed. Nothing is raised for it.
        """
        started = time.perf_counter()
        overall = least_exact([*self.kept, exactness])
        evidence = ParityEvidence(status="not-run", exactness=overall)
        self._checked = []
        original = self._measured()
        evidence.dropped = original.dropped
        evidence.input_sets = [input_set.name for input_set in original.sets]
        if original.failure:
            evidence.reason = original.failure
        else:
            self._judge(evidence, candidate, exactness, original)
        evidence.seconds = time.perf_counter() - started
        return evidence

    def keep(self, exactness: Exactness) -> None:
        """Take the candidate that was checked last as the model so far, together with the promise of its pass."""
        self.kept.append(exactness)
        if self._checked:
            self._baseline = self._checked

    def _judge(self, evidence: ParityEvidence, candidate: Model, exactness: Exactness, original: _Reference) -> None:
        try:
            run = self._run(candidate, original.sets, self.candidate_optimization)
        except SessionError as error:
            evidence.status, evidence.reason = "failed", first_line(error.message)
            return
        for input_set, result in zip(original.sets, run.results, strict=True):
            if result.error:
                evidence.status = "failed"
                evidence.reason = f"input set '{input_set.name}': {first_line(result.error)}"
                evidence.worst_input_set = input_set.name
                return
        outputs = [result.outputs for result in run.results]
        self._compare(evidence, original.outputs, outputs, evidence.exactness)
        if evidence.status != "failed" and self._baseline and ORDER.index(exactness) < ORDER.index(evidence.exactness):
            step = ParityEvidence(status="not-run", exactness=exactness)
            self._compare(step, self._baseline, outputs, exactness)
            if step.status == "failed":
                evidence.status, evidence.outputs = "failed", step.outputs
                evidence.exactness, evidence.worst_input_set = exactness, step.worst_input_set
                evidence.reason = f"against the model before this pass: {step.reason}"
        self._checked = list(outputs)

    def _compare(self, evidence: ParityEvidence, wanted: Sequence[Outputs], got: Sequence[Outputs], exactness: Exactness) -> None:
        """Fill in outputs, status and reason."""
        for name in wanted[0]:
            judged = [
                self._compare_one(name, input_set, reference, candidate, exactness)
                for input_set, reference, candidate in zip(self._measured().sets, wanted, got, strict=True)
            ]
            merged = merge(judged)
            if not merged.vacuous and _is_one_value(name, wanted):
                merged.vacuous = "constant over all input sets"
            if name in self._measured().nondeterministic:
                merged.vacuous, merged.equal, merged.message = NONDETERMINISTIC, True, ""
            evidence.outputs.append(merged)
        failures = [output for output in evidence.outputs if not output.equal]
        if failures:
            worst = max(failures, key=lambda output: output.max_abs if output.max_abs is not None else float("inf"))
            evidence.status, evidence.worst_input_set = "failed", worst.input_set
            evidence.reason = f"output '{worst.name}' on input set '{worst.input_set}': {worst.message}"
        elif all(output.vacuous for output in evidence.outputs):
            evidence.status = "vacuous"
            evidence.reason = "; ".join(f"output '{output.name}' is {output.vacuous}" for output in evidence.outputs)
        else:
            evidence.status = "passed"
            telling = [output for output in evidence.outputs if not output.vacuous]
            evidence.worst_input_set = max(telling, key=_margin).input_set

    def _compare_one(self, name: str, input_set: InputSet, wanted: Outputs, got: Outputs, exactness: Exactness) -> OutputEvidence:
        reference = wanted[name]
        if name in self._measured().jittering:
            exactness = least_exact([exactness, "reassociating"])
        tolerance = tolerance_for(reference.dtype, exactness)
        budget = self.budget if exactness == "quantizing" else None
        if name not in got:
            missing = compare(name, reference, reference, tolerance, budget)
            missing.equal, missing.message, missing.input_set = False, "the candidate has no such output", input_set.name
            return missing
        judged = compare(name, reference, got[name], tolerance, budget)
        if not judged.equal and exactness != "exact" and reference.shape == got[name].shape:
            excused = without_padding(self.reference.proto.graph, input_set, name, reference, got[name])
            if excused is not None:
                valid = compare(name, excused.reference, excused.candidate, tolerance, budget)
                if valid.equal:
                    valid.shape, valid.message = judged.shape, f"{excused.note}: {judged.message}"
                    judged = valid
        judged.input_set = input_set.name
        return judged

    def _measured(self) -> _Reference:
        if self._original is None:
            self._original = self._measure()
        return self._original

    def _measure(self) -> _Reference:
        """Run the original: on every wanted set, on fallbacks for those that fail, and on the first one twice."""
        found = _Reference()
        try:
            self._measure_wanted(found)
            fallbacks = iter(self._fallbacks)
            while len(found.sets) < len(self._wanted):
                batch = list(islice(fallbacks, 1))
                if not batch:
                    break
                self._take(found, batch, self._run(self.reference, batch))
            if found.sets:
                repeated = self._run(self.reference, [found.sets[0], found.sets[0]]).results
                _expose_nondeterminism(found, repeated[0].outputs, repeated[1].outputs)
        except SessionError as error:
            found.failure = f"the original cannot be run: {first_line(error.message)}"
            return found
        if not found.sets:
            reason = found.dropped[0] if found.dropped else "there are no input sets"
            found.failure = f"the original cannot be run on any input set; {reason}"
        elif not found.outputs[0]:
            found.failure = "the original has no tensor outputs"
        return found

    def _measure_wanted(self, found: _Reference) -> None:
        self._take(found, self._wanted, self._run(self.reference, self._wanted))

    def _take(self, found: _Reference, sets: Sequence[InputSet], run: SessionRun) -> None:
        for input_set, result in zip(sets, run.results, strict=True):
            if result.error:
                found.dropped.append(f"{input_set.name} ({input_set.description}): {first_line(result.error)}")
            else:
                found.sets.append(input_set)
                found.outputs.append(result.outputs)

    def _run(self, model: Model, sets: Sequence[InputSet], optimization: Optimization = "ORT_DISABLE_ALL") -> SessionRun:
        lowered = self.lower(model) if self.lower is not None else model
        return self.worker.run(lowered, [input_set.arrays for input_set in sets], optimization=optimization)


def _expose_nondeterminism(found: _Reference, first: Outputs, second: Outputs) -> None:
    """Outputs that two runs of one session compute differently.

    Those that differ by rounding only (a reduction over threads) are compared as if their pass reassociated; the others
    cannot be compared at all.
    """
    for name, array in first.items():
        if name not in second:  # a sequence of another length
            found.nondeterministic.add(name)
        elif not compare(name, array, second[name], tolerance_for(array.dtype, "exact")).equal:
            is_noise = compare(name, array, second[name], tolerance_for(array.dtype, "reassociating")).equal
            (found.jittering if is_noise else found.nondeterministic).add(name)


def _is_one_value(name: str, wanted: Sequence[Outputs]) -> bool:
    """Whether an output of a single element has had the same value on each of several sets."""
    values = [outputs[name] for outputs in wanted if name in outputs]
    if len(values) < 2 or any(value.size != 1 for value in values):
        return False
    return len({str(value.reshape(-1)[0]) for value in values}) == 1


def _margin(output: OutputEvidence) -> tuple[float, float]:
    return output.needed_rtol or 0.0, output.max_abs or 0.0
