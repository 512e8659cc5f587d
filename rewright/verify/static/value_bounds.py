"""The bounds of every value of a model, for passes: what is proven, and what is measured on input sets."""

from __future__ import annotations

from collections.abc import Sequence

from rewright.model.carrier import Model
from rewright.passes.bounds import ModelBounds, ValueBounds
from rewright.verify.inputs import InputSet
from rewright.verify.process import SessionWorker
from rewright.verify.static.assumptions import assumed_bounds
from rewright.verify.static.interval import Interval
from rewright.verify.static.measured import measure
from rewright.verify.static.ranges import Ranges


def value_bounds(model: Model, input_sets: Sequence[InputSet], worker: SessionWorker) -> ModelBounds:
    """Bounds by value name, graph inputs and the values of bodies included.

    What inputs mean bounds them: token ids lie in their table, masks are 0 or 1. One run for each input set and two thousand
    values; no value leaves the session.
    """
    assumed = {name: interval for name, (interval, _) in assumed_bounds(model).items()}
    ranges = Ranges(model, assumed)
    proven: dict[str, Interval] = {}
    for tensor, _, known in ranges.values():
        dtype = ranges.dtype(tensor)
        if tensor.name and (dtype is None or dtype.kind in "fV"):
            proven[tensor.name] = known.join(proven[tensor.name]) if tensor.name in proven else known
    measured, problems = measure(model, ranges, worker, [item.arrays for item in input_sets]) if input_sets else ({}, [])
    found = {name: ValueBounds((one.low, one.high), _ends(measured.get(name))) for name, one in proven.items()}
    return ModelBounds(found, tuple(item.name for item in input_sets) if measured else (), tuple(problems))


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)
