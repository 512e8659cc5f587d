"""The loop: what is kept, what is undone, what is written down."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import rewright
from rewright.api import Chain
from rewright.model.load import load
from rewright.model.view import View
from rewright.passes.cleanup.dead_code import DeadCode
from rewright.passes.fusion.gelu import Gelu
from rewright.passes.graph_pass import GraphPass, ModelPass, graph_pass
from rewright.passes.pattern_pass import PatternPass
from rewright.passes.session import PassSession
from rewright.registry.catalog import Catalog
from rewright.run import GateError

ZOO = Path(__file__).parent / "zoo"
BERT = ZOO / "bert.ts17.sdpa.onnx"
NO_PLUGINS = Catalog([])


class SoftmaxToSigmoid(PatternPass):
    """Wrong on purpose: replaces softmax by sigmoid."""

    name = "softmax-to-sigmoid"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Softmax(x, axis=-1)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Sigmoid(x)


class Crashing(PatternPass):
    """Wrong on purpose: divides by zero."""

    name = "crashing"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Softmax(x, axis=-1)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Sigmoid(x if 1 // 0 else None)


class Endless(PatternPass):
    """Wrong on purpose: what it makes fits its own pattern."""

    name = "endless"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Softmax(x, axis=-1)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Softmax(op.Identity(x), axis=-1)


class Silent(GraphPass):
    """Wrong on purpose: renames a node and records nothing."""

    name = "silent"

    def run(self, session: PassSession) -> None:
        session.view.graph.nodes[0].name = "renamed"


class Boasting(GraphPass):
    """Wrong on purpose: records a site and changes nothing."""

    name = "boasting"

    def run(self, session: PassSession) -> None:
        session.record(session.view.graph, [], [])


class Dangling(ModelPass):
    """Wrong on purpose: removes the first node of the model."""

    name = "dangling"

    def transform(self, session: PassSession) -> rewright.Model:
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        session.record(session.view.graph, [session.view.graph.nodes[0]], [])
        del proto.graph.node[0]
        return session.model.with_proto(proto)


class DropsAnInput(ModelPass):
    """Wrong on purpose: removes the last graph input, which some models do not use."""

    name = "drops-an-input"

    def transform(self, session: PassSession) -> rewright.Model:
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        session.record(session.view.graph, [], [])
        del proto.graph.input[-1]
        return session.model.with_proto(proto)


def chain(*passes: rewright.Pass) -> Chain:
    return Chain(list(passes), catalog=NO_PLUGINS)


def test_a_sound_pass_is_applied_and_its_numbers_are_reported() -> None:
    result = chain(Gelu()).run(BERT)
    (record,) = result.report.passes
    assert (result.report.verdict, record.status, len(record.sites)) == ("passed", "applied", 2)
    assert result.report.model.ops_after["com.microsoft::Gelu"] == 2
    assert "ai.onnx::Erf" not in result.report.model.ops_after
    assert record.parity is not None
    assert record.parity.status == "passed"
    (logits,) = record.parity.outputs
    assert logits.max_abs is not None
    assert logits.max_abs < 1e-5
    assert len(record.parity.input_sets) >= 3


def test_a_wrong_pass_is_rolled_back_and_the_rest_still_applies(tmp_path: Path) -> None:
    result = chain(SoftmaxToSigmoid(), Gelu()).run(BERT, reproducers=tmp_path)
    wrong, gelu = result.report.passes
    assert result.report.verdict == "passed-with-rollbacks"
    assert wrong.status == "rolled-back"
    assert wrong.reason.startswith("parity: output 'logits'")
    assert {site.status for site in wrong.sites} == {"rolled-back"}
    assert gelu.status == "applied"
    assert "ai.onnx::Softmax" in result.report.model.ops_after
    assert rewright.verify(BERT, result.model).equal


def test_the_reproducer_fails_until_the_pass_is_mended(tmp_path: Path) -> None:
    record = chain(SoftmaxToSigmoid()).run(BERT, reproducers=tmp_path).report.passes[0]
    assert record.reproducer is not None
    folder = Path(record.reproducer)
    assert {path.name for path in folder.iterdir()} == {"before.onnx", "chain.txt", "inputs", "failure.json", "COMMAND"}
    assert json.loads((folder / "failure.json").read_text())["pass"]["name"] == "softmax-to-sigmoid"

    _, again = rewright.reproduce(folder, catalog=NO_PLUGINS.extended(SoftmaxToSigmoid))
    assert again.report.passes[0].status == "rolled-back"

    class Mended(SoftmaxToSigmoid):
        """The same name, now refusing what it cannot prove."""

        def check(self, match: rewright.Match) -> None:
            match.require(False, "a sigmoid is not a softmax")

    _, mended = rewright.reproduce(folder, catalog=NO_PLUGINS.extended(Mended))
    assert mended.report.passes[0].status == "unchanged"
    assert {item.reason for item in mended.report.passes[0].rejections} == {"a sigmoid is not a softmax"}
    assert mended.report.verdict == "passed"


def test_raise_ends_the_run_with_the_report() -> None:
    with pytest.raises(GateError, match="softmax-to-sigmoid") as caught:
        chain(SoftmaxToSigmoid(), Gelu()).run(BERT, on_failure="raise")
    assert caught.value.report.verdict == "failed"
    assert [record.name for record in caught.value.report.passes] == ["softmax-to-sigmoid"]


@pytest.mark.parametrize(
    ("wrong", "status", "reason"),
    [
        (Crashing(), "failed", "ZeroDivisionError"),
        (Endless(), "failed", "fits its own pattern"),
        (Silent(), "failed", "reports no site"),
        (Boasting(), "failed", "changed nothing"),
        (Dangling(), "rolled-back", "structure:"),
        (DropsAnInput(), "rolled-back", "structure:"),
    ],
    ids=lambda value: value.name if isinstance(value, rewright.Pass) else "",
)
def test_a_pass_that_breaks_its_contract_costs_only_itself(wrong: rewright.Pass, status: str, reason: str) -> None:
    result = chain(wrong, Gelu()).run(BERT)
    broken, gelu = result.report.passes
    assert (broken.status, gelu.status) == (status, "applied")
    assert reason in broken.reason
    assert rewright.verify(BERT, result.model).equal


@pytest.mark.parametrize("wrong", [Crashing(), Endless()], ids=lambda value: value.name)
def test_a_pass_that_crashes_costs_only_itself_where_nothing_is_verified(wrong: rewright.Pass) -> None:
    result = chain(Gelu(), wrong, DeadCode()).run(BERT, verify="off")
    assert [record.status for record in result.report.passes] == ["applied", "failed", "unchanged"]
    assert rewright.verify(BERT, result.model).equal
    (boasting,) = chain(Boasting()).run(BERT, verify="off").report.passes
    assert boasting.status == "failed"


def test_a_run_that_verifies_nothing_gives_the_same_model(tmp_path: Path) -> None:
    trusted, checked = (rewright.optimize(BERT, tmp_path / mode, level="O2", verify=mode) for mode in ("off", "structure"))
    assert (tmp_path / "off").read_bytes() == (tmp_path / "structure").read_bytes()
    said = [[(record.name, record.status, record.nodes_after) for record in run.report.passes] for run in (trusted, checked)]
    assert said[0] == said[1]


def test_an_unused_input_may_not_vanish() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x, float[N] unused) => (float[N, 4] y) { y = Relu(x) }"""
    )
    (record,) = chain(DropsAnInput()).run(model).report.passes
    assert record.status == "rolled-back"
    assert record.reason.startswith("interface:")


def test_structure_mode_measures_no_parity_and_says_so() -> None:
    report = chain(Gelu()).run(BERT, verify="structure").report
    assert report.verdict == "unverified"
    assert report.parity is None
    assert report.passes[0].kernels is not None
    assert report.passes[0].kernels.status == "passed"


def test_a_model_that_cannot_run_is_rewritten_but_unverified() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) {
            half = Constant<value = float {0.5}>()
            root = Constant<value = float {1.4142135}>()
            one = Constant<value = float {1.0}>()
            z = acme.Mystery(x)
            r = Relu(x)
            d = Div(r, root)
            e = Erf(d)
            s = Add(e, one)
            m = Mul(r, s)
            h = Mul(m, half)
            y = Add(h, z)
        }""")
    report = chain(Gelu()).run(model).report
    assert report.verdict == "unverified"
    assert "Mystery" in report.reason
    assert report.passes[0].status == "applied"


def test_a_gate_that_cannot_fail_proves_nothing() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) {
            zero = Constant<value = float {0.0}>()
            s = Softmax<axis = -1>(x)
            y = Mul(s, zero)
        }""")
    result = chain(SoftmaxToSigmoid()).run(model)
    assert result.report.verdict == "unverified"
    assert "vacuous" in result.report.reason


def test_the_input_is_untouched_and_consecutive_passes_share_one_view(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[View] = []
    make = View.__init__
    monkeypatch.setattr(View, "__init__", lambda self, model: (opened.append(self), make(self, model))[1])
    proto = onnx.load(BERT)
    before = proto.SerializeToString(deterministic=True)
    chain(Gelu(), Gelu()).run(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert len(opened) == 1


def test_a_second_run_changes_nothing() -> None:
    first = chain(Gelu()).run(BERT)
    second = chain(Gelu()).run(first.model)
    assert second.report.passes[0].status == "unchanged"
    assert second.model.fingerprint() == first.model.fingerprint()


def test_a_decorated_function_is_a_pass() -> None:
    @graph_pass("gelu-names")
    def rename(graph: Any) -> None:
        """Replaces each Erf by one under another name."""
        for node in [node for node in graph.nodes if node.op == "Erf"]:
            new = type(node)("Erf", node.name + "_again", inputs=list(node.inputs), outputs=list(node.outputs))
            graph.nodes[graph.nodes.index(node)] = new
            node.inputs.clear()
            node.outputs.clear()

    result = Chain([rename()], catalog=NO_PLUGINS).run(BERT)
    (record,) = result.report.passes
    assert (record.status, [site.ops_removed for site in record.sites]) == ("applied", [["Erf"], ["Erf"]])
    assert result.report.verdict == "passed"


def test_a_decorated_function_may_rewire_and_change_values() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
            a = Add(x, w)
            b = Identity(a)
            y = Softmax<axis = 1>(b)
        }""")

    @graph_pass("rewire")
    def rewire(graph: Any) -> None:
        """Reads around Identity nodes."""
        for node in graph.nodes:
            if node.op == "Softmax":
                node.inputs[0] = node.inputs[0].inputs[0].inputs[0]

    @graph_pass("axis")
    def axis(graph: Any) -> None:
        """Writes the softmax axis from the end."""
        for node in graph.nodes:
            if node.op == "Softmax":
                node.attrs["axis"] = -1

    @graph_pass("double", exactness="approximate")
    def double(graph: Any) -> None:
        """Doubles the weight, which is wrong."""
        for node in graph.nodes:
            if node.op == "Add":
                node.inputs[1].values = node.inputs[1].values * 2

    report = Chain([rewire(), axis(), double()], catalog=NO_PLUGINS).run(model).report
    assert [record.status for record in report.passes] == ["applied", "applied", "rolled-back"]
    assert [len(record.sites) for record in report.passes] == [1, 1, 1]


def test_user_inputs_are_used_and_checked(tmp_path: Path) -> None:
    arrays = {
        "input_ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "attention_mask": np.array([[1, 1, 1], [1, 1, 0]]),
        "token_type_ids": np.zeros((2, 3), np.int64),
    }
    np.savez(tmp_path / "batch.npz", **arrays)
    report = chain(Gelu()).run(BERT, inputs=tmp_path / "batch.npz").report
    assert report.parity is not None
    assert report.parity.input_sets == ["batch"]
    with pytest.raises(rewright.UsageError, match="input_ids"):
        chain(Gelu()).run(BERT, inputs={"input_idz": arrays["input_ids"]})


def test_a_native_crash_of_the_candidate_is_a_failed_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewright.verify.process import SessionWorker

    run, start = SessionWorker.run, SessionWorker._start
    doomed: list[bool] = []

    def note_candidates(self: SessionWorker, model: rewright.Model, *args: Any, **kwargs: Any) -> Any:
        doomed[:] = [True] if "com.microsoft::Gelu" in model.op_counts() else []
        return run(self, model, *args, **kwargs)

    def start_and_crash(self: SessionWorker) -> Any:
        child = start(self)
        if doomed:  # after the check that the child lives, as a crash in the midst of a request is
            os.kill(child.process.pid, signal.SIGSEGV)
        return child

    monkeypatch.setattr(SessionWorker, "run", note_candidates)
    monkeypatch.setattr(SessionWorker, "_start", start_and_crash)
    result = chain(Gelu()).run(load(BERT))
    (record,) = result.report.passes
    assert record.status == "rolled-back"
    assert "SIGSEGV" in record.reason
    assert result.report.verdict == "passed-with-rollbacks"


def test_the_report_survives_json() -> None:
    report = chain(SoftmaxToSigmoid(), Gelu()).run(BERT).report
    data = json.loads(report.to_json())
    assert data["schema_version"] == 1
    assert {"verdict", "model", "chain", "environment", "passes", "parity"} <= data.keys()
    assert {"name", "backend", "status", "options", "sites", "rejections", "parity", "seconds", "rss_peak"} <= data["passes"][
        0
    ].keys()
    assert {"name", "max_abs", "max_rel", "rtol", "atol", "needed_rtol", "vacuous"} <= data["parity"]["outputs"][0].keys()
    assert rewright.Report.model_validate(data).verdict == report.verdict


@pytest.mark.parametrize("path", sorted(ZOO.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_whole_level_is_verified_on_every_fixture_and_idle_on_its_result(path: Path) -> None:
    first = rewright.optimize(path)
    assert first.report.verdict == "passed", first.report.reason or [(r.name, r.reason) for r in first.report.passes]
    assert first.report.model.nodes_after < first.report.model.nodes_before
    second = rewright.optimize(first.model, verify="structure")
    assert [record.name for record in second.report.passes if record.status != "unchanged"] == []


class HalfWrong(PatternPass):
    """Wrong on purpose, at the first of the softmaxes that it finds: over the wrong axis."""

    name = "half-wrong"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Softmax(x, axis=-1)

    def check(self, match: Any, x: Any) -> None:
        match.require(match.root.attribute("axis", -1) == -1, "it is rewritten already")

    def rewrite(self, op: Any, match: Any, x: Any) -> Any:
        return op.Softmax(x, axis=2 if "layer.0" in match.root.name else 3)


def half_wrong(**options: Any) -> Any:
    return Chain([HalfWrong(**options)], catalog=NO_PLUGINS)


@pytest.mark.parametrize("verify", ["model", "sites"])
def test_only_the_wrong_site_is_undone(verify: Any) -> None:
    result = half_wrong().run(BERT, verify=verify)
    (record,) = result.report.passes
    assert (result.report.verdict, record.status) == ("passed-with-rollbacks", "applied")
    assert [site.status for site in record.sites].count("kept") == len(record.sites) - 1
    (undone,) = record.undone
    assert "layer.0" in next(site for site in record.sites if site.id == undone.sites[0]).removed[0]
    assert "1 of " in record.reason
    assert [node.attribute[0].i for node in result.model.proto.graph.node if node.op_type == "Softmax"] == [-1, 3]


def test_skip_undoes_the_whole_pass() -> None:
    result = half_wrong().run(BERT, on_failure="skip")
    (record,) = result.report.passes
    assert (result.report.verdict, record.status) == ("passed-with-rollbacks", "rolled-back")
    assert {site.status for site in record.sites} == {"rolled-back"}
    assert result.model.fingerprint() == load(BERT).fingerprint()


def test_the_policy_of_a_pass_outranks_that_of_the_run() -> None:
    with pytest.raises(GateError, match="half-wrong"):
        half_wrong(on_failure="raise").run(BERT)
    assert half_wrong(on_failure="skip").run(BERT, on_failure="raise").report.passes[0].status == "rolled-back"
    assert rewright.Chain("gelu{on_failure=skip}").text == "gelu{on_failure=skip}"


def test_the_report_says_what_was_undone_on_the_terminal_and_on_the_page(tmp_path: Path, capsys: Any) -> None:
    report = half_wrong().run(BERT, verify="sites").report
    report.show()
    shown = capsys.readouterr().out
    assert "half-wrong in part rolled back: 1 of 2 sites were undone" in " ".join(shown.split())
    report.save(tmp_path / "report.html")
    assert "1 of 2 sites were undone" in (tmp_path / "report.html").read_text()
    assert json.loads(report.to_json())["passes"][0]["undone"][0]["sites"]
