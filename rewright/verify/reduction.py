"""The smallest part of a model on which a pass still fails.

Slices around the failing site are tried from small to large; then nodes, and input sets, are taken away as long as the failure
stays (delta debugging). What is cut off is replaced by the values that occurred there, so that the rest sees what it saw before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict

from rewright.model.carrier import Model
from rewright.model.errors import RewrightError
from rewright.verify.cut import Cutter, Numbers
from rewright.verify.input_files import load_input_sets
from rewright.verify.inputs import InputSet
from rewright.verify.process import SessionWorker
from rewright.verify.sites.capture import Capture

StillFails = Callable[[Model, Sequence[InputSet]], bool]
"""Whether a pass fails on a model and these input sets as it did on the whole model."""

_HOPS: Final = (0, 1, 2, 4, 8, 16)
_SITES_TRIED: Final = 3
_THINNED: Final = 256
"""Nodes of a part from which nodes are taken away one by one; above, all its values would have to be held."""


@dataclass(frozen=True)
class Budget:
    """What a reduction may cost: trials, and seconds after which no further trial begins."""

    trials: int = 80
    seconds: float = 20.0


class ReductionEvidence(BaseModel):
    """How far a model was reduced.

    Attributes:
        nodes_before, nodes_after: of the main graph.
        input_sets_before, input_sets_after: what the pass was run on.
        trials: parts that were tried.
        seconds: wall time.
        is_exhausted: whether the budget ended the search.
    """

    model_config = ConfigDict(extra="forbid")

    nodes_before: int
    nodes_after: int
    input_sets_before: int
    input_sets_after: int
    trials: int = 0
    seconds: float = 0.0
    is_exhausted: bool = False


@dataclass(frozen=True)
class Reduction:
    """A model on which the pass fails, its input sets, and what finding it cost."""

    model: Model
    input_sets: list[InputSet]
    evidence: ReductionEvidence


def reduce_failure(
    model: Model,
    sites: Sequence[Sequence[str]],
    input_sets: Sequence[InputSet],
    worker: SessionWorker,
    still_fails: StillFails,
    *,
    lower: Callable[[Model], Model] | None = None,
    budget: Budget | None = None,
) -> Reduction:
    """The smallest part of the model that was found on which the pass still fails; at worst the whole model.

    Args:
        model: on which the pass failed.
        sites: for each failing site, names of its nodes or of values that they make; none if the pass named none.
        input_sets: what the failure was seen on, the most telling first; none if nothing was run.
        worker: runs the model for the values at the edges of parts.
        still_fails: tries a part. It is called with input sets that fit the part, none if ``input_sets`` has none.
        lower: see ``ParityGate``.
        budget: what it may cost.
    """
    return _Search(model, list(input_sets), worker, still_fails, lower, budget or Budget()).run(sites)


class _Search:
    def __init__(
        self,
        model: Model,
        input_sets: list[InputSet],
        worker: SessionWorker,
        still_fails: StillFails,
        lower: Callable[[Model], Model] | None,
        budget: Budget,
    ) -> None:
        self._model, self._sets, self._still_fails, self._budget = model, input_sets, still_fails, budget
        self._cutter = Cutter(model)
        self._capture = Capture(input_sets, worker, lower)
        self._started = time.perf_counter()
        self._tried: set[Numbers] = set()
        self._trials = 0
        self._found: tuple[Model, list[InputSet]] | None = None
        self._numbers: list[int] = []  # of the input sets that the part was found with
        self._only: int | None = None

    def run(self, sites: Sequence[Sequence[str]]) -> Reduction:
        everything = frozenset(range(len(self._cutter.index.nodes)))
        part = next(filter(self._fails, self._slices(sites, everything)), None)
        if part is None:
            part = self._window(everything)
        if part is None and 1 < len(everything) <= _THINNED:
            part = everything
        if part is None or part is everything:
            self._found, self._numbers = None, list(range(len(self._sets)))
        self._keep_one_set(*(self._found or (self._model, self._sets)))
        if part is not None and len(part) <= _THINNED:
            self._thin_out(part)
        model, input_sets = self._found or (self._model, self._sets)
        return Reduction(model, input_sets, self._evidence(model, input_sets))

    def _evidence(self, model: Model, input_sets: Sequence[InputSet]) -> ReductionEvidence:
        return ReductionEvidence(
            nodes_before=len(self._model.proto.graph.node),
            nodes_after=len(model.proto.graph.node),
            input_sets_before=len(self._sets),
            input_sets_after=len(input_sets),
            trials=self._trials,
            seconds=time.perf_counter() - self._started,
            is_exhausted=self._is_spent(),
        )

    def _is_spent(self) -> bool:
        return self._trials >= self._budget.trials or time.perf_counter() - self._started > self._budget.seconds

    def _slices(self, sites: Sequence[Sequence[str]], everything: Numbers) -> Iterator[Numbers]:
        """What is around each of the first sites, then around all of them, from small to large."""
        groups = [self._cutter.named(site) for site in sites]
        seeds = [group for group in groups if group][:_SITES_TRIED]
        if len(groups) > 1:
            seeds.append(frozenset().union(*groups))
        for hops in _HOPS:
            for group in seeds:
                around = self._cutter.around(group, hops)
                if around and around != everything:
                    yield around

    def _window(self, everything: Numbers) -> Numbers | None:
        """Where no site is known, or it is the whole: half of the nodes, as often as one half or the middle still fails."""
        held: Numbers | None = None
        numbers = sorted(everything)
        while len(numbers) > 1 and not self._is_spent():
            half, quarter = len(numbers) // 2, len(numbers) // 4
            parts = (numbers[:half], numbers[half:], numbers[quarter : quarter + half])
            smaller = next((part for part in parts if self._fails(frozenset(part))), None)
            if smaller is None:
                break
            numbers, held = smaller, frozenset(smaller)
        return held

    def _thin_out(self, part: Numbers) -> Numbers:
        """Takes away nodes, many at once and then fewer, as long as the rest still fails."""
        self._know(name for number in part for name in self._cutter.index.nodes[number].output if name)
        step = max(len(part) // 2, 1)
        while len(part) > 1 and not self._is_spent():
            before = len(part)
            ordered = sorted(part)
            for start in range(0, len(ordered), step):
                smaller = part.difference(ordered[start : start + step])
                if smaller and smaller != part and self._fails(smaller):
                    part = smaller
            if step == 1 and len(part) == before:
                break
            step = max(step // 2, 1)
        return part

    def _keep_one_set(self, model: Model, input_sets: list[InputSet]) -> None:
        """Goes on with one input set, if the failure shows on one."""
        for position, single in enumerate(input_sets if len(input_sets) > 1 else ()):
            if self._is_spent():
                break
            self._trials += 1
            if self._still_fails(model, [single]):
                self._found, self._only = (model, [single]), self._numbers[position]
                break

    def _know(self, names: Iterable[str]) -> None:
        self._capture.add(self._cutter.index, names)

    def _fails(self, numbers: Numbers) -> bool:
        """Tries a part, unless it was tried before or nothing may be tried any more."""
        if numbers in self._tried or self._is_spent():
            return False
        self._tried.add(numbers)
        inputs, outputs = self._cutter.boundary(numbers)
        self._know(name for name in (*inputs, *outputs))
        known = {number: arrays for number, arrays in self._capture.get(inputs) if self._only in (None, number)}
        if self._sets and not known:
            return False
        typed = next((arrays for _, arrays in self._capture.get((*inputs, *outputs))), {})
        part = self._cutter.part(numbers, typed)
        if part is None:
            return False
        self._trials += 1
        try:
            input_sets = load_input_sets(part, list(known.values())) if self._sets else []
        except RewrightError:  # what is known about the value's shape contradicts the value
            return False
        if not self._still_fails(part, input_sets):
            return False
        self._found, self._numbers = (part, input_sets), list(known)
        return True
