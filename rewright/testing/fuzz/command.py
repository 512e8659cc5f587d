"""The command line of the fuzzer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, cast, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rewright.model.errors import RewrightError, UsageError
from rewright.passes.contract import Target
from rewright.registry.catalog import Catalog
from rewright.run import VERIFY_MODES
from rewright.testing.fuzz import findings
from rewright.testing.fuzz.checks import Examiner
from rewright.testing.fuzz.echo import Echo
from rewright.testing.fuzz.process import Assignment, Outcome, fuzz

DONE, FOUND, UNUSABLE = 0, 1, 2
DEFAULT_FOLDER = Path("fuzz-findings")

_CALIBRATED: Final = ("quantize-static", "smooth-quant")
"""Passes that end the run where they are given no data."""


def run(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long, at most.")] = 60.0,
    graphs: Annotated[int | None, typer.Option(min=1, help="How many graphs, at most.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same graphs.")] = 0,
    passes: Annotated[
        str, typer.Option(metavar="NAMES", help="Passes and levels, with commas; by default all that need no data.")
    ] = "",
    keep: Annotated[Path, typer.Option(metavar="FOLDER", help="Where findings are kept.")] = DEFAULT_FOLDER,
    verify: Annotated[str, typer.Option(metavar="MODE", help="How runs are checked: model, sites or strict.")] = "model",
    target: Annotated[str, typer.Option(metavar="TARGET", help="Where results run: cpu, cuda, dml or portable.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    limit: Annotated[float, typer.Option(min=1.0, help="Seconds for one run of a chain; more is a hang.")] = 60.0,
    minimize: Annotated[float, typer.Option(min=0.0, help="Seconds for making one finding small; 0 leaves it.")] = 30.0,
    plugin: Annotated[list[str] | None, typer.Option(help="A plugin's module, beside the installed ones.")] = None,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Without installed plugins.")] = False,
    replay: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Run one finding again, and nothing else.")] = None,
) -> int:
    """Runs every pass over generated graphs: each level, each pass by itself, some in any order.

    A finding is a crash, a wrong result, a hang, a result that changes when the pass runs again or in another process, or a
    model that was written to. It is made small and kept in a folder. Exit status: 1 if there are findings.
    """
    console = Console(highlight=False)
    plugins = tuple(plugin or ())
    catalog = Catalog.load(plugins, not no_plugins)
    if replay is not None:
        with Echo(plugins, not no_plugins) as echo:
            return _replayed(console, Examiner(catalog, limit=limit, echo=echo), replay)
    if verify not in VERIFY_MODES or verify in ("off", "structure"):
        raise UsageError(f"graphs are not checked by '{verify}'.", "Choose --verify model, sites or strict.")
    if target not in get_args(Target):
        raise UsageError(f"there is no target '{target}'.", f"Targets are {', '.join(get_args(Target))}.")
    assignment = Assignment(
        passes=_names(catalog, passes),
        seconds=seconds,
        seed=seed,
        folder=keep,
        graphs=graphs,
        verify=verify,
        target=cast("Target", target),
        limit=limit,
        minimizing=minimize,
        jobs=jobs,
        plugins=plugins,
        autoload=not no_plugins,
    )
    messages = Console(stderr=True, highlight=False)
    with messages.status("generating graphs") as status:
        outcome = fuzz(
            assignment,
            lambda now: status.update(
                f"{now.graphs} graphs, {now.tally.rewrites.total()} rewrites, {len(now.findings)} findings"
            ),
        )
    _show(console, assignment, outcome)
    return FOUND if outcome.findings else DONE


def _names(catalog: Catalog, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    names = names or (*catalog.levels, *(name for name in catalog if name not in _CALIBRATED))
    for name in names:
        if name not in catalog and name not in catalog.levels:
            raise catalog.unknown(name)
    return names


def _replayed(console: Console, examiner: Examiner, folder: Path) -> int:
    found = findings.replay(examiner, findings.read(folder))
    if found is None:
        console.print(f"{folder}: mended")
        return DONE
    console.print(escape(f"{folder}: {found.kind}: {found.culprit}: {found.reason}"), soft_wrap=True)
    return FOUND


def _show(console: Console, assignment: Assignment, outcome: Outcome) -> None:
    tally = outcome.tally
    table = Table(title=f"{outcome.graphs} graphs, seed {assignment.seed}, verify {assignment.verify}", title_justify="left")
    table.add_column("pass")
    for column in ("rewrites", "verified runs", "findings"):
        table.add_column(column, justify="right")
    by_pass: dict[str, int] = {}
    for (_, culprit, _), count in outcome.repeats.items():
        by_pass[culprit] = by_pass.get(culprit, 0) + count
    for name in dict.fromkeys([*tally.rewrites, *tally.verified, *by_pass]):
        table.add_row(name, *(str(counts.get(name, 0)) for counts in (tally.rewrites, tally.verified, by_pass)))
    table.add_section()
    table.add_row("in all", str(tally.rewrites.total()), str(tally.verified.total()), str(sum(by_pass.values())))
    console.print(table)
    ends = ", ".join(f"{count} {end}" for end, count in tally.ends.most_common())
    console.print(f"verified chains: {ends or 'none'}")
    for key, (finding, place) in outcome.findings.items():
        times = outcome.repeats[key]
        text = f"{place}: {finding.kind}, {times} times: {finding.culprit}: {finding.reason}"
        console.print(escape(text), soft_wrap=True)


def main() -> None:
    """The command, with one message for what is wrong with its use."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    try:
        status = app(prog_name="python -m rewright.testing.fuzz", standalone_mode=False)
    except RewrightError as error:
        console = Console(stderr=True, highlight=False)
        console.print(escape(f"error: {error.message}"), soft_wrap=True)
        console.print(escape(f"hint: {error.hint}"), soft_wrap=True)
        status = UNUSABLE
    sys.exit(status if isinstance(status, int) else DONE)
