"""The parity gate: a candidate's outputs against the original model's, on the same inputs, in the same runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model
from rewright.passes.contract import Exactness
from rewright.verify.adapting import typed_like
from rewright.verify.budget import QuantizationBudget
from rewright.verify.coarseness import coarsest_types
from rewright.verify.comparison import Noise, OutputEvidence, compare, merge
from rewright.verify.expectations import ExpectationEvidence
from rewright.verify.inputs import DEFAULT_COUNT, InputSet, Origin, make_fallback_sets, make_input_sets
from rewright.verify.noise import NoiseFloor
from rewright.verify.original import Outputs, Reference, Runner, measure
from rewright.verify.padding import without_padding
from rewright.verify.process import Optimization, SessionError, SessionWorker, first_line
from rewright.verify.tolerance import ORDER, Tolerance, is_floating, least_exact, tolerance_for

NONDETERMINISTIC: Final = "not comparable: two runs of the original differ"
OTHER_DRAWS: Final = "not comparable: it depends on random values that have other names in the candidate"

_ROUNDING: Final = ("reassociating", "approximate")
"""Promises that allow a candidate to round otherwise than the original."""


class ParityEvidence(BaseModel):
    """What the parity gate measured.

    `status` is `passed` only if every output agreed on every input set and at least one of them could have disagreed;
    otherwise `vacuous`. It is `not-run` when the original itself cannot be run. `inputs` says who the input sets are from.
    `outputs` has each output once, its worst set merged in; `dropped` names the input sets that the original could not run on,
    with ONNX Runtime's reason. `expected` says whether the original reproduces the outputs that came with the input sets.
    """

    model_config = ConfigDict(extra="forbid")

    gate: Literal["parity"] = "parity"
    status: Literal["passed", "failed", "vacuous", "not-run"]
    exactness: Exactness
    inputs: Origin = "made"
    input_sets: list[str] = Field(default_factory=list)
    outputs: list[OutputEvidence] = Field(default_factory=list)
    reason: str = ""
    worst_input_set: str = ""
    dropped: list[str] = Field(default_factory=list)
    expected: list[ExpectationEvidence] = Field(default_factory=list)
    seconds: float = 0.0


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
        tolerance: takes the place of the table of tolerances, for floating-point outputs.

    Attributes:
        takes_other_types: whether inputs and outputs of a candidate may be of other floating-point types than the original's,
            because a pass was asked for that; they are cast for the comparison.
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
        tolerance: Tolerance | None = None,
    ) -> None:
        self.reference = reference
        self.worker = worker
        self.lower = lower
        self.budget = budget or QuantizationBudget()
        self.candidate_optimization = candidate_optimization
        self.tolerance = tolerance
        self.kept: list[Exactness] = []
        if input_sets is None:
            self._wanted = make_input_sets(reference, seed, count)
            self._fallbacks: Iterable[InputSet] = make_fallback_sets(reference, seed)
        else:
            self._wanted, self._fallbacks = list(input_sets), ()
        self.takes_other_types = False
        self._runner = Runner(worker, self.runnable)
        self._noise: dict[np.dtype | None, NoiseFloor] = {}
        self._last: tuple[Model, list[Outputs]] | None = None
        self._checked: list[Outputs] = []
        self._baseline: list[Outputs] = []

    def runnable(self, model: Model) -> Model:
        """The model as it is run: without ops that have no kernel here, and with the original's interface."""
        lowered = self.lower(model) if self.lower is not None else model
        return typed_like(lowered, self.reference) if self.takes_other_types else lowered

    @property
    def input_sets(self) -> list[InputSet]:
        """The input sets that the original runs on; runs it if that has not happened yet."""
        return self._original.sets

    @property
    def original_outputs(self) -> list[Outputs]:
        """What the original computes on each of the `input_sets`."""
        return self._original.outputs

    def outputs_of(self, candidate: Model) -> list[Outputs]:
        """What the candidate that was checked last, trials aside, computes on the `input_sets`; nothing for another one."""
        is_known = self._last is not None and self._last[0] is candidate and self.candidate_optimization == "ORT_DISABLE_ALL"
        return self._last[1] if self._last is not None and is_known else []

    def check(self, candidate: Model, exactness: Exactness, *, is_trial: bool = False) -> ParityEvidence:
        """Run the candidate on every input set and compare all outputs.

        A candidate that does not load, does not run, or crashes the worker has failed. Nothing is raised for it.
        `keep` refers to the last candidate that was not a trial.
        """
        started = time.perf_counter()
        evidence = ParityEvidence(status="not-run", exactness=least_exact([*self.kept, exactness]))
        original = self._original
        evidence.dropped = original.dropped
        evidence.expected = original.expected
        evidence.inputs = self._wanted[0].origin if self._wanted else "given"
        evidence.input_sets = [input_set.name for input_set in original.sets]
        if original.failure:
            evidence.reason = original.failure
        else:
            outputs = self._judge(evidence, candidate, exactness, original)
            if not is_trial:
                self._checked = outputs
                self._last = candidate, outputs
        evidence.seconds = time.perf_counter() - started
        return evidence

    def keep(self, exactness: Exactness) -> None:
        """Take the candidate that was checked last as the model so far, together with the promise of its pass."""
        self.kept.append(exactness)
        self._baseline = self._checked

    def _judge(self, evidence: ParityEvidence, candidate: Model, exactness: Exactness, original: Reference) -> list[Outputs]:
        """Fill in the evidence; returns the candidate's outputs, none when it could not be run."""
        try:
            run = self._runner.run(candidate, original.sets, self.candidate_optimization)
        except SessionError as error:
            evidence.status, evidence.reason = "failed", first_line(error.message)
            return []
        for input_set, result in zip(original.sets, run.results, strict=True):
            if result.error:
                evidence.status = "failed"
                evidence.reason = f"input set '{input_set.name}': {first_line(result.error)}"
                evidence.worst_input_set = input_set.name
                return []
        outputs: list[Outputs] = [result.outputs for result in run.results]
        incomparable = dict.fromkeys(original.drawn, OTHER_DRAWS) if self._runner.draws_otherwise(candidate, original) else {}
        incomparable.update(dict.fromkeys(original.nondeterministic, NONDETERMINISTIC))
        self._compare(evidence, original.outputs, outputs, evidence.exactness, incomparable)
        if evidence.status != "failed" and self._baseline and ORDER.index(exactness) < ORDER.index(evidence.exactness):
            step = ParityEvidence(status="not-run", exactness=exactness)
            if self.tolerance is None:  # an earlier pass may have made float16 of what was float32
                self._coarse = coarsest_types(self.reference) | coarsest_types(candidate)
            self._compare(step, self._baseline, outputs, exactness, incomparable)
            if step.status == "failed":
                evidence.status, evidence.outputs = "failed", step.outputs
                evidence.exactness, evidence.worst_input_set = exactness, step.worst_input_set
                evidence.reason = f"against the model before this pass: {step.reason}"
        return outputs

    def _compare(
        self,
        evidence: ParityEvidence,
        wanted: Sequence[Outputs],
        got: Sequence[Outputs],
        exactness: Exactness,
        incomparable: Mapping[str, str],
    ) -> None:
        """Fill in outputs, status and reason; `incomparable` are outputs that prove nothing, with the reason why."""
        original = self._original
        # A sequence may have more elements on one set than on another, hence the names of all of them.
        for name in dict.fromkeys(name for outputs in (*wanted, *got) for name in outputs):
            judged = [
                self._compare_one(name, input_set, reference, candidate, exactness)
                for input_set, reference, candidate in zip(original.sets, wanted, got, strict=True)
                if name in reference or name in candidate
            ]
            merged = merge(judged)
            if not merged.vacuous and _is_one_value(name, wanted):
                merged.vacuous = "constant over all input sets"
            if name in incomparable and all(name in outputs for outputs in got):
                merged.vacuous, merged.equal, merged.message = incomparable[name], True, ""
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
        if name not in wanted or name not in got:
            return _unmatched(name, input_set, wanted.get(name, got.get(name)), name in wanted)
        reference = wanted[name]
        noise = self._noise_of(name, input_set) if exactness in _ROUNDING and self.tolerance is None else None
        if name in self._original.jittering:
            exactness = least_exact([exactness, "reassociating"])
        tolerance = tolerance_for(reference.dtype, exactness)
        if self.tolerance is not None and is_floating(reference.dtype):
            tolerance = self.tolerance
        budget = self.budget if exactness == "quantizing" else None
        judged = compare(name, reference, got[name], tolerance, budget, noise)
        coarse = self._coarse.get(name)
        if (
            not judged.equal
            and coarse is not None
            and exactness != "quantizing"
            and (exactness != "exact" or coarse.itemsize == 2)
        ):
            rounding = tolerance_for(coarse, least_exact([exactness, "reassociating"]))
            loose = compare(name, reference, got[name], rounding, noise=self._noise_of(name, input_set, coarse))
            if loose.equal:
                judged, loose.message = loose, f"differs by rounding to {coarse.name}: {judged.message}"
        if not judged.equal and exactness != "exact" and reference.shape == got[name].shape:
            excused = without_padding(self.reference.proto.graph, input_set, name, reference.shape)
            if excused is not None:
                selected = noise and _selected(noise, excused.select)
                valid = compare(name, excused.select(reference), excused.select(got[name]), tolerance, budget, selected)
                if valid.equal:
                    valid.shape, valid.message = judged.shape, f"{excused.note}: {valid.message or judged.message}"
                    judged = valid
        judged.input_set = input_set.name
        return judged

    @cached_property
    def _original(self) -> Reference:
        return measure(self.reference, self._wanted, self._fallbacks, self._runner)

    @cached_property
    def _coarse(self) -> dict[str, np.dtype]:
        return coarsest_types(self.reference) if self.tolerance is None else {}

    def _noise_of(self, name: str, input_set: InputSet, coarse: np.dtype | None = None) -> Noise:
        original = self._original
        outputs = original.outputs[next(place for place, known in enumerate(original.sets) if known is input_set)]
        return lambda: self._floor(coarse).of(input_set.arrays, outputs).get(name)

    def _floor(self, coarse: np.dtype | None) -> NoiseFloor:
        """The noise of the original: in its own types, or in one that a pass has brought in."""
        if coarse not in self._noise:
            self._noise[coarse] = NoiseFloor(
                self.reference, lambda model, feeds: self.worker.run(self._runner.lowered(model), feeds), coarse
            )
        return self._noise[coarse]


def _selected(noise: Noise, select: Callable[[np.ndarray], np.ndarray]) -> Noise:
    def selected() -> np.ndarray | None:
        moved = noise()
        return None if moved is None else select(moved)

    return selected


def _is_one_value(name: str, wanted: Sequence[Outputs]) -> bool:
    """Whether an output of a single element has had the same value on each of several sets."""
    values = [outputs[name] for outputs in wanted if name in outputs]
    if len(values) < 2 or any(value.size != 1 for value in values):
        return False
    return len({str(value.reshape(-1)[0]) for value in values}) == 1


def _unmatched(name: str, input_set: InputSet, array: np.ndarray | None, is_missing: bool) -> OutputEvidence:
    """The evidence of an output that only one of the two models has."""
    return OutputEvidence(
        name=name,
        dtype=array.dtype.name if array is not None else "",
        shape=list(array.shape) if array is not None else [],
        rtol=0.0,
        atol=0.0,
        equal=False,
        message="the candidate has no such output" if is_missing else "the original has no such output",
        input_set=input_set.name,
    )


def _margin(output: OutputEvidence) -> tuple[float, float]:
    return output.needed_rtol or 0.0, output.max_abs or 0.0
