"""The report of a directory with one or several models: one report for each, and what became of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from rewright.report.model import Report, Verdict

if TYPE_CHECKING:
    from rich.console import Console

_WORST_FIRST: Final[tuple[Verdict, ...]] = ("failed", "unverified", "passed-with-rollbacks", "passed")


class DirectoryReport(BaseModel):
    """The record of one run over a directory.

    Attributes:
        verdict: the worst one of the files.
        reason: why it is not "passed", with the file's name.
        directory: what was read.
        save_dir: what was written; None where nothing was.
        chain: the canonical text that was run on every file.
        messages: what was decided without being asked for, such as which files were not carried over.
        files: the report of each model, by its name relative to the directory.
        carried: what was copied unchanged.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    verdict: Verdict = "unverified"
    reason: str = ""
    directory: str
    save_dir: str | None = None
    chain: str
    messages: list[str] = Field(default_factory=list)
    files: dict[str, Report] = Field(default_factory=dict)
    carried: list[str] = Field(default_factory=list)

    def add(self, name: str, report: Report) -> None:
        """Adds the report of one file; the verdict is from then on the worst one."""
        self.files[name] = report
        self.verdict = next(verdict for verdict in _WORST_FIRST if any(each.verdict == verdict for each in self.files.values()))
        reasons = {name: each.reason for name, each in self.files.items() if each.verdict == self.verdict and each.reason}
        self.reason = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

    def to_json(self) -> str:
        """The JSON form, indented."""
        return self.model_dump_json(indent=2)

    def save(self, path: str | Path) -> None:
        """Writes the report: ``.html`` as a page, anything else as JSON."""
        from rewright.report.files import write

        write(self, Path(path))

    def show(self, console: Console | None = None) -> None:
        """Prints the report to the terminal: to standard output unless a console of rich is given."""
        from rewright.report.terminal import show_directory

        show_directory(self, console)
