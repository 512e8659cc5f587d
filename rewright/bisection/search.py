"""The search over the passes of a chain."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from onnx import ModelProto

from rewright.bisection.examination import Examination, fill_in, site_culprit
from rewright.bisection.folder import check_folder, write_culprit
from rewright.bisection.record import Application, Bisection, Culprit, Trial
from rewright.bisection.steps import Applied, Walk, promised
from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.model.view import collector_paused
from rewright.ops.lowering import lower
from rewright.passes.bounds import ModelBounds
from rewright.passes.contract import Exactness, Target
from rewright.registry.chain import Chain
from rewright.report.environment import environment
from rewright.run.gates import claimed
from rewright.run.input_choice import choose_input_sets
from rewright.run.options import Progress
from rewright.run.usual_budget import usual_budget
from rewright.verify.budget import QuantizationBudget
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.process import SessionWorker
from rewright.verify.search import first_failing_prefix
from rewright.verify.sites.gate import SiteGate
from rewright.verify.static.value_bounds import value_bounds

Inputs = str | PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]]


def bisect(
    model: str | PathLike[str] | ModelProto | Model,
    *,
    chain: str | Chain = "O2",
    target: Target = "cpu",
    verify: Literal["model", "sites"] = "model",
    inputs: Inputs | None = None,
    seed: int = 0,
    budget: str | QuantizationBudget | None = None,
    every: bool = False,
    output: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Bisection:
    """Finds the first pass of a chain after which a model differs from what it was, and what of the pass is wrong.

    A pass that crashes, that leaves no valid model, or whose result ONNX Runtime does not load is found as well.

    Args:
        model: a path, a ModelProto or a Model; never modified.
        chain: chain text or a Chain.
        target: where the result will run.
        verify: "model" compares outputs; "sites" also runs every change of the passes alone, on hard values, which finds what
            the outputs hide.
        inputs: what the models are compared on; see ``rewright.optimize``.
        seed: of the inputs that are made where none are given.
        budget: what quantizing passes may lose; see ``rewright.optimize``.
        every: look at every pass, and go on without those that are wrong; takes one comparison for each pass. Otherwise the
            passes after the first wrong one are not looked at.
        output: a folder for the models before and after each culprit, and for the record; nothing is written where none is found.
        progress: called with (what, done, total).

    Raises:
        ModelError: the model cannot be read, or the folder cannot be written.
        UsageError: the chain, an option or an input is wrong, or the model cannot be compared with itself.
    """
    started = time.perf_counter()
    if target not in get_args(Target):
        raise UsageError(f"target is '{target}'.", f"It is one of {', '.join(get_args(Target))}.")
    if verify not in ("model", "sites"):
        raise UsageError(f"verify is '{verify}'.", "A bisection takes model or sites.")
    made = (chain if isinstance(chain, Chain) else Chain(chain)).expanded()
    allowed = QuantizationBudget.of(budget) or usual_budget(made.passes)
    original = load(model)
    folder = None if output is None else Path(output)
    if folder is not None:
        check_folder(folder)
    with collector_paused(), SessionWorker() as worker:
        sets = choose_input_sets(made.catalog, original, inputs)
        lowering = None if target == "cpu" else lower
        gate = ParityGate(original, sets, worker, seed=seed, lower=lowering, budget=allowed)
        search = _Search(original, made, target, gate, every, progress)
        search.compare_original()
        if verify == "sites":
            search.sites = SiteGate(original, gate.input_sets, worker, lower=lowering, seed=seed, budget=allowed)
        if every:
            search.look_at_every_pass()
        else:
            search.look_for_the_first()
        record = Bisection(
            verdict="found" if search.culprits else "clean",
            model=str(original.path) if original.path is not None else None,
            chain=made.text,
            target=target,
            applications=search.applications(),
            trials=search.trials,
            culprits=[culprit for culprit, _ in search.culprits],
            unexamined=search.unexamined(),
            inputs=[input_set.name for input_set in gate.input_sets],
            environment=environment(made.catalog.plugins),
            seconds=time.perf_counter() - started,
        )
        if folder is not None and search.culprits:
            write_culprit(folder, record, search.culprits, gate.input_sets)
    return record


@dataclass
class _Search:
    """The search on one model.

    Attributes:
        applied: the passes, in order, as far as they were applied.
        trials: the models that were compared.
        culprits: what was found, and the models around it.
        sites: runs changes alone; None where that was not asked for.
    """

    original: Model
    chain: Chain
    target: Target
    gate: ParityGate
    every: bool
    progress: Progress | None
    sites: SiteGate | None = None
    applied: list[Applied] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    culprits: list[tuple[Culprit, Applied]] = field(default_factory=list)

    def compare_original(self) -> None:
        """Makes sure that a comparison can tell anything."""
        evidence = self._compare(0, self.original, "exact", "the original")
        if evidence.status in ("not-run", "vacuous"):
            what = "cannot be made" if evidence.status == "not-run" else "proves nothing"
            raise UsageError(f"the comparison {what}: {evidence.reason}.", "Give inputs that the model runs on by --inputs.")
        if evidence.status == "failed":
            raise UsageError(f"the model differs from itself: {evidence.reason}.", "Give inputs on which two runs agree.")

    def _walk(self) -> Walk:
        gate = self.gate
        gate.takes_other_types = any(step.alters_interface for step in self.chain.passes)

        def bounds(model: Model) -> ModelBounds:
            return value_bounds(model, gate.input_sets, gate.worker)

        return Walk(self.original, self.target, gate.worker, bounds=bounds)

    def look_for_the_first(self) -> None:
        """Applies passes as long as that gives models that can be used, and finds the first that is wrong by halving."""
        walk = self._walk()
        for index, step in enumerate(self.chain.passes):
            self._tell(f"applying {step.name}", index)
            self.applied.append(walk.apply(index, step))
            if self.applied[-1].kind is not None:
                break
        changed = [applied for applied in self.applied if applied.is_change and applied.kind is None]
        known: dict[int, ParityEvidence] = {}
        first = self._first_failing(changed, known)
        if any(self._has_wrong_sites(applied) for applied in (changed[: first - 1] if first else changed)):
            return
        if first:
            self._examine(changed[first - 1], promised(changed[:first]), known.get(first - 1), known[first])
        elif self.applied and self.applied[-1].kind is not None:
            self._examine(self.applied[-1], promised(self.applied), known.get(len(changed)), None)

    def _first_failing(self, changed: Sequence[Applied], known: dict[int, ParityEvidence]) -> int:
        """How many of the passes that changed something it takes to fail, 0 if they do not; ``known`` gets the evidence."""

        def fails(length: int) -> bool:
            applied = changed[length - 1]
            exactness = promised(changed[:length])
            known[length] = self._compare(applied.index + 1, _after(applied), exactness, applied.step.name)
            return known[length].status == "failed"

        # A pass that promises less widens the tolerance for all after it, and may so cover what was wrong before it.
        ends = [end for end in range(1, len(changed)) if promised(changed[:end]) != promised(changed[: end + 1])]
        passing = failing = 0
        for end in [*ends, len(changed)] if changed else []:
            if fails(end):
                failing = end
                break
            passing = end
        return passing + first_failing_prefix(failing - passing, lambda length: fails(passing + length)) if failing else 0

    def look_at_every_pass(self) -> None:
        """Compares after every pass, and goes on without the ones that are wrong."""
        walk = self._walk()
        before: ParityEvidence | None = None
        for index, step in enumerate(self.chain.passes):
            self._tell(step.name, index)
            applied = walk.apply(index, step)
            self.applied.append(applied)
            if applied.kind is not None:
                self._examine(applied, step.exactness, before, None)
            elif applied.is_change:
                after = self._compare(index + 1, _after(applied), step.exactness, step.name, is_trial=False)
                if after.status == "failed":
                    self._examine(applied, step.exactness, before, after)
                    walk.take_back(applied)
                elif self._has_wrong_sites(applied):
                    walk.take_back(applied)
                else:
                    self.gate.keep(step.exactness)
                    before = after

    def applications(self) -> list[Application]:
        """Every pass of the chain, those that were not come to included."""
        records = [applied.record() for applied in self.applied]
        for index, step in enumerate(self.chain.passes[len(records) :], len(records)):
            backend, exactness = step.backend, step.exactness
            records.append(Application(index=index, name=step.name, backend=backend, exactness=exactness, status="not-run"))
        return records

    def unexamined(self) -> list[str]:
        """The passes after the culprit, where not all of them were looked at."""
        if self.every or not self.culprits:
            return []
        return [step.name for step in self.chain.passes[self.culprits[-1][0].index + 1 :]]

    def _compare(self, applied: int, model: Model, exactness: Exactness, what: str, *, is_trial: bool = True) -> ParityEvidence:
        total = len(self.chain.passes)
        self._tell(f"comparing after {what}" if applied else "comparing the original with itself", applied)
        evidence = self.gate.check(model, exactness, is_trial=is_trial)
        trial = Trial(step="pass", applied=applied, total=total, what=what, status=evidence.status)
        fill_in(trial, evidence)
        self.trials.append(trial)
        return evidence

    def _examine(self, applied: Applied, promise: Exactness, before: ParityEvidence | None, after: ParityEvidence | None) -> None:
        self._tell(f"looking into {applied.step.name}", applied.index)
        culprit = Examination(self.gate, applied, promise, self.trials, self.sites).culprit(before, after)
        self.culprits.append((culprit, applied))

    def _has_wrong_sites(self, applied: Applied) -> bool:
        """Runs the changes of a pass alone, if that was asked for; a pass that does not stand this becomes a culprit."""
        if self.sites is None or applied.step.retypes:
            return False
        self._tell(f"running the changes of {applied.step.name} alone", applied.index)
        check = self.sites.check(applied.before, _after(applied), claimed(applied.sites), applied.step.exactness)
        if check.evidence.status != "failed":
            return False
        self.culprits.append((site_culprit(applied, check), applied))
        return True

    def _tell(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(what, done, len(self.chain.passes))


def _after(applied: Applied) -> Model:
    return applied.after if applied.after is not None else applied.before
