"""The report read the other way: where each pass fires, and why it does not elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, get_args

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from rewright.report import wording
from rewright.report.model import Fate, FateKind, PassReport, Report
from rewright.report.wording import printable

_LISTED: Final = 8


def show_explanation(report: Report, console: Console | None = None, *, is_complete: bool = False) -> None:
    """Prints what became of each softmax, normalisation and activation, then the sites and rejections of every pass.

    Args:
        report: of a run, verified or not.
        console: standard output by default.
        is_complete: list every site and rejection; otherwise the first few of each kind.
    """
    console = console if console is not None else Console(highlight=False)
    for kind in get_args(FateKind):
        _print_fates(kind, [fate for fate in report.fates if fate.kind == kind], console)
    for number, record in enumerate(report.passes):
        if number:
            console.print()
        _print_pass(record, console, None if is_complete else _LISTED)
    if not report.passes:
        console.print("The chain holds no pass.")


def _print_fates(kind: str, fates: Sequence[Fate], console: Console) -> None:
    """A line for each node, however many there are: what is asked for is each of them."""
    if not fates:
        return
    fused = sum(fate.outcome == "became" for fate in fates)
    whole = sum(map(wording.is_one_op_already, fates))
    already = f", {whole} one op already" if whole else ""
    console.print(Text(kind, "bold").append(f"  {fused} of {_count(len(fates), 'node')} fused{already}", "not bold"))
    for fate in fates:
        style = {"became": "green", "left": "yellow", "removed": "dim"}[fate.outcome]
        line = Text(f"  {printable(fate.node)} ").append(f"({fate.op}) ", "dim").append(printable(wording.fate(fate)), style)
        console.print(line, soft_wrap=True)
    console.print()


def _print_pass(record: PassReport, console: Console, limit: int | None) -> None:
    heading = Text(printable(record.name), "bold cyan")
    if record.backend != "standalone":
        heading.append(f" by {record.backend}", "cyan")
    kept = [site for site in record.sites if site.status == "kept"]
    counts = f"  {_count(len(kept), 'site')}, {_count(len(record.rejections), 'rejection')}"
    if record.undone:
        counts += f", {len(record.undone)} undone"
    console.print(heading.append(counts, "not bold default"))
    if record.status in ("failed", "rolled-back"):
        console.print(Text(f"  {record.status}: {printable(record.reason)}", "red"))
    sites: dict[str, list[str]] = defaultdict(list)
    for site in kept:
        place = (*site.removed, *site.added, site.id)[0]
        where = f"{place} (in {site.graph})" if site.graph and len({s.graph for s in kept}) > 1 else place
        sites[f"{_ops(site.ops_removed)} -> {_ops(site.ops_added)}"].append(where)
    for change, nodes in sorted(sites.items(), key=lambda item: -len(item[1])):
        _print_group("green", f"{len(nodes)}x", change, nodes, console, limit)
    for line in wording.undone_lines(record, limit if limit is not None else len(record.undone)):
        console.print(Text(f"  {printable(line)}", "red"), soft_wrap=True)
    for reason in wording.common_reasons([record]):
        _print_group("yellow", f"{len(reason.nodes)}x", f"not: {reason.text}", reason.nodes, console, limit)
    for note in record.notes:
        console.print(Text(f"  {printable(note)}", "yellow"))


def _print_group(style: str, count: str, what: str, nodes: Sequence[str], console: Console, limit: int | None) -> None:
    console.print(Padding(Text(f"{count} ", style).append(printable(what), "default"), (0, 0, 0, 2), expand=False))
    for node in nodes[:limit]:
        console.print(Text(f"       {printable(node)}", "dim"), soft_wrap=True)
    if limit is not None and len(nodes) > limit:
        console.print(Text(f"       and {len(nodes) - limit} more (--all lists them)", "dim"))


def _ops(ops: Sequence[str]) -> str:
    """ "Mul, Mul, Add" as "Mul x2, Add"; nothing as "nothing"."""
    counts: dict[str, int] = defaultdict(int)
    for op in ops:
        counts[op] += 1
    return ", ".join(op if count == 1 else f"{op} x{count}" for op, count in counts.items()) or "nothing"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
