"""How a command that writes a model ends: the report, the last message, the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rewright.cli import console
from rewright.cli.failures import DIFFERENT, DONE, UNUSABLE

if TYPE_CHECKING:
    from rewright.report.directory import DirectoryReport
    from rewright.report.model import Report


def deliver(report: Report | DirectoryReport, paths: Sequence[Path], as_json: bool, quiet: bool) -> None:
    """Shows the report, or prints it as JSON, and writes it where that was asked for."""
    if as_json:
        console.write(report.to_json())
    elif not quiet:
        report.show(console.output())
    for path in paths:
        report.save(path)
        if not quiet:
            console.note(f"report: {path}")


def conclude(report: Report | DirectoryReport, verify: str, output: Path, quiet: bool) -> int:
    """The last message, and the exit status that the verdict means."""
    if report.verdict == "failed":
        console.error(f"the result is not what the original was: {report.reason}", f"Nothing was written to {output}.")
        return DIFFERENT
    if report.verdict == "unverified" and verify not in ("off", "structure"):
        console.error(
            f"{report.reason}.".replace("..", "."),
            f"{output} was written without that comparison. `--verify structure` accepts this; --inputs gives other inputs.",
        )
        return UNUSABLE
    if not quiet:
        console.note(f"wrote {output}")
    return DONE
