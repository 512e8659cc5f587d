"""Runs sections: many of them, both sides, in one session where that works, each side by itself where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from rewright.model.carrier import Model
from rewright.verify.coarseness import coarsest_types
from rewright.verify.process import SessionCrash, SessionError, SessionRun, SessionWorker, first_line
from rewright.verify.sites.assembly import Part, ValueType, assemble, fit_together
from rewright.verify.sites.boundary_values import BoundarySet
from rewright.verify.sites.evidence import RegionEvidence
from rewright.verify.sites.section import Section, Side

_MOST_NODES: Final = 2000
_MOST_BYTES: Final = 2**27
"""Of nodes and of boundary values in one session: its loading time grows faster than its nodes."""


@dataclass
class Case:
    """A section with the boundary values that it runs on.

    ``first`` is the section of the same structure whose values it shares; None for the first one itself. ``differing`` are its
    integer outputs that were not the same.
    """

    section: Section
    evidence: RegionEvidence
    sets: list[BoundarySet]
    first: Case | None = None
    differing: set[str] = field(default_factory=set)

    @cached_property
    def coarsest(self) -> dict[str, np.dtype]:
        """The type of fewer digits that goes into an output, for the outputs that have one; see ``coarseness``.

        Where it goes into one of the two sides only, a cast is gone or new, and that is no matter of rounding.
        """
        found: list[dict[str, np.dtype]] = []
        for kind in ("a", "b"):
            model = model_of(self, kind)
            types = coarsest_types(model)
            named = zip(self.section.outputs, model.proto.graph.output, strict=True)
            found.append({name: types[value.name] for name, value in named if value.name in types})
        old, new = found
        return {name: dtype for name, dtype in old.items() if new.get(name) == dtype}

    def member(self, section: Section, evidence: RegionEvidence) -> Case:
        """A section of the same structure, to run on the first captured and the first made-up set of this one.

        Where that is much work it runs on the made-up one only: the values are not its own in either.
        """
        made = [one for one in self.sets if not one.is_captured][:1]
        captured = [one for one in self.sets if one.is_captured][:1] if not (made and section.is_heavy) else []
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


def run_sections(
    cases: Sequence[Case], worker: SessionWorker, lower: Callable[[Model], Model] | None
) -> list[tuple[SideRun, SideRun]]:
    """Both sides of each case, in order."""
    if not cases:
        return []
    first = cases[0].section
    kinds = [("a", "b")] if fit_together(first.old.index, first.new.index) else [("a",), ("b",)]
    runs: list[tuple[SideRun, SideRun]] = []
    for batch in _batches(cases):
        found: dict[str, list[SideRun]] = {}
        for kind in kinds:
            together = _together(batch, kind, worker, lower) if len(batch) * len(kind) > 1 else None
            found.update(together or {side: [_alone(case, side, worker, lower) for case in batch] for side in kind})
        runs.extend(zip(found["a"], found["b"], strict=True))
    return runs


def _batches(cases: Sequence[Case]) -> list[list[Case]]:
    batches: list[list[Case]] = [[]]
    nodes = size = 0
    for case in cases:
        more_nodes = len(case.section.old.numbers) + len(case.section.new.numbers)
        more = sum(array.nbytes for one in case.sets for array in one.arrays.values())
        if batches[-1] and (nodes + more_nodes > _MOST_NODES or size + more > _MOST_BYTES):
            batches.append([])
            nodes = size = 0
        batches[-1].append(case)
        nodes += more_nodes
        size += more
    return batches


def _side(case: Case, kind: str) -> Side:
    return case.section.old if kind == "a" else case.section.new


def _types(case: Case, boundary: str = "") -> dict[str, ValueType]:
    return {boundary + name: ValueType.of([one.arrays[name] for one in case.sets]) for name in case.sets[0].arrays}


def _together(
    batch: Sequence[Case], kinds: Sequence[str], worker: SessionWorker, lower: Callable[[Model], Model] | None
) -> dict[str, list[SideRun]] | None:
    """The cases, one side or both of them, in one session; None if any of them cannot be run."""
    parts: list[Part] = []
    types: dict[str, ValueType] = {}
    for number, case in enumerate(batch):
        types |= _types(case, f"{number}/")
        parts += [Part(_side(case, kind), case.section.outputs, f"{number}/", f"{number}{kind}/") for kind in kinds]
    assembly = assemble(parts, types)
    wanted = {value.name for value in assembly.model.proto.graph.input}
    feeds = [
        {
            f"{number}/{name}": array
            for number, case in enumerate(batch)
            for name, array in case.sets[min(turn, len(case.sets) - 1)].arrays.items()
            if f"{number}/{name}" in wanted
        }
        for turn in range(max(len(case.sets) for case in batch))
    ]
    lowered = lower(assembly.model) if lower is not None else assembly.model
    try:
        run = worker.run(lowered, feeds, threads=1)
    except SessionError:
        return None
    if any(result.error for result in run.results):
        return None
    names = iter(assembly.outputs)
    found: dict[str, list[SideRun]] = {kind: [] for kind in kinds}
    for case in batch:
        for kind in kinds:
            ordered = next(names)
            outputs = {turn: [run.results[turn].outputs[name] for name in ordered] for turn in range(len(case.sets))}
            found[kind].append(SideRun(lowered is not assembly.model, found=outputs))
    return found


def _alone(case: Case, kind: str, worker: SessionWorker, lower: Callable[[Model], Model] | None) -> SideRun:
    side = _side(case, kind)
    assembly = assemble([Part(side, case.section.outputs)], _types(case))
    lowered = lower(assembly.model) if lower is not None else assembly.model
    one = SideRun(lowered is not assembly.model)
    feeds = [{name: boundary.arrays[name] for name in side.inputs} for boundary in case.sets]
    try:
        run: SessionRun = worker.run(lowered, feeds, threads=1)
    except SessionError as error:
        one.crashed, one.problem = isinstance(error, SessionCrash), first_line(error.message)
        return one
    for number, result in enumerate(run.results):
        if result.error:
            one.errors[number] = one.problem = first_line(result.error)
        else:
            one.found[number] = [result.outputs[name] for name in assembly.outputs[0]]
    return one


def model_of(case: Case, kind: str = "a") -> Model:
    """The part before the pass ("a"), or what took its place ("b"), as a model whose inputs are the boundary values."""
    return assemble([Part(_side(case, kind), case.section.outputs)], _types(case)).model
