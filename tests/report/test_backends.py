"""Backends beside each other: who did what, what was undone, and why something is left."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from onnx import parser
from rich.console import Console

import rewright
from rewright.passes.contract import Backend
from rewright.passes.fusion.quick_gelu import QuickGelu
from rewright.report.backends import BackendComparison, BackendRun, compare
from rewright.report.backends_table import show_backends
from rewright.report.model import EnvironmentReport, ModelReport, PassReport, Report, SiteReport
from rewright.report.wording import UNSAID

ZOO = Path(__file__).parents[1] / "zoo"
NORMS = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 4, 4] x) => (float[N, 4, 4] y, float[N, 4, 4] z)
    <float[4] w = {1.5, 0.5, 2, -1}, float[4] b = {0.5, -2, 1, 3}, float two = {2}, float eps = {0.00001}> {
        [wrong_mean] m = ReduceMean<axes=[1]>(x)
        d = Sub(x, m)  p = Pow(d, two)
        [wrong] v = ReduceMean<axes=[1]>(p)
        e = Add(v, eps)  s = Sqrt(e)  q = Div(d, s)  r = Mul(q, w)  y = Add(r, b)
        [right_mean] m2 = ReduceMean<axes=[-1]>(x)
        d2 = Sub(x, m2)  p2 = Pow(d2, two)
        [right] v2 = ReduceMean<axes=[-1]>(p2)
        e2 = Add(v2, eps)  s2 = Sqrt(e2)  q2 = Div(d2, s2)  r2 = Mul(q2, w)  z = Add(r2, b)
    }"""
"""Two normalisations, of which the first is over an axis that the last one only looks like: ONNX Runtime fuses both."""

SIGMOIDS = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y)
    <float[1] alpha = {1.702}> {
        a = Mul(x, alpha)  [sigmoid] s = Sigmoid(a)  b = Mul(x, s)
        c = Mul(z, b)  [other] t = Sigmoid(c)  y = Mul(b, t)
    }"""


def site(name: str, removed: list[str]) -> SiteReport:
    ops = ["Sigmoid"], ["com.microsoft::QuickGelu"]
    return SiteReport(
        id=name, status="kept", graph="", removed=removed, added=[f"{name}/QuickGelu"], ops_removed=ops[0], ops_added=ops[1]
    )


def record(name: str, *sites: SiteReport, backend: str) -> PassReport:
    return PassReport(name=name, backend=backend, status="applied", exactness="reassociating", sites=sites)


def report(passes: list[PassReport]) -> Report:
    model = ModelReport(path=None, nodes_before=9, nodes_after=5, ops_before={}, ops_after={}, bytes_before=0, bytes_after=0)
    where = EnvironmentReport(versions={}, providers=[], cpu="")
    return Report(verdict="unverified", model=model, chain="quick-gelu", environment=where, passes=passes)


def compared(text: str | Path, chain: str, **options: object) -> BackendComparison:
    return rewright.compare_backends(parser.parse_model(text) if isinstance(text, str) else text, chain=chain, **options)


def shown(comparison: BackendComparison, width: int = 150, **options: bool) -> list[str]:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        show_backends(comparison, console, **options)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.fixture(scope="module")
def norms() -> BackendComparison:
    return compared(NORMS, "layer-norm, dead-code")


def test_a_wrong_site_of_onnx_runtime_is_undone_and_the_right_one_beside_it_kept(norms):
    item = norms.passes[0]
    assert {backend: outcome.kept for backend, outcome in item.backends.items()} == {
        "standalone": {"standalone": 1},
        "ort": {"ort": 1},
        "auto": {"standalone": 1},
    }
    assert item.backends["standalone"].undone == []
    for backend in ("ort", "auto"):
        (change,) = item.backends[backend].undone
        assert (change.by, change.ops) == ("ort", ["LayerNormalization"])
        assert "wrong" in change.nodes
        assert "right" not in change.nodes
        assert "elements differ too much" in change.reason


def test_nodes_have_a_fate_for_each_backend(norms):
    fates = {fate.node: fate.backends for fate in norms.fates}
    assert list(fates) == ["wrong", "right"]
    assert {backend: fate.outcome for backend, fate in fates["right"].items()} == dict.fromkeys(
        ("standalone", "ort", "auto"), "became"
    )
    assert fates["right"]["ort"].backends == ["ort"]
    assert fates["right"]["auto"].backends == ["standalone"]
    assert {backend: fate.outcome for backend, fate in fates["wrong"].items()} == dict.fromkeys(
        ("standalone", "ort", "auto"), "left"
    )
    assert "not over the last ones" in fates["wrong"]["standalone"].reason
    assert fates["wrong"]["ort"].reason.startswith("layer-norm: undone by the checks: value 'y'")


def test_a_pass_that_onnx_runtime_declines_runs_by_itself_and_the_reason_is_told(norms):
    assert norms.passes[1].declines
    assert norms.runs["ort"].chain == "layer-norm{backend=ort}, dead-code"
    lines = shown(norms, is_complete=True)
    (row,) = (line for line in lines if line.startswith("dead-code"))
    assert "by itself [1]" in row
    assert f"[1] dead-code: not by ONNX Runtime: {norms.passes[1].declines}" in lines


def test_the_table(norms):
    lines = shown(norms)
    assert lines[0].split() == ["standalone", "ort", "auto"]
    assert [word.strip() for word in lines[1].split("  ") if word.strip()] == [
        "layer-norm",
        "1 site",
        "1 site, 1 undone",
        "1 site, 1 undone",
    ]
    assert any(line.startswith("normalisation nodes") and line.count("1 of 2 fused") == 3 for line in lines)
    assert "nothing by any: dead-code" in lines
    place = lines.index("undone by the checks")
    assert lines[place + 1].startswith("  layer-norm by ort and auto: LayerNormalization at ")
    assert len(lines) == place + 2
    assert any("wrong (ReduceMean)" in line for line in shown(norms, is_complete=True))


def test_what_both_have_carried_out_is_one_cell():
    """With the backend auto a pass stands for two steps, of which each has a record."""

    def run(backend: Backend, *kept: tuple[str, int]) -> BackendRun:
        step = QuickGelu(backend=backend)
        sites = {maker: [site(f"s{number}", [f"n{number}"]) for number in range(count)] for maker, count in kept}
        records = [record("quick-gelu", *found, backend=maker) for maker, found in sites.items()]
        return BackendRun([step], report(records))

    found = compare({"standalone": run("standalone", ("standalone", 1)), "auto": run("auto", ("standalone", 2), ("ort", 1))})
    assert found.passes[0].backends["auto"].kept == {"standalone": 2, "ort": 1}
    assert found.passes[0].backends["auto"].added == {"com.microsoft::QuickGelu": 3}
    (row,) = (line for line in shown(found) if line.startswith("quick-gelu"))
    assert re.split(r"\s{2,}", row) == ["quick-gelu", "1 site", "2 sites + 1 by ort"]


def test_json_holds_everything(norms):
    data = json.loads(norms.to_json())
    assert BackendComparison.model_validate(data) == norms
    assert list(data["runs"]) == ["standalone", "ort", "auto"]
    assert data["nodes_before"] == 18
    assert data["runs"]["ort"]["nodes_after"] == 10
    assert data["passes"][0]["backends"]["ort"]["notes"]


def test_an_exported_model():
    found = compared(ZOO / "bert.ts17.sdpa.onnx", "O1, gelu, bias-gelu")
    erf = [fate for fate in found.fates if fate.op == "Erf"]
    assert [{backend: fate.became for backend, fate in item.backends.items()} for item in erf] == [
        dict.fromkeys(("standalone", "ort", "auto"), "com.microsoft::BiasGelu")
    ] * 2
    lines = shown(found)
    (row,) = (line for line in lines if line.startswith("  2x Erf"))
    assert row.count("BiasGelu") == 3
    assert row.endswith("BiasGelu (gelu, bias-gelu)")
    assert sum(line.startswith("constant-folding") for line in lines) <= 2


def test_what_onnx_runtime_leaves_without_a_reason_is_said_so_and_a_better_reason_is_preferred():
    found = compared(ZOO / "bert.ts17.sdpa.onnx", "fast-gelu")
    (tanh,) = (fate.backends for fate in found.fates if fate.op == "Tanh")
    assert UNSAID in tanh["ort"].reason
    assert UNSAID not in tanh["auto"].reason
    assert tanh["auto"].reason == tanh["standalone"].reason


def test_some_backends_only_and_wrong_ones():
    found = compared(SIGMOIDS, "quick-gelu", backends=["auto"])
    assert list(found.runs) == list(found.passes[0].backends) == ["auto"]
    with pytest.raises(rewright.UsageError, match="backend is 'orf'"):
        compared(SIGMOIDS, "quick-gelu", backends=["orf"])
    with pytest.raises(rewright.UsageError, match="no backends to compare"):
        compared(SIGMOIDS, "quick-gelu", backends=[])


def test_one_backend_is_explained_with_its_checks():
    report = rewright.explain(parser.parse_model(NORMS), chain="layer-norm", backend="ort")
    (record,) = report.passes
    assert (record.backend, report.verify, len(record.undone)) == ("ort", "structure", 1)
    assert [site.status for site in record.sites].count("kept") == 1
    assert rewright.explain(parser.parse_model(NORMS), chain="layer-norm").verify == "off"
    with pytest.raises(rewright.UsageError, match="backend is 'orf'"):
        rewright.explain(parser.parse_model(NORMS), chain="layer-norm", backend="orf")
