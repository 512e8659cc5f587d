"""The report as JSON and as a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from rewright.model.errors import ModelError
from rewright.report.files import page
from rewright.report.model import Report

VOID = {"meta", "br"}


class Structure(HTMLParser):
    """Collects the text, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def parsed(report: Report) -> tuple[Structure, str]:
    structure = Structure()
    structure.feed(page(report))
    structure.close()
    assert structure.open == []
    return structure, " ".join(" ".join(structure.text).split())


def test_the_page_is_well_formed_and_needs_nothing_beside_it(report):
    structure, _ = parsed(report)
    assert structure.links == []
    assert "script" not in structure.tags


def test_the_page_holds_what_the_report_holds(report):
    _, text = parsed(report)
    for expected in (
        "passed-with-rollbacks",
        "common-subexpression applied 1 11,466 -1,014 0 bit-equal 1.23 12.5",
        "acme-wrong: rolled-back",
        "rewright reproduce /models/out.onnx.reproducers/02-acme-wrong",
        "gelu: 12 sites, 4 rejections",
        "com.microsoft::Gelu 0 12",
        "2 of 3 planted faults noticed",
        "plugin acme (acme-rewright 1.2.0): loaded",
        "dropped: set-4 (N=9): Gather index out of range",
    ):
        assert expected in text, expected


def test_names_from_a_model_are_escaped(report):
    text = page(report)
    assert "<script>" not in text
    assert "<b>evil" not in text
    assert "&lt;b&gt;evil&lt;/b&gt;\\x1b[31m" in text


def test_a_page_of_a_huge_run_stays_small(report):
    many = report.passes[-1].model_copy(update={"sites": report.passes[-1].sites * 1000})
    text = page(report.model_copy(update={"passes": [many]}))
    assert "and 11500 more; the JSON report has all" in text
    assert len(text) < 300_000


def test_json_round_trips(report, tmp_path):
    report.save(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert Report.model_validate_json(text) == report
    assert json.loads(text)["schema_version"] == 1


def test_the_suffix_decides_the_form(report, tmp_path):
    for name in ("report.html", "report.HTM"):
        report.save(tmp_path / name)
        assert (tmp_path / name).read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.HTM", "report.html"]


def test_a_report_that_cannot_be_written_leaves_nothing(report, tmp_path):
    with pytest.raises(ModelError, match="cannot write the report") as caught:
        report.save(tmp_path / "absent" / "report.html")
    assert caught.value.hint
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(ModelError):
        report.save(tmp_path / "taken.json")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]


def test_show_prints_to_standard_output(report, capsys):
    report.show()
    assert "Passed with rollbacks" in capsys.readouterr().out
