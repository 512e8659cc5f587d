"""Runs a suite of tests in a pytest of its own, in this process."""

from __future__ import annotations

import pytest


def outcomes(pytester: pytest.Pytester, source: str, *options: str) -> dict[str, set[str]]:
    """Names of test functions by outcome; one that has failed for some parameters has failed."""
    path = pytester.makepyfile(test_suite=source)
    reports = pytester.inline_run(path, "-p", "no:cacheprovider", "-p", "no:xdist", *options).listoutcomes()
    names = [{report.nodeid.rpartition("::")[2].partition("[")[0] for report in found} for found in reports]
    return dict(zip(("passed", "skipped", "failed"), names, strict=True))
