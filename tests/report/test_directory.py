"""The report of a directory: the worst verdict of its files counts, and every rendering shows all of them."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from rewright.report.directory import DirectoryReport
from rewright.report.files import page
from rewright.report.model import Report


def directory(report: Report, *verdicts: str) -> DirectoryReport:
    made = DirectoryReport(directory="exported", chain="gelu", messages=["a <message>"])
    for number, verdict in enumerate(verdicts):
        reason = "" if verdict.startswith("passed") else f"reason {number}"
        made.add(f"model-{number}.onnx", report.model_copy(update={"verdict": verdict, "reason": reason}))
    return made


@pytest.mark.parametrize(
    ("verdicts", "verdict", "reason"),
    [
        (["passed"], "passed", ""),
        (["passed", "passed-with-rollbacks"], "passed-with-rollbacks", ""),
        (["passed", "unverified", "passed-with-rollbacks"], "unverified", "model-1.onnx: reason 1"),
        (["failed", "unverified", "failed"], "failed", "model-0.onnx: reason 0; model-2.onnx: reason 2"),
    ],
)
def test_the_verdict_is_the_worst_one_with_the_reasons_of_these_files(report, verdicts, verdict, reason):
    made = directory(report, *verdicts)
    assert (made.verdict, made.reason) == (verdict, reason)


def test_a_directory_without_a_file_is_unverified():
    assert DirectoryReport(directory="exported", chain="gelu").verdict == "unverified"


def shown(made: DirectoryReport) -> str:
    stream = StringIO()
    made.show(Console(file=stream, width=120, highlight=False))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (["passed"], "Passed: the one model agrees with its original."),
        (["passed", "passed"], "Passed: all 2 models agree with their originals."),
        (
            ["passed", "passed-with-rollbacks"],
            "Passed with rollbacks: all 2 models agree with their originals, without what failed.",
        ),
        (["failed"], "Failed: nothing was written. model-0.onnx: reason 0"),
        (["unverified"], "Unverified: the numbers were not compared everywhere. model-0.onnx: reason 0"),
    ],
)
def test_every_rendering_ends_with_one_sentence(report, verdicts, sentence):
    made = directory(report, *verdicts)
    assert shown(made).rstrip().endswith(sentence)
    assert sentence in page(made)


def test_the_terminal_shows_each_report_and_then_a_table(report):
    text = shown(directory(report, "passed", "failed"))
    assert text.count("common-subexpression") == 2 * shown(directory(report, "passed")).count("common-subexpression")
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.startswith("model-")}
    assert rows == {"model-0.onnx": "passed", "model-1.onnx": "failed"}
    assert "a <message>" in text


def test_the_page_holds_a_section_for_each_file_and_escapes(report, tmp_path):
    made = directory(report, "passed", "failed")
    made.save(tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    for number in (1, 2):
        assert f'<section id="file-{number}">' in text
        assert f'<a href="#file-{number}">model-{number - 1}.onnx</a>' in text
    assert "a &lt;message&gt;" in text
    assert "<message>" not in text


def test_json_comes_back_as_it_was(report, tmp_path):
    made = directory(report, "passed", "failed")
    made.save(tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content["files"]) == ["model-0.onnx", "model-1.onnx"]
    assert DirectoryReport.model_validate(content) == made
