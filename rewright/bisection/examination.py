"""What of a pass is wrong: which of its changes, and the first value that they make wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from rewright.bisection.record import Change, Culprit, Kind, Trial
from rewright.bisection.steps import Applied
from rewright.model.carrier import Model
from rewright.model.mixture import mixture
from rewright.model.regions import GraphIndex, Region, regions
from rewright.ops.lowering import lower
from rewright.passes.contract import Exactness
from rewright.registry.grammar import format_pass
from rewright.registry.options import chosen_options
from rewright.run.gates import claimed
from rewright.verify.divergence import Divergence
from rewright.verify.interface import check_interface
from rewright.verify.models import where_it_begins
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.search import minimal_failing_set
from rewright.verify.sites.evidence import RegionEvidence
from rewright.verify.sites.gate import SiteCheck, SiteGate
from rewright.verify.structure import check_structure

_MOST_TRIALS: Final = 96
"""Models that are compared at most to find the changes of one pass that are wrong."""

_NAMED: Final = 2


@dataclass
class Examination:
    """Looks into one pass after which the model is wrong.

    Attributes:
        gate: compares with the original model.
        applied: the pass, and the models before and after it.
        promise: the least exact promise that the model after it is held to.
        trials: gets each comparison.
        sites: runs changes alone, and so finds more that is wrong; None where that was not asked for.
    """

    gate: ParityGate
    applied: Applied
    promise: Exactness
    trials: list[Trial]
    sites: SiteGate | None = None

    def culprit(self, before: ParityEvidence | None, after: ParityEvidence | None) -> Culprit:
        """The record of the pass, whose models compared like this."""
        applied = self.applied
        found = _record(applied, applied.kind or "parity", applied.reason or (after.reason if after is not None else ""))
        found.before, found.after = before, after
        if applied.after is None or not applied.is_change or applied.kind == "contract":
            return found
        if applied.kind is None:
            found.alone = self._alone()
        smallest = self._narrow(found)
        if applied.kind is None:
            found.divergence = self._divergence(smallest)
        return found

    def _alone(self) -> ParityEvidence:
        """The model after the pass against the one before it."""
        gate = ParityGate(self.applied.before, self.gate.input_sets, self.gate.worker, lower=self.gate.lower)
        return gate.check(self._after(), self.applied.step.exactness)

    def _after(self) -> Model:
        return self.applied.after if self.applied.after is not None else self.applied.before

    def _narrow(self, found: Culprit) -> Model:
        """Finds the changes that are wrong; returns the model before the pass with these alone if that fails, or the whole."""
        before, after = GraphIndex(self.applied.before), GraphIndex(self._after())
        parts = regions(before, after, claimed(self.applied.sites))
        blamed: dict[int, RegionEvidence] = {}
        if self.sites is not None and self.applied.kind is None and not self.applied.step.retypes:
            check = self.sites.check(self.applied.before, self._after(), claimed(self.applied.sites), self.applied.step.exactness)
            before, after, parts = check.before, check.after, [checked.region for checked in check.regions]
            failed = (checked.evidence.status == "failed" for checked in check.regions)
            blamed = {number: check.regions[number].evidence for number, is_wrong in enumerate(failed) if is_wrong}
        trials = _Trials(self, before, after, parts)
        undone = trials.search(frozenset(blamed))
        found.changes = len(parts)
        found.undo = [_change(parts[number], blamed.get(number)) for number in sorted(undone)]
        rest = [part for number, part in enumerate(parts) if number not in undone]
        if not rest:
            return self._after()
        found.is_enough = trials.fails(undone)
        alone = mixture(before, after, rest) if found.is_enough else None
        return self._after() if alone is None or self.static_problem(alone) else alone

    def static_problem(self, model: Model) -> str:
        """Why the model cannot be run in the place of the one before the pass, or an empty string."""
        structure = check_structure(self.applied.before, model)
        if structure.status == "failed":
            return structure.reason
        if self.applied.step.alters_interface:
            return ""
        return check_interface(self.applied.before, model).reason

    def _divergence(self, wrong: Model) -> Divergence | None:
        """Where it begins: against the model before the pass, or the original if the two agree within the tolerance."""
        for reference in (self.applied.before, self.gate.reference):
            sets, worker = self.gate.input_sets, self.gate.worker
            gate = ParityGate(reference, sets, worker, lower=self.gate.lower)
            exactness = self.applied.step.exactness if reference is self.applied.before else self.promise
            evidence = gate.check(wrong, exactness)
            if evidence.status == "failed":
                models = [lower(model) if self.gate.lower is not None else model for model in (reference, wrong)]
                return where_it_begins(models[0], models[1], evidence, sets, worker, trusts_names=True)
        return None


def site_culprit(applied: Applied, check: SiteCheck) -> Culprit:
    """The record of a pass some of whose changes give other numbers when they are run alone."""
    found = _record(applied, "sites", check.evidence.reason)
    found.changes = len(check.regions)
    for checked in check.regions:
        if checked.evidence.status == "failed":
            found.undo.append(_change(checked.region, checked.evidence))
    return found


def _record(applied: Applied, kind: Kind, reason: str) -> Culprit:
    step = applied.step
    chain = format_pass(step.name, chosen_options(step))
    return Culprit(index=applied.index, name=step.name, chain=chain, kind=kind, reason=reason)


@dataclass
class _Trials:
    """The model before a pass with some of the pass's changes."""

    examination: Examination
    before: GraphIndex
    after: GraphIndex
    parts: Sequence[Region]
    known: dict[frozenset[int], bool] = field(default_factory=dict)

    def search(self, blamed: frozenset[int]) -> frozenset[int]:
        """The fewest changes that have to be undone, ``blamed`` being wrong already."""
        everything = frozenset(range(len(self.parts)))
        free = sorted(everything - blamed)
        if not free or (blamed and not self.fails(everything - blamed)):
            return blamed
        if len(self.parts) == 1:
            return everything
        chosen = minimal_failing_set(len(free), lambda kept: self.fails(frozenset(free[place] for place in kept)), _MOST_TRIALS)
        return blamed.union(free[place] for place in chosen)

    def fails(self, kept: frozenset[int]) -> bool:
        """Whether the model is wrong with only these changes."""
        if kept not in self.known:
            self.known[kept] = self._fails(kept)
        return self.known[kept]

    def _fails(self, kept: frozenset[int]) -> bool:
        left_out = [part for number, part in enumerate(self.parts) if number not in kept]
        named = [part.label for part in left_out[: _NAMED + (len(left_out) == _NAMED + 1)]]
        if len(left_out) > len(named):
            named.append(f"{len(left_out) - len(named)} more")
        what = f"without {', '.join(named)}" if named else "all of them"
        place, total = self.examination.applied.index, len(self.parts)
        trial = Trial(step="sites", culprit=place, applied=len(kept), total=total, what=what, status="unusable")
        self.examination.trials.append(trial)
        model = mixture(self.before, self.after, left_out)
        trial.reason = "the rest cannot do without them" if model is None else self.examination.static_problem(model)
        if model is None or trial.reason:
            return True
        fill_in(trial, self.examination.gate.check(model, self.examination.promise, is_trial=True))
        return trial.status == "failed"


def fill_in(trial: Trial, evidence: ParityEvidence) -> None:
    """Takes the figures of a comparison over."""
    trial.status, trial.reason = evidence.status, evidence.reason if evidence.status == "failed" else ""
    differing = [output for output in evidence.outputs if not output.equal]
    output = max(differing or evidence.outputs, key=lambda output: output.needed_rtol or output.max_abs or 0.0, default=None)
    if output is not None:
        trial.output, trial.max_abs, trial.needed_rtol = output.name, output.max_abs, output.needed_rtol
        trial.rtol = output.rtol


def _change(region: Region, evidence: RegionEvidence | None = None) -> Change:
    return Change(
        sites=list(region.sites),
        at=region.label,
        removed=[f"{node.op_type} {node.name}".strip() for node in region.removed],
        added=[f"{node.op_type} {node.name}".strip() for node in region.added],
        evidence=evidence,
    )
