"""Measuring models side by side, in turns."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from typing import Any, Final

from onnx import ModelProto

from rewright.measure.record import BenchReport, ModelTiming, summarize
from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.report.environment import environment
from rewright.run.options import Progress
from rewright.verify import worker
from rewright.verify.input_files import Source as Inputs
from rewright.verify.input_files import load_input_sets
from rewright.verify.inputs import InputSet, make_sized_set
from rewright.verify.process import CallError, Optimization, SessionCrash, SessionWorker, first_line, to_wire
from rewright.verify.symbols import Fallback

Source = str | PathLike[str] | ModelProto | Model

DEFAULT_ROUNDS: Final = 20
_TURN_SECONDS: Final = 0.05
"""A turn lasts about this long, so that a model of a few microseconds is not measured by single runs."""

_MOST_RUNS: Final = 100
_USUAL: Final = tuple(Fallback(1, length, 224) for length in (128, 64, 32, 16, 8, 4))
"""Sizes of inputs that are made: the first ones that the models run on, since a small model may have few positions."""


def bench(
    models: Sequence[Source],
    *,
    names: Sequence[str] | None = None,
    inputs: Inputs | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    rounds: int = DEFAULT_ROUNDS,
    warmup: int = 3,
    threads: int = 0,
    optimization: Optimization = "ORT_ENABLE_ALL",
    providers: Sequence[str] = ("CPUExecutionProvider",),
    progress: Progress | None = None,
) -> BenchReport:
    """Measures how long models take, each in a process of its own, in rounds in which every model has a turn.

    The order of the turns is drawn anew in each round, so that a machine that slows down slows all of them down. A model that
    crashes or cannot be loaded has its error in the report, and the others are measured without it.

    Args:
        models: paths, ModelProtos or Models that take the same inputs; none is modified. The first is what the others are held
            against.
        names: what the report calls them; by default the names of their files.
        inputs: what they run on: an .npz file, a folder, arrays by name, or any iterable of such; by default inputs are made
            from the first model. Of several sets the time is the mean.
        sizes: of made inputs, by the names of the dimensions, such as ``{"batch": 8, "sequence": 128}``.
        seed: of made inputs, of the order and of the resampling.
        rounds, warmup: how many rounds are measured, and how many before them are not.
        threads: intra-op threads; 0 leaves the number to ONNX Runtime, as users do.
        optimization: ONNX Runtime's own.
        providers: ONNX Runtime execution providers, in order of preference.
        progress: called with (what, done, total) before each round.

    Raises:
        ModelError: a model cannot be read.
        UsageError: an input, a size or an option is wrong.
    """
    if not models:
        raise UsageError("there is no model to measure.", "Give at least one.")
    if rounds < 1 or warmup < 0 or threads < 0:
        raise UsageError(
            f"rounds is {rounds}, warmup {warmup}, threads {threads}.", "Rounds are 1 or more, the others 0 or more."
        )
    started = time.perf_counter()
    loaded = [load(model) for model in models]
    choices = _choices(loaded[0], inputs, sizes, seed)
    labels = list(names) if names is not None else _labels(loaded)
    timings = [
        ModelTiming(name=label, path=None if model.path is None else str(model.path), nbytes=model.nbytes())
        for label, model in zip(labels, loaded, strict=True)
    ]
    header = {"optimization": optimization, "providers": list(providers), "threads": threads, "folder": Model.SESSION_FOLDER}
    with ExitStack() as stack:
        turns = [
            _Turns(model, timing, header, stack.enter_context(SessionWorker()))
            for model, timing in zip(loaded, timings, strict=True)
        ]
        sets = _hold(turns, choices)
        shuffle = random.Random(seed)
        for number in range(warmup + rounds):
            if progress is not None:
                progress("measuring" if number >= warmup else "warming up", number, warmup + rounds)
            order = [turn for turn in turns if not turn.timing.error]
            shuffle.shuffle(order)
            for turn in order:
                turn.take(is_measured=number >= warmup)
    summarize(timings, seed)
    return BenchReport(
        models=timings,
        inputs=sets[0].origin,
        input_sets=[f"{each.name} ({each.description})" if each.description else each.name for each in sets],
        threads=threads,
        optimization=optimization,
        environment=environment(),
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Turns:
    """One model, the process that holds its session, and what was measured so far."""

    model: Model
    timing: ModelTiming
    header: Mapping[str, Any]
    worker: SessionWorker
    runs: int = 1

    def hold(self, sets: Sequence[InputSet]) -> bool:
        """Makes the session and runs it once on every set; returns whether that worked."""
        self.timing.error = ""
        tensors = {f"{number}/{name}": to_wire(array) for number, each in enumerate(sets) for name, array in each.arrays.items()}
        frame = io.BytesIO()
        worker.write_frame(frame, {**self.header, "sets": len(sets)}, tensors, self.model.session_bytes())
        self.worker.close()  # whatever it held before
        reply = self._call("hold", frame.getvalue(), {})
        if reply is not None:
            self.timing.load_seconds = reply["load_seconds"]
        return reply is not None

    def take(self, *, is_measured: bool) -> None:
        """Runs for a while, and writes down the median."""
        reply = self._call("turn", b"", {"runs": self.runs})
        if reply is None:
            return
        seconds = sorted(reply["seconds"])
        median = seconds[len(seconds) // 2]
        if is_measured:
            self.timing.rounds.append(median)
        else:
            self.runs = max(1, min(_MOST_RUNS, int(_TURN_SECONDS / max(median, 1e-9))))

    def _call(self, function: str, payload: bytes, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            reply: dict[str, Any] = self.worker.call(f"rewright.measure.timing:{function}", payload, arguments)
        except (CallError, SessionCrash) as error:
            self.timing.error = first_line(error.message)
            self.timing.rounds = []
            self.worker.close()
            return None
        self.timing.rss_peak = reply["rss_peak"]
        return reply


def _choices(model: Model, inputs: Inputs | None, sizes: Mapping[str, int] | None, seed: int) -> list[list[InputSet]]:
    """The input sets to measure on; where they are made, in several sizes of which the first that runs is taken."""
    if inputs is not None:
        if sizes:
            raise UsageError("sizes are of inputs that are made, and inputs were given.", "Give one of them.")
        return [load_input_sets(model, inputs)]
    made = [make_sized_set(model, sizes or {}, usual, seed) for usual in _USUAL]
    choices = [[each] for each in made if each is not None]
    if not choices:
        raise UsageError("these sizes do not go together.", "Give inputs of your own by --inputs.")
    return choices


def _hold(turns: Sequence[_Turns], choices: Sequence[Sequence[InputSet]]) -> Sequence[InputSet]:
    """Makes the sessions; returns the inputs that the first model runs on.

    Raises:
        UsageError: it runs on none of them.
    """
    for sets in choices:
        if turns[0].hold(sets):
            for turn in turns[1:]:
                turn.hold(sets)
            return sets
    raise UsageError(
        f"{turns[0].timing.name} cannot be measured: {turns[0].timing.error}.".replace("..", "."),
        "Give inputs that it runs on by --inputs, or sizes by --size.",
    )


def _labels(models: Sequence[Model]) -> list[str]:
    """File names, paths where these are the same, and numbers for models in memory; each is different."""
    names = [model.path.name if model.path is not None else "" for model in models]
    labels: list[str] = []
    for number, (model, name) in enumerate(zip(models, names, strict=True), 1):
        label = f"model {number}" if model.path is None else str(model.path) if names.count(name) > 1 else name
        labels.append(f"{label} ({number})" if label in labels else label)
    return labels
