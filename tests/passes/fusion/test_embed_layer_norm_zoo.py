"""embed-layer-norm after O2, on real exports: what becomes of the embeddings, at batch 1 and 3."""

import pytest
from pass_harness import ZOO, parity, run_pass, zoo_feeds

from rewright.api import Chain
from rewright.passes.cleanup.dead_code import DeadCode
from rewright.passes.fusion.embed_layer_norm import EmbedLayerNorm

OPTIONAL = {1: "segment_ids", 8: "position_ids"}
EXPECTED = {
    "albert.ts17.sdpa": {"segment_ids"},
    "bart_enc.dyn20.eager": set(),
    "bert.dyn18.sdpa": {"segment_ids"},
    "bert.dyn20.eager": {"segment_ids"},
    "bert.dyn23.sdpa": {"segment_ids"},
    "bert.ts14.eager": {"segment_ids"},
    "bert.ts17.sdpa": {"segment_ids"},
    "clip_text.ts17.sdpa": set(),
    "distilbert.dyn20.eager": set(),
    "distilbert.ts17.eager": set(),
    "electra.dyn20.eager": {"segment_ids"},
    "gpt2.dyn18.sdpa": set(),
    "gpt2.ts17.eager": set(),
    "mpnet.ts17.eager": {"position_ids"},
    "roberta.ts17.sdpa": {"position_ids"},  # token types are left out by the export
}
OTHERS = [
    "llama.dyn18.sdpa",
    "llama.ts17.eager",
    "modernbert.dyn20.eager",
    "t5_enc.ts17.eager",
    "vit.ts17.sdpa",
]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_embeddings_of_real_exports(name):
    before = Chain("O2").run(ZOO / f"{name}.onnx", verify="off").model
    session, after = run_pass(EmbedLayerNorm(), before)
    assert len(session.sites) == 1, session.rejections
    node = next(node for node in after.proto.graph.node if node.op_type == "EmbedLayerNormalization")
    assert {OPTIONAL[place] for place in OPTIONAL if place < len(node.input) and node.input[place]} == EXPECTED[name]
    assert not run_pass(DeadCode(), after)[0].sites
    again, _ = run_pass(EmbedLayerNorm(), after)
    assert not again.sites
    for batch in (1, 3):
        parity(before, after, zoo_feeds(before, batch, 7), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_models_without_such_embeddings_stay(name):
    before = Chain("O2").run(ZOO / f"{name}.onnx", verify="off").model
    session, after = run_pass(EmbedLayerNorm(), before)
    assert not session.sites
    assert after.fingerprint() == before.fingerprint()


def test_after_o2_two_layers_of_bert_are_eighteen_nodes():
    """Three, and the Cast of the mask, for the embeddings; seven for each layer. What follows is the model's pooler."""
    result = Chain("O2, embed-layer-norm").run(ZOO / "bert.ts17.sdpa.onnx")
    assert result.report.verdict == "passed"
    ops = [node.op_type for node in result.model.proto.graph.node]
    layer = ["Attention", "MatMul", "SkipLayerNormalization", "MatMul", "BiasGelu", "MatMul", "SkipLayerNormalization"]
    assert ops[:18] == ["Cast", "Cast", "EmbedLayerNormalization", "Cast", *layer, *layer]
    assert set(ops[18:]) <= {"Gather", "MatMul", "Gemm", "Add", "Tanh"}


def test_the_chain_is_verified():
    result = Chain("O2, embed-layer-norm").run(ZOO / "distilbert.ts17.eager.onnx")
    assert result.report.verdict == "passed"
    assert result.report.passes[-1].sites
