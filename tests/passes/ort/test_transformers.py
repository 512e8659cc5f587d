"""The ort-transformers pass: drivers of onnxruntime.transformers under our gates."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import rewright
from rewright.api import Chain
from rewright.model.carrier import stubs
from rewright.model.load import load
from rewright.model.weights import slice_of

ZOO = Path(__file__).parents[2] / "zoo"
BERT = ZOO / "bert.ts17.sdpa.onnx"

Result = rewright.RunResult


def run(options: str, model: Path) -> Result:
    return Chain(f"ort-transformers{{{options}}}").run(model)


def fused(result: Result) -> dict[str, int]:
    return {op: count for op, count in result.report.model.ops_after.items() if op.startswith("com.microsoft::")}


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        (
            "model_type=bert",
            "bert.ts17.sdpa",
            {"Attention": 2, "BiasGelu": 2, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 4},
        ),
        ("model_type=vit, level=none", "vit.ts17.sdpa", {"BiasGelu": 2, "SkipLayerNormalization": 4}),
        ("model_type=gpt2", "gpt2.dyn18.sdpa", {"FastGelu": 2, "SkipLayerNormalization": 4}),
        ("model_type=clip", "clip_text.ts17.sdpa", {"QuickGelu": 2, "SkipLayerNormalization": 4}),
        ("model_type=gpt2, level=0", "llama.dyn18.sdpa", {"SkipSimplifiedLayerNormalization": 4}),
    ],
)
def test_what_a_driver_returns_passes_the_gates(options: str, name: str, expected: dict[str, int]) -> None:
    result = run(options, ZOO / f"{name}.onnx")
    record = result.report.passes[0]
    assert (result.report.verdict, record.status, record.backend) == ("passed", "applied", "ort"), record.reason
    assert fused(result) == {f"com.microsoft::{op}": count for op, count in expected.items()}
    assert len(record.sites) > 1


def test_a_mask_that_does_not_hold_costs_the_attention_only() -> None:
    """Lengths of rows are right for padding on the right; the inputs have it on the left, too."""
    result = run("mask=index", BERT)
    record = result.report.passes[0]
    assert (result.report.verdict, record.status) == ("passed-with-rollbacks", "applied")
    assert fused(result) == {
        "com.microsoft::BiasGelu": 2,
        "com.microsoft::EmbedLayerNormalization": 1,
        "com.microsoft::SkipLayerNormalization": 4,
    }
    assert rewright.verify(BERT, result.model).equal


def test_an_op_without_a_kernel_costs_the_sites_that_need_it_only() -> None:
    """RelativePositionBias of T5 has a kernel for CUDA only."""
    result = run("model_type=t5, level=none", ZOO / "t5_enc.ts17.eager.onnx")
    assert result.report.verdict == "passed-with-rollbacks"
    assert fused(result) == {"com.microsoft::SkipSimplifiedLayerNormalization": 4}
    assert "RelativePositionBias" in result.report.passes[0].reason


def test_switches_turn_fusions_off_and_on() -> None:
    off = 'without=["embed_layer_norm", "skip_layer_norm"]'
    assert fused(run(off, BERT)) == {"com.microsoft::Attention": 2, "com.microsoft::BiasGelu": 2}
    also = run(f'{off}, also=["use_multi_head_attention"]', BERT)
    assert fused(also) == {"com.microsoft::BiasGelu": 2, "com.microsoft::MultiHeadAttention": 2}


def test_a_node_at_which_a_fusion_raises_is_named() -> None:
    notes = run("level=none", ZOO / "modernbert.dyn20.eager.onnx").report.passes[0].notes
    assert any(note.startswith("FusionSkipLayerNormalization raised at ") and "IndexError" in note for note in notes)


def test_weights_that_it_left_alone_stay_where_they_are() -> None:
    before = {tensor.name: slice_of(tensor) for tensor in stubs(load(BERT).proto)}
    after = {tensor.name: slice_of(tensor) for tensor in stubs(run("", BERT).model.proto)}
    kept = [name for name in before if name in after]
    assert len(kept) >= 8
    assert all(after[name] == before[name] for name in kept)


def test_a_saved_result_loads_and_a_second_run_fuses_nothing_more(tmp_path: Path) -> None:
    result = run("", BERT)
    result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    assert rewright.verify(BERT, tmp_path / "out.onnx").equal
    assert fused(run("", tmp_path / "out.onnx")) == fused(result)


def test_a_model_that_ort_cannot_load_is_left_as_it_is() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17, "acme" : 1]> g (float[N, 4] x) => (float[N, 4] y) { y = acme.Mystery(x) }""")
    record = Chain("ort-transformers").run(model).report.passes[0]
    assert record.status == "unchanged"
    assert record.notes[0].startswith("onnxruntime.transformers changed nothing: ")
    assert "Mystery" in record.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("model_type=brt", "option model_type: input should be 'bart', 'bert'.*got 'brt'"),
        ('without=["atention"]', r"the model type bert has no switch 'atention' \(did you mean attention"),
        ('also=["nhwc_conv"]', r"the model type bert has no switch 'nhwc_conv'"),
        ('also=["gelu_approximation"]', "the pass gelu-approximation after this one"),
        ('also=["gelu"], without=["gelu"]', "gelu is both in without and in also"),
        ("heads=4", "heads is 4 and hidden_size is 0; give both"),
        ("heads=5, hidden_size=32", "hidden_size as a multiple of heads"),
        ("level=3", "option level"),
        ("backend=standalone", "has no backend 'standalone'"),
    ],
)
def test_wrong_options_are_one_clear_error(options: str, message: str) -> None:
    with pytest.raises(rewright.UsageError, match=message):
        Chain(f"ort-transformers{{{options}}}")
