"""Passes that ONNX Runtime carries out: what is kept, what is left out, and what happens when it dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import parser

import rewright
from rewright.api import Chain
from rewright.model.carrier import stubs
from rewright.model.load import load
from rewright.passes.deferral import Deferral
from rewright.passes.fusion.gelu import Gelu
from rewright.passes.ort import carrying, exchange
from rewright.passes.pattern_pass import PatternPass
from rewright.passes.session import PassSession
from rewright.registry.catalog import default_catalog
from rewright.verify.process import CallError, SessionCrash, SessionWorker

ZOO = Path(__file__).parents[2] / "zoo"
BERT = ZOO / "bert.ts17.sdpa.onnx"
GELU = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
<float root = {1.41421354}, float one = {1}, float half = {0.5}, float[4, 4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> {
    i = Identity(x)  d = Div(i, root)  e = Erf(d)  p = Add(e, one)  m = Mul(i, p)  y = Mul(m, half)
    t = MatMul(x, w)  s = Identity(t)  z = Tanh(s)
}"""


def die(payload: bytes, arguments: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(payload: bytes, arguments: dict[str, Any]) -> None:
    while True:
        pass


def echo(payload: bytes, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": len(payload), "pid": os.getpid(), **arguments}


def complain(payload: bytes, arguments: dict[str, Any]) -> None:
    raise IndexError("nothing there")


def applied(model: Any, chain: str, **options: Any) -> rewright.RunResult:
    return Chain(chain).run(model, **options)


def test_the_worker_calls_a_function_elsewhere_and_survives_what_becomes_of_it() -> None:
    with SessionWorker(timeout=20.0) as worker:
        found = worker.call(f"{__name__}:echo", b"abc", {"more": [1, "two"]})
        assert found == {"bytes": 3, "pid": worker.pid, "more": [1, "two"]}
        assert found["pid"] != os.getpid()
        with pytest.raises(CallError, match="nothing there") as raised:
            worker.call(f"{__name__}:complain", b"", {})
        assert raised.value.kind == "IndexError"
        with pytest.raises(SessionCrash, match="SIGSEGV"):
            worker.call(f"{__name__}:die", b"", {})
        assert worker.call(f"{__name__}:echo", b"", {})["bytes"] == 0
    with SessionWorker(timeout=1.0) as worker, pytest.raises(SessionCrash, match="took longer than 1 s"):
        worker.call(f"{__name__}:hang", b"", {})


def test_a_deferred_pass_does_what_was_asked_for_and_nothing_else() -> None:
    result = applied(parser.parse_model(GELU), "gelu{backend=ort}")
    record = result.report.passes[0]
    assert (record.status, record.backend, result.report.verdict) == ("applied", "ort", "passed")
    assert [node.op_type for node in result.model.proto.graph.node].count("Gelu") == 1
    assert any(node.op_type == "Identity" and node.output[0] == "s" for node in result.model.proto.graph.node)
    assert record.site_parity is not None
    assert record.site_parity.status == "passed"
    assert any("GeluFusionL2" in note for note in record.notes)
    fused = next(node for node in result.model.proto.graph.node if node.op_type == "Gelu")
    assert {entry.key: entry.value for entry in fused.metadata_props}["rewright.pass"] == "gelu"


def test_what_it_leaves_is_a_rejection() -> None:
    model = parser.parse_model(GELU.replace("float half = {0.5}", "float half = {0.4}"))
    record = applied(model, "gelu{backend=ort}").report.passes[0]
    assert record.status == "unchanged"
    assert [(entry.node, "does not say why" in entry.reason) for entry in record.rejections] == [("e", True)]


def test_without_an_anchor_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "OPTIMIZE", "nowhere:nothing")
    monkeypatch.setattr(carrying, "RUN_CLASSES", "nowhere:nothing")
    record = applied(parser.parse_model(GELU), "fast-gelu{backend=ort}, gelu{backend=ort}").report.passes
    assert record[0].notes == [] or "nowhere" in " ".join(record[0].notes)
    assert "No module named 'nowhere'" in " ".join(record[1].notes)


def test_auto_is_its_own_rewrite_and_then_onnx_runtimes() -> None:
    result = rewright.optimize(BERT, chain="gelu", backend="auto")
    assert [(record.name, record.backend) for record in result.report.passes] == [("gelu", "standalone"), ("gelu", "ort")]
    assert [record.status for record in result.report.passes] == ["applied", "unchanged"]
    assert result.report.chain == "gelu{backend=auto}"


class ShyGelu(Gelu):
    """Gelu that finds nothing itself."""

    name = "shy-gelu"
    ort: ClassVar[Deferral | None] = Gelu.ort

    def check(self, match: Any, x: Any) -> None:
        match.require(False, "shy")


def test_auto_takes_from_onnx_runtime_what_its_own_rewrite_leaves() -> None:
    catalog = default_catalog().extended(ShyGelu)
    report = Chain("shy-gelu{backend=auto}", catalog=catalog).run(BERT).report
    assert [(record.backend, record.status, len(record.sites)) for record in report.passes] == [
        ("standalone", "unchanged", 0),
        ("ort", "applied", 2),
    ]
    assert report.passes[0].rejections


@pytest.mark.parametrize("verify", ["model", "structure", "off"])
def test_an_optimizer_that_takes_its_process_down_changes_nothing(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "OPTIMIZE", f"{__name__}:die")
    result = applied(BERT, "gelu{backend=ort}, layer-norm", verify=verify)
    first, second = result.report.passes
    assert "died of SIGSEGV" in " ".join(first.notes)
    assert second.status in ("applied", "unchanged")
    assert result.report.verdict in ("passed", "unverified")


class Careless(PatternPass):
    """Declares more of ONNX Runtime than it should."""

    name = "careless"
    exactness = "exact"
    ort: ClassVar[Deferral | None] = Deferral(optimizers=("GeluFusionL2", "EliminateIdentity"), makes=("com.microsoft::Gelu",))

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Erf(x)


def test_a_wrong_site_is_undone_in_every_mode_that_checks_something() -> None:
    """Gelu is not bit-equal to its parts, so that a pass that promises exactness is wrong about it."""
    chain = Chain([Careless(backend="ort")], catalog=default_catalog().extended(Careless))
    for verify in ("structure", "model", "sites"):
        record = chain.run(BERT, verify=verify).report.passes[0]  # type: ignore[arg-type]
        assert record.status in ("rolled-back", "applied"), verify
        assert record.undone, verify
    assert chain.run(BERT, verify="off").report.passes[0].status == "applied"


def test_what_cannot_be_compared_is_not_kept() -> None:
    model = parser.parse_model(GELU.replace('"" : 17', '"" : 17, "acme" : 1').replace("i = Identity(x)", "i = acme.Mystery(x)"))
    record = applied(model, "gelu{backend=ort}").report.passes[0]
    assert record.status in ("unchanged", "rolled-back")


def test_large_weights_are_not_handed_over_where_nothing_looks_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    model = parser.parse_model(GELU)
    large = onnx.numpy_helper.from_array(rng.standard_normal((4, 40000), dtype=np.float32), "large")
    model.graph.initializer.append(large)
    model.graph.node.add(op_type="MatMul", input=["y", "large"], output=["far"])
    model.graph.output.add(name="far").type.tensor_type.elem_type = 1
    seen: list[bytes] = []
    real = carrying.call

    def spying(session: PassSession, function: str, payload: bytes, arguments: Any) -> Any:
        seen.append(payload)
        return real(session, function, payload, arguments)

    monkeypatch.setattr(carrying, "call", spying)
    result = applied(model, "gelu{backend=ort}")
    assert result.report.passes[0].status == "applied"
    for payload in seen:
        given = onnx.ModelProto.FromString(payload)
        assert "large" in {value.name for value in given.graph.input}
        assert "large" not in {tensor.name for tensor in given.graph.initializer}
    assert [value.name for value in result.model.proto.graph.input] == ["x"]
    assert "large" in {tensor.name for tensor in stubs(result.model.proto)}
    assert not list(result.model.files.scratch.glob("ort-*")) or not any(
        path.stat().st_size > 100_000 for folder in result.model.files.scratch.glob("ort-*") for path in folder.iterdir()
    )


def test_a_pass_whose_ort_backend_declines_has_its_own_alone() -> None:
    with pytest.raises(rewright.UsageError, match="dead-code has no backend 'ort'"):
        Chain("dead-code{backend=ort}")
    chain, without = Chain("O2").with_backend("ort")
    assert {"dead-code", "inline-functions", "group-query-attention"} == set(without)
    assert all(step.is_deferred for step in chain.passes if step.name not in without)


def test_deferred_passes_change_nothing_the_second_time() -> None:
    first = rewright.optimize(BERT, backend="ort").model
    again = rewright.optimize(load_of(first), backend="ort").report
    assert {record.status for record in again.passes} <= {"unchanged"}, [
        (record.name, record.status) for record in again.passes if record.status != "unchanged"
    ]


def load_of(model: rewright.Model) -> rewright.Model:
    return load(model)


def test_hidden_weights_come_back_where_no_process_is_there() -> None:
    """Passes that are applied without a run do their work in this process."""
    session = PassSession(Gelu(backend="ort"), load(BERT))
    carrying.carry_out(session.current, session)
    assert session.result is not None
    assert len(session.sites) == 2
    assert {tensor.name for tensor in session.result.proto.graph.initializer} <= {
        tensor.name for tensor in session.model.proto.graph.initializer
    }
    assert exchange.OPTIMIZE.startswith("rewright.passes.ort.native")


def test_what_several_places_share_does_not_make_one_site_of_them() -> None:
    """FusionAttention reads one converted mask in every layer."""
    chain, _ = Chain("O2").with_backend("ort")
    record = next(record for record in chain.run(BERT).report.passes if record.name == "attention")
    assert [site.ops_added.count("com.microsoft::Attention") for site in record.sites] == [1, 1]
    assert record.site_parity is not None
    assert [len(region.sites) for region in record.site_parity.regions] == [1, 1]
