"""The ort-session pass: ONNX Runtime's optimizer under our gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper, parser

import rewright
import rewright.passes.ort.session as session_module
from rewright.api import Chain
from rewright.model.carrier import stubs
from rewright.model.load import load
from rewright.model.weights import slice_of
from rewright.passes.ort import optimizers
from rewright.passes.ort.session import OrtSession
from rewright.passes.session import PassSession
from rewright.registry.catalog import Catalog

ZOO = Path(__file__).parents[2] / "zoo"
BERT = ZOO / "bert.ts17.sdpa.onnx"


def run(step: OrtSession, model: str | Path | onnx.ModelProto) -> rewright.RunResult:
    return Chain([step], catalog=Catalog([])).run(model)


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
@pytest.mark.parametrize("name", ["bert.ts17.sdpa", "vit.ts17.sdpa", "gpt2.dyn18.sdpa", "t5_enc.ts17.eager", "llama.ts17.eager"])
def test_what_ort_returns_passes_the_gates(name: str, level: str) -> None:
    report = run(OrtSession(level=level), ZOO / f"{name}.onnx").report
    assert (report.verdict, report.passes[0].status) == ("passed", "applied"), report.passes[0].reason


def test_only_restricts_it_to_the_named_optimizer() -> None:
    ops = run(OrtSession(only=("GeluFusionL2",)), BERT).report.model.ops_after
    assert ops["com.microsoft::Gelu"] == 2
    assert "com.microsoft::BiasGelu" not in ops
    ops = run(OrtSession(only=("GeluFusionL2", "BiasGeluFusion")), BERT).report.model.ops_after
    assert "com.microsoft::Gelu" not in ops
    assert ops["com.microsoft::BiasGelu"] == 2


def test_an_unknown_optimizer_is_an_error_with_near_names() -> None:
    with pytest.raises(rewright.UsageError, match=r"GeluFusion.*Did you mean GeluFusionL[12]"):
        Chain('ort-session{only=["GeluFusion"]}', catalog=Catalog([]).extended(OrtSession))


@pytest.mark.parametrize("path", sorted(ZOO.glob("*.onnx")), ids=lambda path: path.stem)
def test_with_every_known_name_disabled_nothing_is_fused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of ONNX Runtime with an optimizer that we do not know by name fails here."""
    monkeypatch.setattr(session_module, "all_but", lambda names: list(optimizers.KNOWN))
    session = PassSession(OrtSession(level="all", only=("GeluFusionL2",)), load(path))
    session.current.apply(session)
    added = {op for site in session.sites for op in site.ops_added}
    removed = {op for site in session.sites for op in site.ops_removed}
    # Constant nodes become initializers and doubled Casts vanish in any case; their neighbours are rewired.
    assert added <= {"Cast", "MatMul", "Unsqueeze"}
    assert removed <= {"Cast", "MatMul", "Unsqueeze", "Constant"}


def test_the_models_own_words_survive() -> None:
    model = onnx.load(BERT)
    model.doc_string, model.domain, model.model_version = "what it is", "org.example", 7
    model.metadata_props.add(key="author", value="someone")
    model.graph.doc_string = "the graph"
    result = run(OrtSession(), model)
    proto = result.model.proto
    assert (proto.doc_string, proto.domain, proto.model_version) == ("what it is", "org.example", 7)
    assert [(entry.key, entry.value) for entry in proto.metadata_props] == [("author", "someone")]
    assert proto.graph.doc_string == "the graph"
    assert (proto.producer_name, proto.ir_version) == (model.producer_name, model.ir_version)
    assert {entry.domain for entry in proto.opset_import} == {"", "com.microsoft"}


def test_weights_that_ort_left_alone_stay_where_they_are() -> None:
    source = load(BERT)
    result = run(OrtSession(), BERT)
    before = {slice_of(tensor) for tensor in stubs(source.proto)}
    after = {tensor.name: slice_of(tensor) for tensor in stubs(result.model.proto)}
    kept = [weight for weight in after.values() if weight in before]
    assert len(kept) >= 0.8 * len(before)


def test_a_second_run_changes_nothing_and_a_saved_result_loads(tmp_path: Path) -> None:
    first = run(OrtSession(), BERT)
    assert run(OrtSession(), first.model).report.passes[0].status == "unchanged"
    first.save(tmp_path / "out.onnx")
    assert rewright.verify(BERT, tmp_path / "out.onnx").equal


def test_a_model_that_ort_cannot_load_is_left_as_it_is() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "acme" : 1]> g (float[N, 4] x) => (float[N, 4] y) { y = acme.Mystery(x) }""")
    report = run(OrtSession(), model).report
    assert report.passes[0].status == "unchanged"
    assert "Mystery" in report.passes[0].notes[0]


def test_what_ort_does_wrong_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a bug of ONNX Runtime: the optimized file computes something else."""
    optimize = session_module.call

    def optimize_wrongly(*arguments: Any) -> str:
        path = optimize(*arguments)
        proto = onnx.load(path, load_external_data=False)
        for node in proto.graph.node:
            if node.op_type == "LayerNormalization":
                node.attribute.remove(next(item for item in node.attribute if item.name == "epsilon"))
                node.attribute.append(helper.make_attribute("epsilon", 0.5))
        onnx.save(proto, path)
        return path

    monkeypatch.setattr(session_module, "call", optimize_wrongly)
    result = run(OrtSession(), BERT)
    assert (result.report.verdict, result.report.passes[0].status) == ("passed-with-rollbacks", "applied")
    assert result.report.passes[0].undone
    assert rewright.verify(BERT, result.model).equal
    epsilons = [item.f for node in result.model.proto.graph.node for item in node.attribute if item.name == "epsilon"]
    assert 0.5 not in epsilons
