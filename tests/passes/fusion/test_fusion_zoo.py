"""The fusions of activations and normalisations over real exports: sites found, numbers kept, a second run idle."""

import onnx
import pytest
from pass_harness import ZOO, as_model, parity, run_pass, zoo_feeds

from rewright.passes.fusion.bias_gelu import BiasGelu
from rewright.passes.fusion.bias_skip_layer_norm import BiasSkipLayerNorm
from rewright.passes.fusion.gelu import Gelu
from rewright.passes.fusion.layer_norm import LayerNorm
from rewright.passes.fusion.rms_norm import RmsNorm
from rewright.passes.fusion.skip_layer_norm import SkipLayerNorm
from rewright.passes.fusion.skip_rms_norm import SkipRmsNorm
from rewright.verify.structure import check_structure

CHAIN = (LayerNorm, RmsNorm, Gelu, SkipLayerNorm, SkipRmsNorm, BiasSkipLayerNorm, BiasGelu)


def fuse(model):
    sites = []
    for current in CHAIN:
        session, model = run_pass(current(), model)
        sites.append(len(session.sites))
    return sites, model


# Sites of each pass of the chain, on the exports as they are; bert.ts14 is below opset 17. Some TorchScript exports give
# skip-rms-norm sites after O1 only.
EXPECTED = {
    "albert.ts17.sdpa": [0, 0, 0, 5, 0, 4, 0],
    "bart_enc.dyn20.eager": [0, 0, 0, 5, 0, 4, 2],
    "bert.dyn18.sdpa": [0, 0, 2, 5, 0, 4, 2],
    "bert.dyn20.eager": [0, 0, 0, 5, 0, 4, 2],
    "bert.dyn23.sdpa": [0, 0, 0, 5, 0, 4, 2],
    "bert.ts14.eager": [5, 0, 2, 5, 0, 4, 2],
    "bert.ts17.sdpa": [0, 0, 2, 5, 0, 4, 2],
    "clip_text.ts17.sdpa": [0, 0, 0, 5, 0, 4, 0],
    "distilbert.dyn20.eager": [0, 0, 0, 5, 0, 4, 3],
    "distilbert.ts17.eager": [0, 0, 3, 5, 0, 4, 3],
    "electra.dyn20.eager": [0, 0, 0, 5, 0, 4, 2],
    "gpt2.dyn18.sdpa": [0, 0, 0, 5, 0, 0, 0],
    "gpt2.ts17.eager": [0, 0, 0, 5, 0, 0, 0],
    "llama.dyn18.sdpa": [0, 5, 0, 0, 4, 0, 0],
    "llama.ts17.eager": [0, 5, 0, 0, 0, 0, 0],
    "modernbert.dyn20.eager": [0, 0, 0, 4, 0, 0, 0],
    "mpnet.ts17.eager": [0, 0, 2, 5, 0, 4, 2],
    "roberta.ts17.sdpa": [0, 0, 2, 5, 0, 4, 2],
    "t5_enc.ts17.eager": [0, 5, 0, 0, 0, 0, 0],
    "vit.dyn20.eager": [0, 0, 0, 4, 0, 4, 2],
    "vit.dyn23.sdpa": [0, 0, 0, 4, 0, 4, 2],
    "vit.ts17.sdpa": [0, 0, 2, 4, 0, 4, 2],
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_sites_parity_and_idempotence(name, tmp_path):
    before = as_model(ZOO / f"{name}.onnx")
    sites, after = fuse(before)
    assert sites == EXPECTED[name]
    assert check_structure(before, after).status == "passed"
    if "ai.onnx::SimplifiedLayerNormalization" not in after.op_counts():  # the checker does not know it
        after.save(tmp_path / "after.onnx")
        onnx.checker.check_model(str(tmp_path / "after.onnx"), full_check=True)
    for batch, length in ((1, 5), (3, 9)):
        parity(before, after, zoo_feeds(before, batch, length), rtol=1e-4, atol=1e-5)
    again, same = fuse(after)
    assert again == [0] * len(CHAIN)
    assert same.fingerprint() == after.fingerprint()


def test_every_model_of_the_zoo_is_listed():
    assert sorted(EXPECTED) == sorted(path.stem for path in ZOO.glob("*.onnx"))


def test_a_path_and_a_proto_give_the_same_result():
    path = ZOO / "bert.ts17.sdpa.onnx"
    from_path, from_proto = fuse(as_model(path))[1], fuse(as_model(onnx.load(path)))[1]
    assert from_path.op_counts() == from_proto.op_counts()
    assert [node.name for node in from_path.proto.graph.node] == [node.name for node in from_proto.proto.graph.node]


@pytest.mark.parametrize(
    "order", [(Gelu, SkipLayerNorm, BiasGelu), (SkipLayerNorm, Gelu, BiasGelu), (Gelu, BiasGelu, SkipLayerNorm)]
)
def test_the_order_of_the_passes_does_not_matter_for_what_is_found(order):
    """Shapes are inferred through fused ops: a Gelu that onnx has no schema for hides nothing from the next pass."""
    model, sites = as_model(ZOO / "bert.ts17.sdpa.onnx"), {}
    for current in order:
        session, model = run_pass(current(), model)
        sites[current] = len(session.sites)
    assert sites == {Gelu: 2, SkipLayerNorm: 5, BiasGelu: 2}


def test_an_export_below_opset_17_is_raised():
    session, after = run_pass(LayerNorm(), ZOO / "bert.ts14.eager.onnx")
    assert len(session.sites) == 5
    assert after.proto.opset_import[0].version == 17
    assert session.notes == ["the opset was raised from 14 to 17, where LayerNormalization is standard"]
