"""The record of a measurement. ``report.to_json()`` is the JSON form, schema 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from rewright.report.model import EnvironmentReport
from rewright.verify.inputs import Origin

_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 95.0


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Interval(_Record):
    """An estimate, and the range that holds 95 of 100 of its bootstrap resamples."""

    estimate: float
    low: float
    high: float


class ModelTiming(_Record):
    """One model of a measurement.

    Attributes:
        name: how the report refers to it.
        path: of its file; None for a model in memory.
        nbytes: of the model with its weights.
        load_seconds: what making the session took.
        rounds: the median time of one run in each round, in seconds.
        median, low, high: of the rounds, in seconds: the median and the quartiles.
        speedup: how many times as fast as the first model it is; None for the first one itself.
        rss_peak: largest resident set of its process, in bytes.
        error: why it could not be measured; empty where it was.
    """

    name: str
    path: str | None = None
    nbytes: int = 0
    load_seconds: float = 0.0
    rounds: list[float] = Field(default_factory=list)
    median: float | None = None
    low: float | None = None
    high: float | None = None
    speedup: Interval | None = None
    rss_peak: int = 0
    error: str = ""


class BenchReport(_Record):
    """The times of several models on the same inputs, measured in turns.

    Attributes:
        models: in the order in which they were given; the first is what the others are held against.
        inputs: who the inputs are from; ``input_sets`` names and describes them.
        threads: intra-op threads of a session; 0 leaves the number to ONNX Runtime.
        optimization: ONNX Runtime's own, for every model.
    """

    schema_version: Literal[1] = 1
    models: list[ModelTiming]
    inputs: Origin
    input_sets: list[str]
    threads: int
    optimization: str
    environment: EnvironmentReport
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every model was measured."""
        return not any(model.error for model in self.models)

    def to_json(self) -> str:
        """The JSON form, indented."""
        return self.model_dump_json(indent=2)


def summarize(models: Sequence[ModelTiming], seed: int = 0) -> None:
    """Fills in medians, quartiles and speedups from the rounds.

    A speedup is the ratio of the medians over all rounds. Its interval is that of the percentile bootstrap over rounds (Efron
    1979), each round drawn with the times of both models, so that what slowed the machine in it weighs on both.
    """
    for model in models:
        if model.rounds:
            low, median, high = np.percentile(model.rounds, (25, 50, 75))
            model.low, model.median, model.high = float(low), float(median), float(high)
    first = models[0]
    for model in models[1:]:
        if first.rounds and model.rounds:
            model.speedup = speedup(first.rounds, model.rounds, seed)


def speedup(first: Sequence[float], other: Sequence[float], seed: int = 0) -> Interval:
    """How many times as fast as the first the other one is; the two are paired by round."""
    count = min(len(first), len(other))
    times: npt.NDArray[np.float64] = np.array([first[:count], other[:count]])
    drawn = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    medians = np.median(times[:, drawn], axis=-1)
    tail = (100.0 - _CONFIDENCE) / 2
    low, high = np.percentile(medians[0] / medians[1], (tail, 100.0 - tail))
    estimate = np.median(times[0]) / np.median(times[1])
    return Interval(estimate=float(estimate), low=float(low), high=float(high))
