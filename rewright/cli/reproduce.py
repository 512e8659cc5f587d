"""`rewright reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewright.cli import arguments, console
from rewright.cli.failures import DIFFERENT, DONE, UNUSABLE

if TYPE_CHECKING:
    from rewright.report.model import PassReport


def reproduce(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that a failed pass left.", show_default=False)],
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
    quiet: arguments.Quiet = False,
) -> int:
    """Runs a reproducer folder again. Exit status 1 while it still fails, 0 once it is mended."""
    catalog = arguments.load_catalog(plugins, no_plugins, is_quiet=quiet)

    from rewright import api

    found, result = api.reproduce(folder, catalog=catalog)
    report = result.report
    if as_json:
        console.write(report.to_json())
    elif not quiet:
        from rewright.report.terminal import show

        show(report, console.output())
    failing = [record for record in report.passes if record.status in ("failed", "rolled-back") or record.undone]
    if failing or report.verdict == "failed":
        reason = failing[0].reason if failing else report.reason
        console.error(f"it still fails: {reason}.", f"The model before the pass is {found.model}; the pass: {found.chain}.")
        return DIFFERENT
    is_unsure = any(record.status == "applied" and not _is_compared(record) for record in report.passes)
    if is_unsure and found.verify not in ("off", "structure"):
        console.error(f"whether it is mended cannot be told: {report.reason}.", "Run it where the original failed.")
        return UNUSABLE
    if not quiet:
        console.note(f"mended; it failed because of: {found.reason}")
    return DONE


def _is_compared(record: PassReport) -> bool:
    return record.parity is not None and record.parity.status == "passed"
