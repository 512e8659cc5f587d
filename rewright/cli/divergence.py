"""Where two models begin to differ, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rewright.verify.divergence import ComparedValue, Divergence, ValuePlace


def show_divergence(divergence: Divergence, screen: Console) -> None:
    """Prints the first value that differs and the last one before it that agrees."""
    from rewright.report import wording

    count = f"{divergence.compared} values compared, {divergence.shared} of them under one name in both"
    screen.print(
        Text("first divergence", "bold").append(f"  on {wording.printable(divergence.input_set)}; {count}", "not bold dim")
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(
        Text("  agrees", "green"), _described(divergence.last_agreeing) if divergence.last_agreeing else "inputs and weights"
    )
    grid.add_row(Text("  differs", "bold red"), _described(divergence.first))
    if divergence.first.evidence.message:
        grid.add_row("", Text(wording.printable(divergence.first.evidence.message), "dim"))
    screen.print(grid)


def _described(compared: ComparedValue) -> Text:
    """The value, what makes it, and its figures."""
    from rewright.report import wording

    reference, candidate = compared.reference, compared.candidate
    text = Text(wording.printable(reference.name))
    if candidate.name != reference.name:
        text.append(f", in the candidate {wording.printable(candidate.name)} (by {compared.matched_by})")
    made = _maker(reference)
    if _maker(candidate) != made:
        made = f"{made}, in the candidate {_maker(candidate)}"
    text.append(f"\nmade by {made}", "dim")
    evidence = compared.evidence
    text.append(f"\nmax error {wording.figure(evidence.max_abs)}")
    if not evidence.equal and evidence.needed_rtol:
        text.append(f", needs rtol {wording.figure(evidence.needed_rtol)} of {wording.figure(evidence.rtol)}")
    return text


def _maker(place: ValuePlace) -> str:
    from rewright.report import wording

    return wording.printable(" ".join(filter(None, (place.op, place.node)))) or "no node"
