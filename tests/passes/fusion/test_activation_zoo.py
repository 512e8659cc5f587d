"""The activations of real exports: after the cleanups and their fusions, none is left decomposed."""

from functools import reduce

import pytest
from pass_harness import ZOO, as_model, parity, run_pass, zoo_feeds

from rewright.passes.fusion.bias_gelu import BiasGelu
from rewright.passes.fusion.fast_gelu import FastGelu
from rewright.passes.fusion.gelu import Gelu
from rewright.passes.fusion.quick_gelu import QuickGelu
from rewright.registry.chain import Chain

CHAIN = (Gelu, FastGelu, QuickGelu, BiasGelu)
FUSED = ("ai.onnx::Gelu", "com.microsoft::Gelu", "com.microsoft::BiasGelu", "com.microsoft::FastGelu", "com.microsoft::QuickGelu")

# What each export's activations become: exact with and without bias, tanh, sigmoid. Two layers each; the T5 encoder has Relu.
EXPECTED = {
    "albert": "com.microsoft::FastGelu",
    "gpt2": "com.microsoft::FastGelu",
    "clip_text": "com.microsoft::QuickGelu",
    "llama": "com.microsoft::QuickGelu",
    "t5_enc": None,
    "modernbert": "ai.onnx::Gelu",
}


@pytest.mark.parametrize("name", sorted(path.stem for path in ZOO.glob("*.onnx")))
def test_no_activation_is_left_decomposed(name):
    original = as_model(ZOO / f"{name}.onnx")
    before = reduce(lambda model, step: run_pass(step, model)[1], Chain("O1").passes, original)
    after = reduce(lambda model, step: run_pass(step(), model)[1], CHAIN, before)
    counts = after.op_counts()
    assert not {"ai.onnx::Erf", "ai.onnx::Sigmoid"} & set(counts)
    producers = {value: node.op_type for node in after.proto.graph.node for value in node.output}
    fed = [producers[node.input[0]] for node in after.proto.graph.node if node.op_type == "Tanh"]
    assert fed in ([], ["Gemm"])  # a pooler's
    expected = EXPECTED.get(name.split(".")[0], "com.microsoft::BiasGelu")
    found = {op: counts[op] for op in FUSED if op in counts}
    if expected is None:
        assert not found
    else:
        assert set(found) == {expected}
        assert found[expected] >= 2
    parity(original, after, zoo_feeds(original, 3, 9), rtol=1e-4, atol=1e-5)
