"""The report as a file: JSON, or a page of HTML that needs nothing beside it."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rewright.model.errors import ModelError
from rewright.report import quantized, wording
from rewright.report.directory import DirectoryReport
from rewright.report.model import Report

if TYPE_CHECKING:
    from jinja2 import Template

PAGE_SUFFIXES: Final = (".html", ".htm")
_LISTED: Final = 500
"""Sites and rejections that a page lists for one pass; the JSON form has all of them."""


def write(report: Report | DirectoryReport, path: Path) -> None:
    """Writes the report to ``path``, as a page if that ends in ``.html``, else as JSON; through a temporary name.

    Raises:
        ModelError: the file cannot be written; nothing is left of it.
    """
    text = page(report) if path.suffix.lower() in PAGE_SUFFIXES else report.to_json() + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(
            f"cannot write the report {path}: {reason}.", "Check the folder, its permissions and the free space."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def page(report: Report | DirectoryReport) -> str:
    """The report as one self-contained page of HTML. Everything that comes from a model is escaped."""
    if isinstance(report, DirectoryReport):
        return template("rewright.report", "directory.html").render(
            directory=report, wording=wording, quantized=quantized, listed=_LISTED
        )
    return template("rewright.report", "report.html").render(report=report, wording=wording, quantized=quantized, listed=_LISTED)


@cache
def template(package: str, name: str) -> Template:
    """A page among the ``pages`` of a package. What is put into HTML is escaped; a name that it is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "pages"),
        autoescape=name.endswith(PAGE_SUFFIXES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = wording.printable
    return environment.get_template(name)
