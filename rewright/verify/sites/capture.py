"""The values around sites, from runs of the model: only what makes them is run, from values that are known already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from rewright.model.carrier import Model
from rewright.model.regions import GraphIndex
from rewright.verify.inputs import InputSet
from rewright.verify.process import SessionError, SessionWorker, first_line
from rewright.verify.sites.assembly import ValueType, slice_to

_MOST_RUNS: Final = 16


class Capture:
    """Values by name, for each input set. A value keeps its name and its meaning from pass to pass, so that it is run once."""

    def __init__(self, input_sets: Sequence[InputSet], worker: SessionWorker, lower: Callable[[Model], Model] | None) -> None:
        self.input_sets = input_sets
        self._worker = worker
        self._lower = lower
        self._values: list[dict[str, np.ndarray]] = [dict(input_set.arrays) for input_set in input_sets]
        self.problem = ""

    def forget(self, index: GraphIndex) -> None:
        """Drops values that the model does not have: their names may be given to others."""
        for values in self._values:
            for name in [name for name in values if not index.knows(name)]:
                del values[name]

    def get(self, names: Iterable[str]) -> list[tuple[int, dict[str, np.ndarray]]]:
        """The sets in which all of these values are known, with their numbers."""
        wanted = list(names)
        return [
            (number, {name: values[name] for name in wanted})
            for number, values in enumerate(self._values)
            if all(name in values for name in wanted)
        ]

    def add(self, index: GraphIndex, names: Iterable[str]) -> None:
        """Runs what makes these values; sets on which that fails stay without them.

        Where it cannot be run as a whole, halves of it are tried, a bounded number of times.
        """
        missing = [name for name in dict.fromkeys(names) if any(name not in values for values in self._values)]
        pending = [missing] if missing and self._values else []
        for _ in range(_MOST_RUNS):
            if not pending:
                break
            wanted = pending.pop(0)
            if not self._run(index, wanted) and len(wanted) > 1:
                pending += [wanted[: len(wanted) // 2], wanted[len(wanted) // 2 :]]

    def _run(self, index: GraphIndex, wanted: list[str]) -> bool:
        """Runs what makes these values on every set; False if it does not load."""
        known = set.intersection(*(set(values) for values in self._values)).difference(wanted)
        types = {name: ValueType.of([values[name] for values in self._values]) for name in known}
        model, inputs = slice_to(index, wanted, types)
        feeds = [{name: values[name] for name in inputs if name in values} for values in self._values]
        lowered = self._lower(model) if self._lower is not None else model
        try:
            run = self._worker.run(lowered, feeds)
        except SessionError as error:
            self.problem = first_line(error.message)
            return False
        for values, result in zip(self._values, run.results, strict=True):
            self.problem = first_line(result.error) or self.problem
            values.update(result.outputs)
        return True
