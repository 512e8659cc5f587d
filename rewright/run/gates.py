"""The gates after a pass, and what becomes of a candidate that does not get through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from rewright.model.carrier import Model
from rewright.model.mixture import mixture
from rewright.model.regions import ClaimedSite, GraphIndex, Region, leaving_gaps, regions
from rewright.ops.widening import rounded
from rewright.passes.contract import FailurePolicy, Pass, Site
from rewright.report.model import PassReport, UndoneReport
from rewright.verify.interface import check_interface
from rewright.verify.kernels import check_kernels
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.process import TOO_SLOW, SessionError, SessionWorker, first_line
from rewright.verify.search import minimal_failing_set
from rewright.verify.sites.gate import SiteCheck, SiteGate
from rewright.verify.structure import check_structure

SiteMode = Literal["all", "failed", "deferred"]

_MOST_TRIALS: Final = 48
"""Candidates that are tried at most to find out which sites of a pass are wrong."""


@dataclass
class Gates:
    """What a candidate has to get through.

    Attributes:
        worker: the process that loads and runs models.
        parity: compares whole models; None where that was not asked for, or cannot be done.
        make_sites: makes the gate that compares sites, when it is first needed.
        site_mode: after which passes sites are compared: "all"; "failed", only to find the wrong one after another gate has
            failed; or "deferred". Those of a pass that ONNX Runtime carries out are compared in every mode, because nobody has
            proven them.
        loads_kernels: whether new kinds of nodes are loaded where no parity gate runs the model.
    """

    worker: SessionWorker
    parity: ParityGate | None
    make_sites: Callable[[], SiteGate]
    site_mode: SiteMode
    loads_kernels: bool
    last_parity: ParityEvidence | None = None
    _sites: SiteGate | None = field(default=None, repr=False)

    def pass_through(
        self, step: Pass, before: Model, candidate: Model, sites: Sequence[Site], record: PassReport, policy: FailurePolicy
    ) -> Model | None:
        """The candidate, or what is left of it without the sites that fail; None if nothing is.

        Evidence, what was undone, and the reason go to the record.
        """
        trial = _Trial(self, step, before, candidate, sites, record)
        reason = trial.reason(candidate, record)
        kept: Model | None = candidate
        if reason:
            record.reason = reason
            # Each trial of the search would take as long again.
            is_divisible = policy == "rollback" and TOO_SLOW not in reason and not step.retypes
            kept = trial.without_the_failing() if is_divisible else None
        if kept is not None and self.parity is not None:
            self.parity.keep(step.exactness)
            self.last_parity = record.parity
        return kept

    @property
    def sites(self) -> SiteGate:
        """The gate that compares sites."""
        if self._sites is None:
            self._sites = self.make_sites()
        return self._sites


@dataclass
class _Trial:
    """One application of one pass on its way through the gates."""

    gates: Gates
    step: Pass
    before: Model
    candidate: Model
    sites: Sequence[Site]
    record: PassReport
    checked: SiteCheck | None = None

    def reason(self, model: Model, record: PassReport, *, is_trial: bool = False) -> str:
        """Runs the gates, cheapest first; returns why the first one failed, or an empty string."""
        gates = self.gates
        record.structure = check_structure(self.before, model)
        if record.structure.status == "failed":
            return f"structure: {record.structure.reason}"
        if self.step.alters_interface:
            if gates.parity is not None:
                gates.parity.takes_other_types = True
        else:
            record.interface = check_interface(self.before, model)
            if record.interface.status == "failed":
                return f"interface: {record.interface.reason}"
        is_due = (gates.site_mode == "all" or self.step.backend == "ort") and not self.step.retypes
        if is_due and self.checked is None and not is_trial:
            self.checked = self._check_sites()
            if self.checked.evidence.status == "failed":
                return f"sites: {self.checked.evidence.reason}"
        if gates.parity is None:
            if gates.loads_kernels:
                added = {name for site in self.sites for name in site.added}
                record.kernels = check_kernels(model, added, gates.worker)
                if record.kernels.status == "failed":
                    return f"kernels: {record.kernels.problems[0]}"
            return self._load_problem(model) if gates.loads_kernels and self.step.is_deferred else ""
        record.parity = gates.parity.check(model, self.step.exactness, is_trial=is_trial)
        if self.step.retypes and record.parity.status == "passed" and gates.parity.lower is not None:
            record.parity = self._rounded_parity(gates.parity, model) or record.parity
        return f"parity: {record.parity.reason}" if record.parity.status == "failed" else ""

    def _rounded_parity(self, gate: ParityGate, model: Model) -> ParityEvidence | None:
        """The comparison with each op of half precision rounding its result, as the target does and a CPU does not.

        None where the model does not run that way, or has no half precision.
        """
        candidate = rounded(model)
        evidence = gate.check(candidate, self.step.exactness, is_trial=True) if candidate is not model else None
        return evidence if evidence is not None and evidence.outputs else None

    def _load_problem(self, model: Model) -> str:
        """Why the model does not load although the one before does: nobody has proven what ONNX Runtime's optimizers do."""
        problem = _error_of_loading(model, self.gates.worker)
        if not problem or _error_of_loading(self.before, self.gates.worker):
            return ""
        return f"structure: ONNX Runtime does not load the result: {problem}"

    def _check_sites(self) -> SiteCheck:
        check = self.gates.sites.check(self.before, self.candidate, claimed(self.sites), self.step.exactness)
        if self.step.backend == "ort":
            _distrust(check)
        self.record.site_parity = check.evidence
        return check

    def without_the_failing(self) -> Model | None:
        """The candidate with as few regions undone as it takes; None if all of them have to go."""
        is_whole = self.record.structure is not None and self.record.structure.status == "passed"
        if self.checked is None and is_whole and (self.gates.site_mode != "deferred" or self.step.backend == "ort"):
            self.checked = self._check_sites()
        compared = self.checked
        found, undone, kept = self._without_suspects()
        if kept is None and self.checked is not compared:  # the trial without gaps has compared the sites
            found, undone, kept = self._without_suspects()
        before, after = self._models()
        if kept is None and len(found) > 1:
            culprits = self._search(before, after, found, undone)
            kept = self._try(before, after, found, culprits) if len(culprits) < len(found) else None
            undone = culprits if kept is not None else undone
        if kept is None:
            undone = frozenset(range(len(found)))
        self._write_down([found[number] for number in sorted(undone)], kept is not None)
        return kept

    def _without_suspects(self) -> tuple[list[Region], frozenset[int], Model | None]:
        """The regions, which of them leave gaps or have failed so far, and the candidate without these if that passes."""
        before, after = self._models()
        found = [entry.region for entry in self.checked.regions] if self.checked is not None else []
        found = found or regions(before, after, claimed(self.sites))
        failing = {*leaving_gaps(found, after), *map(id, self.checked.failing if self.checked is not None else ())}
        undone = frozenset(number for number, region in enumerate(found) if id(region) in failing)
        kept = self._try(before, after, found, undone) if undone and len(undone) < len(found) else None
        return found, undone, kept

    def _models(self) -> tuple[GraphIndex, GraphIndex]:
        if self.checked is not None:
            return self.checked.before, self.checked.after
        return GraphIndex(self.before), GraphIndex(self.candidate)

    def _try(self, before: GraphIndex, after: GraphIndex, found: Sequence[Region], undone: frozenset[int]) -> Model | None:
        model = mixture(before, after, [found[number] for number in undone])
        scratch = self.record.model_copy(deep=True)
        if model is None or self.reason(model, scratch):
            return None
        for gate in ("structure", "interface", "kernels", "parity"):
            setattr(self.record, gate, getattr(scratch, gate))
        return model

    def _search(self, before: GraphIndex, after: GraphIndex, found: Sequence[Region], known: frozenset[int]) -> frozenset[int]:
        """The smallest set that was found of regions whose undoing mends the model; ``known`` are wrong already."""
        open_numbers = [number for number in range(len(found)) if number not in known]
        scratch = self.record.model_copy(deep=True)

        def fails(members: frozenset[int]) -> bool:
            undone = known.union(number for place, number in enumerate(open_numbers) if place not in members)
            model = mixture(before, after, [found[number] for number in undone])
            return model is None or bool(self.reason(model, scratch, is_trial=True))

        if not open_numbers:
            return known
        return known.union(open_numbers[place] for place in minimal_failing_set(len(open_numbers), fails, _MOST_TRIALS))

    def _write_down(self, undone: Sequence[Region], is_partial: bool) -> None:
        gaps = leaving_gaps(undone, self._models()[1]) if self.record.reason.startswith("structure: ") else {}
        reasons = {region: f"structure: what is left reads value '{name}' that nothing produces" for region, name in gaps.items()}
        if self.checked is not None:
            failed = [entry for entry in self.checked.regions if entry.evidence.status == "failed"]
            reasons |= {id(entry.region): entry.evidence.reason for entry in failed}
        self.record.undone = [
            UndoneReport(sites=list(region.sites), at=region.label, reason=reasons.get(id(region), self.record.reason))
            for region in undone
        ]
        if is_partial:
            count = sum(max(1, len(region.sites)) for region in undone)
            total = max(len(self.sites), count)
            self.record.reason = (
                f"{count} of {total} sites were undone: {self.record.undone[0].at}: {self.record.undone[0].reason}"
            )


def _distrust(check: SiteCheck) -> None:
    """What could not be compared counts as wrong."""
    for entry in check.regions:
        evidence = entry.evidence
        if evidence.status == "not-run":
            evidence.status, evidence.reason = "failed", f"it could not be compared: {evidence.reason}"
            if check.evidence.status != "failed":
                check.evidence.status, check.evidence.reason = "failed", f"{entry.region.label}: {evidence.reason}"


def claimed(sites: Sequence[Site]) -> list[ClaimedSite]:
    """What a pass says of its sites, as the comparison of two models takes it."""
    return [ClaimedSite(site.id, (*site.removed, *site.added, *site.values)) for site in sites]


def _error_of_loading(model: Model, worker: SessionWorker) -> str:
    try:
        worker.load(model)
    except SessionError as error:
        return first_line(error.message)
    return ""
