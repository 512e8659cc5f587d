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
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("", "in the reference", "in the candidate"):
        table.add_column(heading, overflow="fold")
    for heading in ("max error", "rtol needed", "rtol"):
        table.add_column(heading, justify="right", no_wrap=True)
    if divergence.last_agreeing is not None:
        table.add_row(*_row("agrees", "green", divergence.last_agreeing))
    else:
        table.add_row(Text("agrees", "green"), "inputs and weights")
    table.add_row(*_row("differs", "bold red", divergence.first))
    screen.print(table)
    if divergence.first.evidence.message:
        screen.print(Text(f"  {wording.printable(divergence.first.evidence.message)}", "dim"))


def _row(state: str, style: str, compared: ComparedValue) -> list[Text | str]:
    from rewright.report import wording

    evidence = compared.evidence
    figures = (evidence.max_abs, evidence.needed_rtol, evidence.rtol)
    return [Text(state, style), _described(compared.reference), _described(compared.candidate), *map(wording.figure, figures)]


def _described(place: ValuePlace) -> Text:
    from rewright.report import wording

    text = Text(wording.printable(place.name))
    maker = " ".join(filter(None, (place.op, place.node)))
    return text.append(wording.printable(f" ({maker})"), "dim") if maker else text
