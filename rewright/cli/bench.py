"""`rewright bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rewright.cli import arguments, console
from rewright.cli.failures import DIFFERENT, DONE
from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.measure.record import BenchReport, ModelTiming

_WIDE = 110
"""Columns of a terminal that shows load times and memory too."""


def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="The .onnx files; the first is what the others are held against.")
    ],
    inputs: arguments.Inputs = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="NAME=N", help="Size of a dimension of made inputs, such as sequence=128; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="In how many rounds every model has a turn.", min=1)] = 20,
    warmup: Annotated[int, typer.Option("--warmup", help="Rounds before them that are not measured.", min=0)] = 3,
    threads: Annotated[
        int, typer.Option("--threads", help="Intra-op threads; 0 leaves the number to ONNX Runtime, as users do.", min=0)
    ] = 0,
    seed: arguments.Seed = 0,
    as_json: arguments.AsJson = False,
    quiet: arguments.Quiet = False,
) -> int:
    """Measures how long models take on the same inputs, in turns, with ONNX Runtime's optimizations as users run them.

    Each model has a process of its own; the order is drawn anew in each round. Exit status 0: all were measured; 1: one was not.
    """
    from rewright.measure.bench import bench as measure

    with console.progress(not quiet) as progress:
        report = measure(
            models,
            inputs=inputs,
            sizes=sizes_of(sizes or ()),
            seed=seed,
            rounds=rounds,
            warmup=warmup,
            threads=threads,
            progress=progress,
        )
    if as_json:
        console.write(report.to_json())
    elif not quiet:
        show(report)
    for model in report.models:
        if model.error:
            console.error(f"{model.name} could not be measured: {model.error}.".replace("..", "."), "The others were.")
    return DONE if report.is_complete else DIFFERENT


def sizes_of(given: Sequence[str]) -> dict[str, int]:
    """ "sequence=128" and the like, by name.

    Raises:
        UsageError: one of them is no name with a size.
    """
    sizes: dict[str, int] = {}
    for entry in given:
        name, _, number = entry.rpartition("=")
        if not name or not number.isdigit():
            raise UsageError(f"--size is '{entry}'.", "Write it as NAME=N, such as sequence=128.")
        sizes[name] = int(number)
    return sizes


def show(report: BenchReport) -> None:
    """Prints the times as a table."""
    from rewright.report import wording

    screen = console.output()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("model", overflow="fold")
    headings = ["ms", "quartiles", "times as fast", "size"]
    is_wide = screen.width >= _WIDE
    for heading in (*headings, *(("load s", "memory") if is_wide else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in report.models:
        cells = [*_times(model), Text(wording.byte_size(model.nbytes))]
        if is_wide:
            cells += [Text(wording.seconds(model.load_seconds)), Text(wording.byte_size(model.rss_peak))]
        table.add_row(Text(wording.printable(model.name)), *cells)
    screen.print(table)
    threads = f"{report.threads} threads" if report.threads else "threads as ONNX Runtime chooses"
    made = "made: " if report.inputs == "made" else ""
    screen.print(Text(f"inputs {made}{wording.printable('; '.join(report.input_sets))}", "dim"))
    screen.print(Text(f"{report.environment.cpu}, {threads}, {report.optimization}", "dim"))


def milliseconds(seconds: float) -> str:
    """ "0.0123", "1.23", "123": three figures."""
    value = 1000 * seconds
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 4
    return f"{value:.{digits}f}"


def _times(model: ModelTiming) -> list[Text]:
    """Median, quartiles, and how many times as fast as the first one."""
    if model.median is None or model.low is None or model.high is None:
        return [Text("failed", "bold red"), Text(), Text()]
    times = [Text(milliseconds(model.median)), Text(f"{milliseconds(model.low)} to {milliseconds(model.high)}")]
    found = model.speedup
    if found is None:
        return [*times, Text("1", "dim")]
    text = f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})"
    return [*times, Text(text, "green" if found.low > 1 else "red" if found.high < 1 else "")]
