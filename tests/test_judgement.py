"""What a run compares on, and what it asks of the result beside equal numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import rewright
from rewright.api import Chain
from rewright.model.errors import PluginError
from rewright.passes.fusion.gelu import Gelu
from rewright.passes.graph_pass import ModelPass
from rewright.passes.session import PassSession
from rewright.registry.catalog import Catalog
from rewright.run import GateError

ZOO = Path(__file__).parent / "zoo"
NO_PLUGINS = Catalog([])

CACHED = """<ir_version: 10, opset_import: ["": 17]>
g (float[batch, seq, 2] x, float[batch, past, 2] past_key) => (float[batch, seq, 2] y, float[batch, total, 2] present_key)
    <int64[1] length = {1}, int64[1] start = {-11}, int64[1] end = {1000}> {
        present_key = Concat<axis = 1>(past_key, x)
        kept = Identity(present_key)
        pooled = ReduceSum<keepdims = 1>(kept, length)
        y = Add(x, pooled)
    }"""
"""The sets that are made have up to ten tokens, past and new."""


class KeepsEleven(ModelPass):
    """Wrong on purpose: forgets all but the last eleven tokens of the cache."""

    name = "keeps-eleven"
    exactness = "reassociating"

    def transform(self, session: PassSession) -> rewright.Model:
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        node = next(node for node in proto.graph.node if node.op_type == "Identity")
        node.op_type = "Slice"
        node.input.extend(["start", "end", "length"])
        session.record(session.view.graph, [node for node in session.view.graph.nodes if node.op == "Identity"][:1], [])
        return session.model.with_proto(proto)


class AddToSum(ModelPass):
    """Right: an Add is a Sum of two."""

    name = "add-to-sum"

    def transform(self, session: PassSession) -> rewright.Model:
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        (node,) = (node for node in proto.graph.node if node.op_type == "Add")
        node.op_type = "Sum"
        session.record(session.view.graph, [node for node in session.view.graph.nodes if node.op == "Add"], [])
        return session.model.with_proto(proto)


class Renames(ModelPass):
    """Right: names the node of the pooled sum."""

    name = "renames"

    def transform(self, session: PassSession) -> rewright.Model:
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        (node,) = (node for node in proto.graph.node if node.op_type == "ReduceSum")
        node.name = "pooling"
        session.record(session.view.graph, [node for node in session.view.graph.nodes if node.op == "ReduceSum"], [])
        return session.model.with_proto(proto)


def probes(report: rewright.Report) -> dict[str, str]:
    return {evidence.name: evidence.status for evidence in report.probes}


def test_a_decoder_keeps_what_it_holds() -> None:
    report = rewright.optimize(ZOO / "gpt2.ts17.eager.onnx").report
    assert report.verdict == "passed"
    assert probes(report) == {"causality": "held", "padding": "held", "batch": "held"}
    assert {evidence.figures["candidate"] < 1e-5 for evidence in report.probes} == {True}
    assert type(report).model_validate_json(report.to_json()).probes == report.probes


def test_a_pass_that_only_a_probe_finds_wrong_is_undone_and_the_others_are_kept() -> None:
    chain = Chain([AddToSum(), KeepsEleven(), Renames()], catalog=NO_PLUGINS)
    report = chain.run(parser.parse_model(CACHED)).report
    assert [record.status for record in report.passes] == ["applied", "rolled-back", "applied"]
    wrong = report.passes[1]
    assert wrong.parity is not None
    assert wrong.parity.status == "passed"
    assert wrong.reason.startswith("the probe 'cached-steps' (past_key): step 3: output 'y' differs by ")
    assert [site.status for site in wrong.sites] == ["rolled-back"]
    assert probes(report)["cached-steps"] == "held"
    assert report.verdict == "passed-with-rollbacks"
    assert report.model.ops_after["ai.onnx::Identity"] == 1
    assert "ai.onnx::Slice" not in report.model.ops_after
    assert report.model.ops_after["ai.onnx::Sum"] == 1


def test_two_such_passes_are_undone_one_after_the_other() -> None:
    chain = Chain([KeepsEleven(), AddToSum(), KeepsEleven()], catalog=NO_PLUGINS)
    twice = CACHED.replace("y = Add(x, pooled)", "again = Identity(pooled) y = Add(x, again)")
    report = chain.run(parser.parse_model(twice)).report
    assert report.verdict == "passed-with-rollbacks"
    assert [(record.name, record.status) for record in report.passes] == [
        ("keeps-eleven", "rolled-back"),
        ("add-to-sum", "applied"),
        ("keeps-eleven", "rolled-back"),
    ]


def test_a_broken_probe_raises_where_the_policy_says_so() -> None:
    chain = Chain([KeepsEleven()], catalog=NO_PLUGINS)
    with pytest.raises(GateError, match=r"the pass 'keeps-eleven' failed: the probe 'cached-steps'") as raised:
        chain.run(parser.parse_model(CACHED), on_failure="raise")
    assert raised.value.report.verdict == "failed"
    assert probes(raised.value.report)["cached-steps"] == "broken"


SENSITIVE = """<ir_version: 10, opset_import: ["": 17]>
g (float[batch, seq, 16] x, float[batch, seq, 16] residual) => (float[batch, seq, 16] y)
    <float[16] ones = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}, float[16] zeros = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0},
     float large = {60}> {
        sum = Add(x, residual)
        normal = LayerNormalization<axis = -1, epsilon = 1e-5>(sum, ones, zeros)
        widened = Mul(normal, large)
        y = Sin(widened)
    }"""
"""What follows the normalisation multiplies its last bit by sixty, as the layers of a decoder may."""


def test_a_fusion_that_rounds_otherwise_is_kept_where_the_model_itself_is_no_quieter(monkeypatch: pytest.MonkeyPatch) -> None:
    report = rewright.optimize(parser.parse_model(SENSITIVE), chain="skip-layer-norm").report
    (record,) = report.passes
    assert record.parity is not None
    (output,) = record.parity.outputs
    assert (record.status, report.verdict) == ("applied", "passed")
    assert output.noise is not None
    assert output.needed_rtol is not None
    assert output.needed_rtol > output.rtol
    monkeypatch.setattr("rewright.verify.comparison.NOISE_CEILING", 0.0)
    without = rewright.optimize(parser.parse_model(SENSITIVE), chain="skip-layer-norm").report
    assert without.passes[0].status == "rolled-back"


def test_nothing_is_probed_where_nothing_has_changed_or_nothing_is_run() -> None:
    bert = ZOO / "bert.ts17.sdpa.onnx"
    assert Chain([], catalog=NO_PLUGINS).run(bert).report.probes == []
    assert Chain([Gelu()], catalog=NO_PLUGINS).run(bert, verify="structure").report.probes == []


RELU = '<ir_version: 10, opset_import: ["": 17]> g (float[B, 4] x) => (float[B, 4] y) { i = Identity(x) y = Relu(i) }'


@pytest.fixture
def offering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A catalog with a plugin that offers these inputs for every model."""

    def made(offer: Any) -> Catalog:
        module = ModuleType("offering_inputs")

        def rewright_input_sets(model: rewright.Model) -> Any:
            return offer

        module.rewright_input_sets = rewright.hookimpl(rewright_input_sets)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "offering_inputs", module)
        return Catalog.load(("offering_inputs",), autoload=False)

    return made


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)}


def test_a_plugins_inputs_are_taken_where_the_caller_gives_none(offering: Any) -> None:
    chain = Chain("identity-elimination", catalog=offering([rows(3)]))
    parity = chain.run(parser.parse_model(RELU)).report.parity
    assert parity is not None
    assert (parity.inputs, parity.input_sets) == ("plugin", ["inputs-0"])
    given = chain.run(parser.parse_model(RELU), inputs=[rows(2), rows(3)]).report.parity
    assert given is not None
    assert (given.inputs, len(given.input_sets)) == ("given", 2)


def test_a_plugins_inputs_that_do_not_fit_are_the_plugins_fault(offering: Any) -> None:
    chain = Chain("identity-elimination", catalog=offering([{"z": np.ones(1)}]))
    with pytest.raises(PluginError, match=r"plugin offering_inputs: rewright_input_sets: .* has an array 'z'"):
        chain.run(parser.parse_model(RELU))
    assert chain.run(parser.parse_model(RELU), verify="structure").report.passes[0].status == "applied"


def test_a_generator_of_inputs() -> None:
    def batches() -> Iterator[dict[str, Any]]:
        yield from (rows(2, seed) for seed in range(3))

    report = rewright.optimize(parser.parse_model(RELU), chain="identity-elimination", inputs=batches()).report
    assert report.parity is not None
    assert report.parity.input_sets == ["inputs-0", "inputs-1", "inputs-2"]
    assert report.verdict == "passed"
