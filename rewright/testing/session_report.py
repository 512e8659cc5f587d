"""The report of a test session: every check of a pass with the report of its run, as JSON or as one page of HTML."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rewright.report import wording
from rewright.report.files import PAGE_SUFFIXES, template
from rewright.report.model import PassReport, Report

Check = Mapping[str, Any]
"""``test`` (pytest's id), ``asked`` (chain text), ``problems`` (texts), ``report`` (the run's JSON form)."""


def write(checks: Sequence[Check], path: Path) -> None:
    """Writes the checks to ``path``, as a page if that ends in ``.html``, else as JSON; through a temporary name.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    ordered = sorted(checks, key=lambda check: str(check["test"]))  # workers finish in any order
    text = page(ordered) if path.suffix.lower() in PAGE_SUFFIXES else document(ordered)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def document(checks: Sequence[Check]) -> str:
    """The JSON form: ``{"schema_version": 1, "checks": [...]}``."""
    return json.dumps({"schema_version": 1, "checks": list(checks)}, indent=2) + "\n"


def page(checks: Sequence[Check]) -> str:
    """One self-contained page of HTML. Everything that comes from a test or a model is escaped."""
    rows = [{**check, "report": Report.model_validate(check["report"])} for check in checks]
    return template("rewright.testing", "session.html").render(checks=rows, wording=wording, site_error=_site_error)


def _site_error(record: PassReport) -> float | None:
    """The largest difference that was measured at one of the pass's sites; None where none was run by itself."""
    regions = record.site_parity.regions if record.site_parity is not None else []
    return max((region.max_abs for region in regions if region.max_abs is not None), default=None)
