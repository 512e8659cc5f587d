"""Which nodes a quantizing pass takes, and that a pattern which fits nothing is an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from onnx import parser

import rewright
from rewright.api import Chain
from rewright.passes.coverage import Covered
from rewright.passes.session import PassSession, label, op_key
from rewright.quant.selection import Candidate, QuantizingPass
from rewright.registry.catalog import Catalog

MODEL = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x, bool c) => (float[N, 4] y) <float[4, 4] w = {
    1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> {
    [first] a = MatMul(x, w)
    [second] b = MatMul(a, w)
    [head] h = Gemm(b, w)
    y = If(c) <then_branch = t () => (float[N, 4] p) { [inner] p = MatMul(h, w) }, else_branch = e () => (float[N, 4] q) {
        q = Identity(h) }>
}"""


class Taking(QuantizingPass):
    """Takes note of what is chosen."""

    name = "taking"
    quantizes = ("MatMul", "Gemm")

    def quantize(self, session: PassSession, candidates: Sequence[Candidate]) -> None:
        for each in candidates:
            session.coverage.append(Covered(label(each.node), op_key(each.node), "missed", reason="only looking"))


CATALOG = Catalog([]).extended(Taking)


def taken(text: str) -> list[tuple[str, str]]:
    report = Chain(text, catalog=CATALOG).run(parser.parse_model(MODEL)).report
    return [(entry.node, entry.outcome) for entry in report.passes[0].coverage]


def test_everything_by_default_bodies_included() -> None:
    assert taken("taking") == [(name, "missed") for name in ("first", "second", "head", "inner")]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ("operators=[Gemm]", ["head"]),
        ('nodes=["first", "in*"]', ["first", "inner"]),
        ('nodes=["re:^(first|second)$"]', ["first", "second"]),
        ('operators=[MatMul], exclude=["*d"]', ["first", "inner"]),
    ],
)
def test_ops_names_and_patterns(options: str, chosen: list[str]) -> None:
    assert [name for name, outcome in taken(f"taking{{{options}}}") if outcome == "missed"] == chosen


def test_what_is_excluded_is_told_with_the_pattern() -> None:
    report = Chain('taking{exclude=["h*"]}', catalog=CATALOG).run(parser.parse_model(MODEL)).report
    assert [(entry.node, entry.reason) for entry in report.passes[0].coverage if entry.outcome == "excluded"] == [
        ("head", "excluded by 'h*'")
    ]
    assert report.quantization is not None
    assert report.quantization.coverage["Gemm"].model_dump() == {"quantized": 0, "total": 1}


@pytest.mark.parametrize("verify", ["off", "structure", "model"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('exclude=["frist"]', "'frist' in exclude fits no node.*Near names: first"),
        ('nodes=["/lm_head/*"]', "'/lm_head/\\*' in nodes fits no node"),
        ('nodes=["re:^zzz"]', "fits no node"),
    ],
)
def test_a_pattern_that_fits_nothing_ends_the_run(options: str, said: str, verify: Any) -> None:
    with pytest.raises(rewright.UsageError, match=said):
        Chain(f"taking{{{options}}}", catalog=CATALOG).run(parser.parse_model(MODEL), verify=verify)


@pytest.mark.parametrize(
    ("options", "said"), [("operators=[Conv]", "does not quantize Conv"), ('exclude=["re:("]', "no regular expression")]
)
def test_options_that_cannot_be_are_refused_before_the_run(options: str, said: str) -> None:
    with pytest.raises(rewright.UsageError, match=said):
        Chain(f"taking{{{options}}}", catalog=CATALOG)
