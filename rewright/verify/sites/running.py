"""Runs one side of many sections: all in one session where that works, each by itself where it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from rewright.model.carrier import Model
from rewright.verify.process import SessionCrash, SessionError, SessionRun, SessionWorker, first_line
from rewright.verify.sites.assembly import Assembly, Part, assemble
from rewright.verify.sites.boundary_values import BoundarySet
from rewright.verify.sites.evidence import RegionEvidence
from rewright.verify.sites.section import Section, Side

_MOST_NODES: Final = 2000
_MOST_BYTES: Final = 2**27
"""Of nodes and of boundary values in one session: its loading time grows faster than its nodes."""

_MEMBER_SETS: Final = 2


@dataclass
class Case:
    """A section with the boundary values that it runs on.

    ``first`` is the section of the same structure whose values it shares; None for the first one itself.
    """

    section: Section
    evidence: RegionEvidence
    sets: list[BoundarySet]
    first: Case | None = None

    def member(self, section: Section, evidence: RegionEvidence) -> Case:
        """A section of the same structure, to run on the first captured and the first made-up set of this one."""
        captured = [one for one in self.sets if one.is_captured][:1]
        made = [one for one in self.sets if not one.is_captured][: _MEMBER_SETS - 1]
        names = dict(zip(self.section.inputs, section.inputs, strict=True))
        sets = [
            BoundarySet(one.name, {names[name]: array for name, array in one.arrays.items()}, one.origin, one.is_captured)
            for one in captured + made
        ]
        evidence.shared_with = self.evidence.sites[0] if self.evidence.sites else self.evidence.at
        return Case(section, evidence, sets, self)


@dataclass
class SideRun:
    """One side of one section on its sets."""

    model: Model
    is_lowered: bool
    crashed: bool = False
    problem: str = ""
    found: dict[int, list[np.ndarray]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def ran(self) -> bool:
        """Whether it ran on any set."""
        return bool(self.found)

    def ran_on(self, number: int) -> bool:
        """Whether it ran on that set."""
        return number in self.found

    def outputs(self, number: int) -> list[np.ndarray] | None:
        """Its outputs on a set, in order; None if it did not run on it."""
        return self.found.get(number)

    def error(self, number: int) -> str:
        """Why it did not run on a set."""
        return self.errors.get(number, self.problem)


Types = Mapping[str, int]


def run_side(
    cases: Sequence[Case], types: Sequence[Types], is_new: bool, worker: SessionWorker, lower: Callable[[Model], Model] | None
) -> list[SideRun]:
    """One run for each case, in order."""
    runs: list[SideRun] = []
    for batch in _batches(list(zip(cases, types, strict=True)), is_new):
        together = _together(batch, is_new, worker, lower) if len(batch) > 1 else None
        if together is None:
            together = [_alone(case, known, is_new, worker, lower) for case, known in batch]
        runs.extend(together)
    return runs


def _batches(items: list[tuple[Case, Types]], is_new: bool) -> list[list[tuple[Case, Types]]]:
    batches: list[list[tuple[Case, Types]]] = [[]]
    nodes = size = 0
    for item in items:
        side = _side(item[0], is_new)
        more = sum(array.nbytes for one in item[0].sets for array in one.arrays.values())
        if batches[-1] and (nodes + len(side.numbers) > _MOST_NODES or size + more > _MOST_BYTES):
            batches.append([])
            nodes = size = 0
        batches[-1].append(item)
        nodes += len(side.numbers)
        size += more
    return [batch for batch in batches if batch]


def _side(case: Case, is_new: bool) -> Side:
    return case.section.new if is_new else case.section.old


def _part(case: Case, is_new: bool, number: int) -> Part:
    return Part(_side(case, is_new), case.section.outputs, f"{number}/")


def _assemble(batch: Sequence[tuple[Case, Types]], is_new: bool) -> Assembly:
    parts = [_part(case, is_new, number) for number, (case, _) in enumerate(batch)]
    types = {name: kind for _, known in batch for name, kind in known.items()}
    return assemble(parts, types)


def _together(
    batch: Sequence[tuple[Case, Types]], is_new: bool, worker: SessionWorker, lower: Callable[[Model], Model] | None
) -> list[SideRun] | None:
    """All cases in one session, or None if any of them cannot be run."""
    assembly = _assemble(batch, is_new)
    feeds = [
        {
            part.prefix + name: case.sets[min(number, len(case.sets) - 1)].arrays[name]
            for part, (case, _) in zip(assembly.parts, batch, strict=True)
            for name in part.side.inputs
        }
        for number in range(max(len(case.sets) for case, _ in batch))
    ]
    lowered = lower(assembly.model) if lower is not None else assembly.model
    try:
        run = worker.run(lowered, feeds)
    except SessionError:
        return None
    if any(result.error for result in run.results):
        return None
    runs = []
    for (case, _), part, names in zip(batch, assembly.parts, assembly.outputs, strict=True):
        model = assemble([Part(part.side, part.outputs, "")], _types_of(batch, case)).model if not is_new else assembly.model
        one = SideRun(model, lowered is not assembly.model)
        one.found = {number: [run.results[number].outputs[name] for name in names] for number in range(len(case.sets))}
        runs.append(one)
    return runs


def _types_of(batch: Sequence[tuple[Case, Types]], case: Case) -> Types:
    return next(known for other, known in batch if other is case)


def _alone(case: Case, types: Types, is_new: bool, worker: SessionWorker, lower: Callable[[Model], Model] | None) -> SideRun:
    side = _side(case, is_new)
    assembly = assemble([Part(side, case.section.outputs, "")], types)
    lowered = lower(assembly.model) if lower is not None else assembly.model
    one = SideRun(assembly.model, lowered is not assembly.model)
    feeds = [{name: boundary.arrays[name] for name in side.inputs} for boundary in case.sets]
    try:
        run: SessionRun = worker.run(lowered, feeds)
    except SessionError as error:
        one.crashed, one.problem = isinstance(error, SessionCrash), first_line(error.message)
        return one
    for number, result in enumerate(run.results):
        if result.error:
            one.errors[number] = one.problem = first_line(result.error)
        else:
            one.found[number] = [result.outputs[name] for name in assembly.outputs[0]]
    return one
