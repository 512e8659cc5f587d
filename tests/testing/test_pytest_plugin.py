"""The pytest plugin: fixtures, the session's report, and nothing where it is not asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
MODEL = "g (float[N, 4] x) => (float[N, 4] y) { i = Identity(x) y = Neg(i) }"

def test_right(check_pass):
    assert check_pass("identity-elimination", MODEL).report.verdict == "passed"

def test_wrong(check_pass):
    check_pass("identity-elimination", MODEL, sites=2)

def test_without_a_check():
    pass
"""


def run(pytester: pytest.Pytester, *options: str | Path) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", *options)


def run_apart(pytester: pytest.Pytester, *options: str | Path) -> pytest.RunResult:
    """In a process of its own, where nothing was imported before."""
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


def test_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import onnx

        def test_catalog(rewright_catalog):
            assert "bias-gelu" in rewright_catalog

        def test_check_pass_and_builder(check_pass, graph_builder):
            g = graph_builder()
            x = g.input("x", "float32", ["N", 4])
            g.output(g.Neg(g.Identity(x)))
            check_pass("identity-elimination", g)

        def test_assert_parity(assert_parity, rewright_tmp, tmp_path):
            text = "g (float[N, 4] x) => (float[N, 4] y) { y = Neg(x) }"
            path = rewright_tmp(text, name="models/neg.onnx")
            assert path == tmp_path / "models" / "neg.onnx"
            assert onnx.load(path).graph.node[0].op_type == "Neg"
            assert_parity(path, text)
        """
    )
    run(pytester).assert_outcomes(passed=3)


def test_the_report_has_every_check_of_the_session(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite=SUITE)
    result = run(pytester, "--rewright-report", "report.json")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["rewright: 2 checks of passes, 2 sites, 1 with problems; report: report.json"])
    data = json.loads((pytester.path / "report.json").read_text())
    assert data["schema_version"] == 1
    assert [(check["test"], check["asked"], check["problems"]) for check in data["checks"]] == [
        ("test_suite.py::test_right", "identity-elimination", []),
        (
            "test_suite.py::test_wrong",
            "identity-elimination",
            ["it fires at 1 site, 2 expected; it gives no reason: no other place in the model came near"],
        ),
    ]
    assert [check["report"]["verdict"] for check in data["checks"]] == ["passed", "passed"]
    assert data["checks"][0]["report"]["passes"][0]["sites"][0]["ops_removed"] == ["Identity"]


def test_the_report_as_a_page_with_the_checks_of_all_workers(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_one=SUITE, test_two=SUITE)
    result = run_apart(pytester, "--rewright-report", "report.html", "-n", "2")
    result.stdout.fnmatch_lines(["rewright: 4 checks of passes, 4 sites, 2 with problems; report: report.html"])
    page = (pytester.path / "report.html").read_text()
    assert page.count("<details") == 4
    assert page.count("<details open") == 2
    for name in ("test_one.py::test_right", "test_two.py::test_wrong", "it fires at 1 site, 2 expected"):
        assert name in page
    assert page.index("test_one.py::test_wrong") < page.index("test_two.py::test_right")


def test_a_report_that_cannot_be_written_is_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite="def test_nothing(): pass")
    result = run(pytester, "--rewright-report", "missing/report.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["rewright: 0 checks of passes, 0 sites, 0 with problems; no report, missing* cannot be written: No such*"]
    )


def test_a_page_escapes_what_comes_from_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("name", ["<script>alert(1)</script>"])
        def test_it(check_pass, name):
            check_pass("identity-elimination", "g (float[N] x) => (float[N] y) { i = Identity(x) y = Neg(i) }")
        """
    )
    run(pytester, "--rewright-report", "report.html").assert_outcomes(passed=1)
    page = (pytester.path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_failure_shows_the_test_and_not_the_kit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite=SUITE)
    result = run(pytester)
    result.assert_outcomes(passed=2, failed=1)
    shown = result.stdout.str()
    assert 'check_pass("identity-elimination", MODEL, sites=2)' in shown
    assert "it fires at 1 site, 2 expected" in shown
    assert "checking.py" not in shown
    result.stdout.no_fnmatch_line("rewright:*")


def test_loading_the_plugin_imports_nothing_of_the_kit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            heavy = {"onnx", "onnxruntime", "numpy", "rewright.api", "rewright.testing.checking", "hypothesis"}
            assert "rewright.testing.pytest_plugin" in sys.modules
            assert not heavy & sys.modules.keys()
        """
    )
    run_apart(pytester, "-p", "no:hypothesispytest").assert_outcomes(passed=1)


def test_the_kit_names_what_it_exports() -> None:
    code = "import rewright.testing as kit; print(all(callable(getattr(kit, name)) for name in kit.__all__), 'parse' in dir(kit))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
