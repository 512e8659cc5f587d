"""Checks of output paths before any work starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rewright.model.errors import ModelError, UsageError


def check_output(path: Path, source: Path, what: str) -> None:
    """Checks that a file can be made at ``path`` and that this would not touch ``source``.

    Raises:
        UsageError: the path is the input itself, a folder, or in a folder that does not exist.
        ModelError: the folder cannot be written to.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(f"{what} {path} is a directory.", "Name the file to write.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{what} {path} is a device or a pipe, which is never replaced.", "Name the file to write.")
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} of {what} does not exist.", "Make it, or choose another path.")
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError(f"{what} {path} is the input model, which is never modified.", "Choose another path.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"cannot write {what} {path}: {reason}.", "Choose a folder that you may write to.") from error


def check_report(path: Path, source: Path) -> None:
    """`check_output`, and the suffix, which decides the form."""
    if path.suffix.lower() not in (".json", ".html", ".htm"):
        raise UsageError(f"the report {path} has no known form.", "Name it .json or .html.")
    check_output(path, source, "the report")
