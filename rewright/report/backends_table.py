"""A comparison of backends on the terminal: one table, and below it what was undone and why something is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewright.report import wording
from rewright.report.backends import BackendComparison, FateComparison, PassComparison, PassOutcome
from rewright.report.model import Fate, FateKind
from rewright.report.wording import printable

_STYLES: Final = {"became": "green", "left": "yellow", "removed": "dim"}


class _Notes:
    """Sentences that cells point to by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """ " [3]" for the third sentence."""
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"


def show_backends(found: BackendComparison, console: Console | None = None, *, is_complete: bool = False) -> None:
    """Prints the comparison.

    Args:
        found: of two or more backends.
        console: standard output by default.
        is_complete: a line for every pass and node; otherwise passes that did nothing anywhere share one, and nodes of one op
            that came to the same.
    """
    console = console if console is not None else Console(highlight=False)
    notes = _Notes()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", overflow="fold", no_wrap=not is_complete)
    for backend in found.runs:
        table.add_column(backend, overflow="fold")
    idle = _add_passes(table, found, notes, is_complete)
    for kind in get_args(FateKind):
        _add_fates(table, kind, [fate for fate in found.fates if fate.kind == kind], notes, is_complete)
    table.add_row()
    table.add_row(
        Text("all nodes", "bold"), *(wording.difference(found.nodes_before, run.nodes_after) for run in found.runs.values())
    )
    table.add_row(Text("seconds", "bold"), *(wording.seconds(run.seconds) for run in found.runs.values()))
    console.print(table)
    if idle:
        console.print(Text(f"\nnothing by any: {', '.join(map(printable, idle))}", "dim"))
    for number, text in enumerate(notes.texts, 1):
        console.print(Text(f"[{number}] {printable(text)}"), soft_wrap=True)
    _print_undone(found, console)


def _add_passes(table: Table, found: BackendComparison, notes: _Notes, is_complete: bool) -> list[str]:
    """A row for each pass; returns the names of those that are not worth one."""
    idle: list[str] = []
    for item in found.passes:
        if not is_complete and not any(_tells(outcome) for outcome in item.backends.values()):
            idle.append(item.name)
            continue
        cells = [_pass_cell(item, backend, outcome, notes) for backend, outcome in item.backends.items()]
        table.add_row(Text(printable(item.name), "bold cyan"), *cells)
    busy = {item.name for item in found.passes if any(map(_tells, item.backends.values()))}
    return [name for name in dict.fromkeys(idle) if name not in busy]


def _tells(outcome: PassOutcome) -> bool:
    return bool(outcome.kept or outcome.undone or outcome.status in ("failed", "rolled-back"))


def _pass_cell(item: PassComparison, backend: str, outcome: PassOutcome, notes: _Notes) -> Text:
    parts = [_sites(count) if maker != "ort" or backend == "ort" else f"{count} by ort" for maker, count in outcome.kept.items()]
    cell = Text(" + ".join(parts), "green") if parts else Text("none", "dim")
    if backend == "ort" and item.declines:
        cell.append(f" by itself{notes.mark(f'{item.name}: not by ONNX Runtime: {item.declines}')}", "dim")
    if outcome.undone:
        cell.append(f", {len(outcome.undone)} undone", "red")
    elif outcome.status in ("failed", "rolled-back"):
        cell.append(f" {outcome.status}{notes.mark(f'{item.name} by {backend}: {outcome.reason}')}", "red")
    return cell


def _sites(count: int) -> str:
    return f"{count:,} site" if count == 1 else f"{count:,} sites"


def _add_fates(table: Table, kind: str, fates: Sequence[FateComparison], notes: _Notes, is_complete: bool) -> None:
    """Nodes of one op with the same fates share a row, unless every one is asked for."""
    if not fates:
        return
    table.add_row()
    backends = list(fates[0].backends)
    fused = [sum(fate.backends[backend].outcome == "became" for fate in fates) for backend in backends]
    table.add_row(Text(f"{kind} nodes", "bold"), *(Text(f"{count} of {len(fates)} fused", "bold") for count in fused))
    groups: dict[tuple[str, ...], list[FateComparison]] = {}
    for fate in fates:
        alike = fate.node if is_complete else ""
        cells = (f"{item.outcome} {item.became} {wording.makers(item)} {_alike(item)}" for item in fate.backends.values())
        groups.setdefault((alike, fate.op, *cells), []).append(fate)
    for members in groups.values():
        count = f"{len(members)}x " if len(members) > 1 else ""
        label = Text(f"  {printable(members[0].node)} ").append(f"({members[0].op})", "dim")
        label = label if is_complete else Text(f"  {count}{members[0].op}")
        table.add_row(label, *(_fate_cell(backend, fate, notes) for backend, fate in members[0].backends.items()))


def _fate_cell(backend: str, fate: Fate, notes: _Notes) -> Text:
    style = _STYLES[fate.outcome]
    if fate.outcome == "became":
        made = Text(printable(fate.became.rpartition("::")[2]), style)
        return made.append(f" ({', '.join(wording.makers(fate))})", "dim") if backend == "auto" else made
    if fate.outcome == "removed":
        return Text("went", style)
    return Text(f"left{notes.mark(wording.fate(fate).removeprefix('left: '))}", style)


def _alike(fate: Fate) -> str:
    """Why a node is left, without what is said of it alone."""
    return wording.unquoted(wording.fate(fate)) if fate.outcome == "left" else ""


def _print_undone(found: BackendComparison, console: Console) -> None:
    """What two backends share is told once."""
    shared: dict[tuple[str, str, str], list[str]] = {}
    for item in found.passes:
        for backend, outcome in item.backends.items():
            for change in outcome.undone:
                ops = ", ".join(dict.fromkeys(op.replace("::", ".") for op in change.ops)) or "its change"
                shared.setdefault((item.name, f"{ops} at {change.nodes[0]}", change.reason), []).append(backend)
    if shared:
        console.print(Text("\nundone by the checks", "bold red"))
    for (name, what, reason), backends in shared.items():
        line = Text(f"  {printable(name)} by {' and '.join(dict.fromkeys(backends))}: {printable(what)}: ")
        console.print(line.append(printable(reason), "red"), soft_wrap=True)
