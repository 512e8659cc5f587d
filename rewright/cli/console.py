"""Where the command line writes: data to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rewright.run import Progress


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # rich would end the process with status 1, which means something else here


def output() -> Console:
    """Standard output, for people."""
    return _Console(highlight=False)


def messages() -> Console:
    """Standard error."""
    return _Console(stderr=True, highlight=False)


def write(text: str) -> None:
    """Writes data, byte for byte, to standard output."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def note(text: str) -> None:
    """Tells something on standard error."""
    messages().print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    """Warns on standard error."""
    messages().print(Text("warning: ", "yellow").append(_spelled(text), "default"), soft_wrap=True)


def error(message: str, hint: str) -> None:
    """The one message of a command that failed; a hint's further lines (a place in a text) stand before the hint."""
    first, _, place = hint.partition("\n")
    console = messages()
    console.print(Text("error: ", "bold red").append(_spelled(message), "not bold default"), soft_wrap=True)
    if place:
        console.print(Text("\n".join(map(_spelled, place.split("\n")))), soft_wrap=True)
    if first.strip():
        console.print(Text("hint: ", "bold").append(_spelled(first.strip()), "not bold"), soft_wrap=True)


def _spelled(text: str) -> str:
    from rewright.report.wording import printable

    return printable(" ".join(text.splitlines()) if "\n" in text else text)


@contextmanager
def progress(is_wanted: bool) -> Iterator[Progress | None]:
    """A progress bar on standard error while a run lasts; none where that is no terminal."""
    console = messages()
    if not is_wanted or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield advance
