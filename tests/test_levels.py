"""O2 on real exports, checked after every pass: all attention fused, nothing decomposed left, nothing rolled back."""

from collections import Counter
from pathlib import Path

import pytest

import rewright

ZOO = Path(__file__).parent / "zoo"
ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
DECOMPOSED = {"Softmax", "ReduceMean", "Pow", "Erf", "Sigmoid"}

# Nodes after O2: not more than these. A fusion that no longer fires shows here first.
NODES = {
    "albert.ts17.sdpa": 29,
    "bert.dyn20.eager": 26,
    "bert.dyn23.sdpa": 45,
    "bert.ts14.eager": 28,
    "bert.ts17.sdpa": 28,
    "clip_text.ts17.sdpa": 51,
    "distilbert.ts17.eager": 28,
    "electra.dyn20.eager": 26,
    "gpt2.ts17.eager": 62,
    "llama.ts17.eager": 70,
    "t5_enc.ts17.eager": 48,
    "vit.dyn20.eager": 26,
    "vit.dyn23.sdpa": 38,
    "vit.ts17.sdpa": 29,
}


@pytest.mark.parametrize("path", sorted(ZOO.glob("*.onnx")), ids=lambda path: path.stem)
def test_everything_is_fused_and_verified(path):
    result = rewright.optimize(path)
    assert result.report.verdict == "passed"
    assert [item.name for item in result.report.passes if item.status in ("failed", "rolled-back")] == []
    ops = Counter(node.op_type for node in result.model.proto.graph.node)
    assert sum(ops[op] for op in ATTENTION) == 2
    assert DECOMPOSED & ops.keys() == set()
    assert result.model.node_count() <= NODES.get(path.stem, result.model.node_count())


def test_bert_with_its_embeddings_is_seven_nodes_a_layer():
    """Three for the embeddings, one for the mask, seven for each layer; the pooler has its own four."""
    result = rewright.optimize(ZOO / "bert.ts17.sdpa.onnx", chain="O2, embed-layer-norm")
    assert result.report.verdict == "passed"
    assert result.model.node_count() == 3 + 1 + 2 * 7 + 4
