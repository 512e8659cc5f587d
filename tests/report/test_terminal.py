"""The report on a terminal, at several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rewright.report.explanation import show_explanation
from rewright.report.terminal import show
from rewright.verify.expectations import ExpectationEvidence
from rewright.verify.probes import ProbeEvidence


def rendered(report, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    show(report, Console(file=file, width=width, highlight=False))
    file.seek(0)
    return file.read()


def row(text: str, name: str) -> list[str]:
    """The words of the table's row for a pass."""
    return next(line.split() for line in text.splitlines() if name in line.split()[:2])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_terminal(report, width):
    lines = rendered(report, width).splitlines()
    # what is to be copied stays on one line
    assert all(len(line) <= width for line in lines if "rewright reproduce" not in line)


def test_each_pass_has_a_row_with_its_figures(report):
    text = rendered(report)
    assert row(text, "constant-folding") == ["·", "constant-folding", "12,480", "0.00", "0.00"]
    assert row(text, "common-subexpression") == (
        ["✓", "common-subexpression", "1", "11,466", "-1,014", "0", "bit-equal", "1.23", "12.5"]
    )
    assert row(text, "acme-wrong")[:2] == ["↺", "acme-wrong"]
    assert "1.9e-01" in row(text, "acme-wrong")
    assert row(text, "acme-crash")[0] == "✗"
    assert row(text, "gelu") == ["✓", "gelu", "12", "11,382", "-84", "2.1e-06", "3.2e-06/1e-05", "0.50", "0.25"]
    assert row(text, "total") == ["total", "1.73", "12.8"]


def test_the_header_and_the_verdict(report):
    text = rendered(report, 120)
    assert "model    /models/bert.onnx" in text
    assert "12,480 -> 11,382  -9 %" in text
    assert "438.0 MB -> 437.9 MB" in text
    assert "verdict  passed-with-rollbacks" in text
    assert text.rstrip().splitlines()[-1].startswith("Passed with rollbacks: the result agrees with the original")


def test_what_failed_is_told_with_its_reproducer(report):
    text = " ".join(rendered(report, 120).split())
    assert "acme-wrong rolled back: parity: output 'logits' on input set 'set-1': 6 of 6 elements differ too much" in text
    assert "rewright reproduce /models/out.onnx.reproducers/02-acme-wrong" in text
    assert "acme-crash failed: ZeroDivisionError: division by zero (in crash.py, line 7)" in text


def test_rejections_are_grouped_by_reason(report):
    text = " ".join(rendered(report, 120).split())
    assert "3x gelu: the sum is used elsewhere, by '/n0/Add' /n0/Erf" in text
    assert "1x gelu: the dtype is unknown" in text


def test_the_evidence(report):
    text = rendered(report, 120)
    assert "logits: max abs 2.1e-06, needs rtol 3.2e-06 of 1e-05" in text
    assert "mask: max abs 2.1e-06, proves nothing (constant)" in text
    assert "set-0, set-1, set-2, set-3 (1 that the original cannot run on were dropped)" in text
    assert "2 of 3 planted faults noticed" in text
    assert "15.5 s, 1.2 GB peak memory" in text
    assert "gelu asks to run after layer-norm" in text


def test_who_the_inputs_are_from_and_what_was_expected_of_them(report):
    assert "made from the model: set-0, set-1" in rendered(report, 120)
    report.parity.inputs = "plugin"
    facts = {"input_set": "test_data_set_0", "reproduced": True}
    report.parity.expected = [
        ExpectationEvidence(output="logits", **facts),
        ExpectationEvidence(output="mask", **facts | {"reproduced": False}, message="1 of 6 elements differs"),
    ]
    text = rendered(report, 120)
    assert "from a plugin: set-0, set-1" in text
    assert "the original reproduces 1 of 2 expected outputs" in text
    assert "mask of test_data_set_0: 1 of 6 elements differs" in text
    report.parity.inputs = "given"
    assert "given: set-0, set-1" in rendered(report, 120)


def test_agreement_by_noise_alone_is_told(report):
    assert "rounding noise" not in rendered(report, 120)
    report.parity.outputs[0].noise = 3e-5
    assert "(within the rounding noise of the original)" in " ".join(rendered(report, 120).split())


def test_probes(report):
    assert "probes" not in rendered(report, 120)
    report.probes = [
        ProbeEvidence(name="causality", subject="ids", status="held"),
        ProbeEvidence(name="batch", subject="ids", status="not-held"),
        ProbeEvidence(name="padding", subject="mask", status="broken", reason="'y' moves by 0.5"),
        ProbeEvidence(name="cached-steps", status="not-run", reason="no cache"),
    ]
    text = rendered(report, 120)
    assert "probes     held: causality" in text
    assert "broken: padding (mask): 'y' moves by 0.5" in text
    assert "not held by the original: batch" in text
    assert "cached-steps" not in text


def test_names_cannot_drive_the_terminal(report):
    text = rendered(report)
    assert "\x1b" not in text
    assert "\\x1b[31m" in text


def test_a_terminal_that_knows_ascii_only(report):
    text = rendered(report, encoding="ascii")
    assert text.isascii()
    assert row(text, "gelu")[0] == "+"
    assert row(text, "acme-wrong")[0] == "!"


def test_an_empty_chain(report):
    empty = report.model_copy(
        update={"passes": [], "parity": None, "mutation": None, "verdict": "unverified", "reason": "not asked for"}
    )
    text = rendered(empty)
    assert "The chain holds no pass." in text
    assert text.rstrip().endswith("Unverified: the numbers were not compared. not asked for")


def test_an_explanation_groups_alike_sites(report):
    file = io.StringIO()
    show_explanation(report, Console(file=file, width=100, highlight=False))
    text = file.getvalue()
    assert "gelu  12 sites, 4 rejections" in text
    assert "12x Mul, Erf -> com.microsoft::Gelu" in text
    assert "       /encoder/layer.7/Mul_1\n       and 4 more (--all lists them)" in text
    assert "3x not: the sum is used elsewhere, by '/n0/Add'\n       /n0/Erf\n       /n1/Erf\n       /n2/Erf\n" in text
    assert "rolled-back: parity: output 'logits'" in text
    assert "\x1b" not in text
