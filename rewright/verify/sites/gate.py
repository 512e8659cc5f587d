"""The site gate: finds what a pass changed, and runs each changed region by itself, before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from rewright.model.carrier import Model
from rewright.model.regions import ClaimedSite, GraphIndex, Region, regions
from rewright.passes.contract import Exactness
from rewright.verify.budget import QuantizationBudget
from rewright.verify.inputs import InputSet
from rewright.verify.process import SessionWorker
from rewright.verify.seeds import drawing_outputs
from rewright.verify.sites.boundary_values import BoundarySet, boundary_sets
from rewright.verify.sites.capture import Capture
from rewright.verify.sites.double import DoubleEvaluator
from rewright.verify.sites.evidence import RegionEvidence, SiteParityEvidence
from rewright.verify.sites.hard_inputs import hard_sets
from rewright.verify.sites.judgement import Judgement, judge, without_padded_rows
from rewright.verify.sites.ranges import FreeValues, free_inputs, index_inputs
from rewright.verify.sites.running import Case, SideRun, model_of, run_sections
from rewright.verify.sites.section import Section, make_section
from rewright.verify.sites.thresholds import added_vectors, thresholds
from rewright.verify.sites.wider import followed

_MOST_CAPTURED: Final = 4
_MOST_LOOKED_WIDER: Final = 16

_LARGEST_SET: Final = 2**26
"""Bytes of boundary values in one set; larger ones are left out where there are smaller ones."""


@dataclass
class CheckedRegion:
    """A region with what was found out about it."""

    region: Region
    evidence: RegionEvidence


@dataclass
class SiteCheck:
    """What the gate says of one pass, region by region."""

    before: GraphIndex
    after: GraphIndex
    regions: list[CheckedRegion] = field(default_factory=list)
    evidence: SiteParityEvidence = field(default_factory=lambda: SiteParityEvidence(status="not-run"))

    @property
    def failing(self) -> list[Region]:
        """The regions that do not give what they gave before."""
        return [checked.region for checked in self.regions if checked.evidence.status == "failed"]


class SiteGate:
    """Checks the regions that passes change, one pass after the other.

    Args:
        original: the model before the first pass; tells which inputs hold plain numbers.
        input_sets: what the values around sites are captured from.
        worker: the process that runs the small models.
        lower: replaces ops that this machine has no kernel for by their meaning in standard ops.
        budget: what quantizing passes may lose.
        seed: of the made-up values.
    """

    def __init__(
        self,
        original: Model,
        input_sets: Sequence[InputSet],
        worker: SessionWorker,
        *,
        lower: Callable[[Model], Model] | None = None,
        budget: QuantizationBudget | None = None,
        seed: int = 0,
    ) -> None:
        self._worker = worker
        self._lower = lower
        self._budget = budget
        self._seed = seed
        self._free_inputs = free_inputs(original)
        self._index_inputs = index_inputs(original)
        sets = list(input_sets[:_MOST_CAPTURED])
        self._capture = Capture([*sets, *hard_sets(original, sets)], worker, lower)

    def check(self, before: Model, after: Model, sites: Iterable[ClaimedSite], exactness: Exactness) -> SiteCheck:
        """Runs every region that differs between the two models. Nothing is raised for a model that does not run."""
        started = time.perf_counter()
        check = SiteCheck(GraphIndex(before), GraphIndex(after))
        self._capture.forget(check.before)
        cases = self._cases(check, regions(check.before, check.after, sites), exactness)
        self._run([case for case in cases if case.first is None], exactness)
        self._run([case for case in cases if case.first is not None], exactness)
        self._run_again(check, [case for case in cases if case.first is not None], exactness)
        self._look_wider(check, [case for case in cases if case.evidence.status == "failed"], exactness)
        evidence = check.evidence
        evidence.regions = [checked.evidence for checked in check.regions]
        statuses = {region.status for region in evidence.regions}
        evidence.status = "failed" if "failed" in statuses else "passed" if statuses & {"passed", "unused"} else "not-run"
        failed = [region for region in evidence.regions if region.status == "failed"]
        if failed:
            evidence.reason = f"{_named(failed[0])}: {failed[0].reason}"
        elif evidence.status == "not-run":
            evidence.reason = next((region.reason for region in evidence.regions if region.reason), "nothing was changed")
        evidence.seconds = time.perf_counter() - started
        return check

    def _cases(self, check: SiteCheck, found: Sequence[Region], exactness: Exactness) -> list[Case]:
        """The regions as sections with boundary values; those of one structure share the values of the first."""
        free_values = FreeValues(check.before, self._free_inputs)
        drawing = drawing_outputs(check.before.model) | drawing_outputs(check.after.model)
        sections: list[tuple[Section, RegionEvidence]] = []
        for region in found:
            nodes = region.removed or region.added
            evidence = RegionEvidence(sites=list(region.sites), at=nodes[0].name or nodes[0].op_type, status="not-run")
            check.regions.append(CheckedRegion(region, evidence))
            if not region.outputs:
                evidence.status = "unused"
                continue
            section = make_section(region, check.before, check.after, free_values)
            if drawing and not drawing.isdisjoint(name for side in (section.old, section.new) for name in side.makes):
                evidence.reason = "it draws random numbers, which are compared in the whole model only, with pinned seeds"
                continue
            sections.append((section, evidence))
        # What lies around the one that ends first takes the least to capture.
        sections.sort(key=lambda item: max(item[0].old.numbers, default=0))
        firsts: dict[tuple[object, ...], Section] = {}
        for section, _ in sections:
            firsts.setdefault(section.key, section)
        self._capture_around(check, firsts.values())
        by_key: dict[tuple[object, ...], Case] = {}
        cases = []
        for section, evidence in sections:
            first = by_key.get(section.key)
            case = self._case(section, evidence, exactness) if first is None else first.member(section, evidence)
            if case is not None:
                by_key.setdefault(section.key, case)
                cases.append(case)
        return cases

    def _capture_around(self, check: SiteCheck, sections: Iterable[Section]) -> None:
        wanted = [name for section in sections for name in section.inputs]
        for index in (check.before, check.after):
            self._capture.add(index, [name for name in wanted if index.knows(name)])

    def _case(self, section: Section, evidence: RegionEvidence, exactness: Exactness) -> Case | None:
        """A section with its own boundary values; None if they cannot be had."""
        case = Case(section, evidence, self._boundary(section, exactness))
        if not case.sets:
            evidence.reason = f"the values around it are not known: {self._capture.problem or 'no input set reaches it'}"
            return None
        return case

    def _boundary(self, section: Section, exactness: Exactness) -> list[BoundarySet]:
        captured = self._capture.get(section.inputs)
        small = [(number, arrays) for number, arrays in captured if _bytes(arrays.values()) <= _LARGEST_SET]
        captured = small or captured[:1]
        if not captured:
            return []
        free = () if exactness == "quantizing" else section.free
        bounds = thresholds(section.old.index, section.old.nodes) + thresholds(section.new.index, section.new.nodes)
        shared = set(section.new.inputs).intersection(section.old.inputs) if not section.held else set()
        return list(
            boundary_sets(
                captured,
                free,
                self._seed,
                is_heavy=section.is_heavy,
                bounds=sorted(set(bounds)),
                added=added_vectors(section.old.index, section.old.nodes),
                indices={name: limits for name, limits in self._index_inputs.items() if name in shared},
                held=section.held,
            )
        )

    def _run(self, cases: list[Case], exactness: Exactness) -> None:
        for case, (before, after) in zip(cases, run_sections(cases, self._worker, self._lower), strict=True):
            self._judge(case, before, after, exactness)

    def _run_again(self, check: SiteCheck, members: Sequence[Case], exactness: Exactness) -> None:
        """Sections that have not passed on another one's values run on their own: their shapes may be others."""
        doubtful = [case for case in members if case.evidence.status != "passed"]
        self._capture_around(check, [case.section for case in doubtful])
        again = []
        for case in doubtful:
            case.evidence.status, case.evidence.reason, case.evidence.shared_with = "not-run", "", ""
            own = self._case(case.section, case.evidence, exactness)
            if own is not None:
                again.append(own)
        self._run(again, exactness)

    def _look_wider(self, check: SiteCheck, failed: Sequence[Case], exactness: Exactness) -> None:
        """Regions that failed run once more, on a section that holds what they rely on; see ``wider``."""
        free_values = FreeValues(check.before, self._free_inputs)
        again: list[tuple[Case, Case]] = []
        for case in failed[:_MOST_LOOKED_WIDER]:
            region: Region | None = case.section.region
            if case.differing:
                region = followed(case.section.region, case.differing, check.before, check.after)
            if region is None:
                continue
            section = make_section(region, check.before, check.after, free_values, is_closed=True)
            if section.outputs == case.section.outputs and section.old.numbers == case.section.old.numbers:
                continue
            self._capture_around(check, [section])
            evidence = RegionEvidence(sites=case.evidence.sites, at=case.evidence.at, status="not-run")
            wide = self._case(section, evidence, exactness)
            if wide is not None:
                again.append((case, wide))
        self._run([wide for _, wide in again], exactness)
        for case, wide in again:
            if wide.evidence.status == "passed":
                for name in RegionEvidence.model_fields:
                    setattr(case.evidence, name, getattr(wide.evidence, name))

    def _judge(self, case: Case, before: SideRun, after: SideRun, exactness: Exactness) -> None:
        evidence = case.evidence
        evidence.runs_as = "contract bodies" if after.is_lowered else "kernels"
        if not before.ran:
            evidence.reason = f"the part before the pass does not run by itself: {before.problem}"
            return
        if after.crashed or not any(after.ran_on(number) for number in range(len(case.sets))):
            evidence.status, evidence.reason = "failed", f"what took its place does not run: {after.problem}"
            return
        evidence.sets, evidence.free = len(case.sets), len(case.section.free)
        evidence.captured = sum(one.is_captured for one in case.sets)
        truth = DoubleEvaluator(model_of(case)) if case.first is None and exactness not in ("exact", "quantizing") else None
        promised: Exactness = "reassociating" if exactness == "exact" and case.section.held else exactness
        worst = Judgement(-1.0)
        compared = 0
        for number, one in enumerate(case.sets):
            wanted, got = before.outputs(number), after.outputs(number)
            if wanted is None:
                continue
            if got is None:
                evidence.status = "failed"
                evidence.reason = f"what took its place does not run on '{one.name}': {after.error(number)}"
                evidence.worst_set = one.name
                return
            exact = truth.run({name: one.arrays[name] for name in case.section.old.inputs}) if truth is not None else None
            if exact is not None:
                evidence.reference = "float64"
            for position, name in enumerate(case.section.outputs):
                arrays = [wanted[position], got[position], *([exact[position]] if exact is not None else [])]
                found = self._judge_one(arrays, one, promised)
                if found.ratio > 1.0:
                    found = (
                        self._judge_again(case, position, arrays, one, promised, truth if exact is not None else None) or found
                    )
                compared += wanted[position].size
                if found.ratio > 1.0 and wanted[position].dtype.kind in "iu":
                    case.differing.add(name)
                if found.ratio > worst.ratio:
                    worst = found
                    evidence.output, evidence.worst_set = name, one.name
        evidence.max_abs, evidence.allowed, evidence.noise = worst.max_abs, worst.allowed, worst.noise
        if worst.ratio > 1.0:
            evidence.status = "failed"
            evidence.reason = f"value '{evidence.output}' on '{evidence.worst_set}': {worst.message}"
        else:
            evidence.status = "passed"
            evidence.reason = "" if compared else "what it makes is empty on every set"

    def _judge_again(
        self,
        case: Case,
        position: int,
        arrays: list[np.ndarray],
        one: BoundarySet,
        exactness: Exactness,
        truth: DoubleEvaluator | None,
    ) -> Judgement | None:
        """What differs, with regard to how far rounding moves the old part; None if nothing is known about that."""
        found = None
        if truth is not None:
            shaken = truth.shaken({name: one.arrays[name] for name in case.section.old.inputs})
            found = self._judge_one([*arrays, *(outputs[position] for outputs in shaken)], one, exactness)
        coarse = case.coarsest.get(case.section.outputs[position])
        if coarse is not None and coarse.itemsize == 2 and exactness == "exact":
            exactness = "reassociating"  # what an op rounds to half precision depends on its neighbours
        if coarse is not None and (found is None or found.ratio > 1.0):
            found = self._judge_one(arrays, one, exactness, coarse)
        return found

    def _judge_one(
        self, arrays: list[np.ndarray], one: BoundarySet, exactness: Exactness, coarse: np.dtype | None = None
    ) -> Judgement:
        truth = arrays[2] if len(arrays) > 2 else None
        judged = partial(judge, exactness=exactness, is_captured=one.is_captured, budget=self._budget, coarse=coarse)
        found = judged(arrays[0], arrays[1], truth, shaken=arrays[3:])
        same_shape = all(array.shape == arrays[0].shape for array in arrays)
        if found.ratio > 1.0 and exactness != "exact" and same_shape:
            # what padded positions hold means nothing, and fusions may change it
            valid = without_padded_rows(arrays, self._capture.input_sets[one.origin], one.shift)
            if valid is not None:
                truth = valid[2] if len(valid) > 2 else None
                return judged(valid[0], valid[1], truth, shaken=valid[3:])
        return found


def _named(evidence: RegionEvidence) -> str:
    return evidence.sites[0] if evidence.sites else f"the change at {evidence.at}"


def _bytes(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)
