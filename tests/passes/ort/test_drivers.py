"""Drivers of model types of onnxruntime.transformers, run on a skeleton as the worker process does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto

import rewright
from rewright.model.load import load
from rewright.passes.ort import drivers
from rewright.passes.ort.model_types import MODEL_TYPES, switches_of

ZOO = Path(__file__).parents[2] / "zoo"
BERT = ZOO / "bert.ts17.sdpa.onnx"
VIT = ZOO / "vit.ts17.sdpa.onnx"


def run(source: Path | ModelProto, folder: Path, model_type: str, **more: Any) -> dict[str, Any]:
    proto = onnx.load(source) if isinstance(source, Path) else source
    model = load(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    return drivers.run(
        model.session_bytes(), {"root": model.SESSION_FOLDER, "folder": str(folder), "model_type": model_type, **more}
    )


def test_the_model_types_and_switches_are_those_of_the_installed_version() -> None:
    """A model type or a switch that a new version brings fails here."""
    assert set(drivers.model_types()) == set(MODEL_TYPES)
    assert {name: set(drivers.switches(name)) for name in MODEL_TYPES} == {name: set(switches_of(name)) for name in MODEL_TYPES}
    assert {level for _, _, level in drivers.model_types().values()} <= set(drivers.LEVELS)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_driver_fuses_as_it_does_by_itself(level: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reply = run(BERT, tmp_path, "bert", opt_level=level, mask_format="raw")
    assert (reply["errors"], reply["left_out"], reply["opt_level"]) == ({}, {}, level)
    assert capfd.readouterr() == ("", "")
    assert reply["fired"]["com.microsoft::BiasGelu"] == 2
    assert reply["fired"]["com.microsoft::SkipLayerNormalization"] >= 3
    assert rewright.verify(BERT, reply["path"]).equal
    before, after = onnx.load(BERT), onnx.load(reply["path"])
    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    onnx.checker.check_model(after)


def test_switches_and_the_level_that_the_type_wants(tmp_path: Path) -> None:
    reply = run(VIT, tmp_path, "vit", options={"bias_gelu": False, "skip_layer_norm": False})
    assert reply["opt_level"] == 1
    assert reply["fired"]["com.microsoft::Gelu"] == 2
    assert "com.microsoft::SkipLayerNormalization" not in reply["fired"]
    assert rewright.verify(VIT, reply["path"]).equal


@pytest.mark.parametrize(
    ("model_type", "more", "message"),
    [
        ("brt", {}, "no model type 'brt'; did you mean bert"),
        ("resnet", {"opt_level": 0}, "no model type 'resnet'"),
        ("bert", {"options": {"bias_gelus": False}}, "the model type bert has no switch 'bias_gelus'; did you mean bias_gelu"),
        ("bert", {"options": {"nhwc_conv": False}}, "the model type bert has no switch 'nhwc_conv'"),
        ("bert", {"opt_level": 3}, "the level 3 is none of 0, 1, 2, 99"),
        ("bert", {"mask_format": "left"}, "the mask format 'left' is none of raw"),
        ("bert", {"num_heads": 3, "hidden_size": 32}, "hidden_size 32 is no multiple of num_heads 3"),
    ],
)
def test_what_is_unknown_is_an_error(model_type: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(BERT, tmp_path, model_type, **more)


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name != "phi"])
def test_every_driver_goes_over_a_model_of_another_type(model_type: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y)
        <float sqrt2 = {1.4142135}, float one = {1}, float half = {0.5}> {
        s = Div(x, sqrt2) e = Erf(s) a = Add(e, one) m = Mul(x, a) y = Mul(m, half) }""")
    reply = run(model, tmp_path, model_type, opt_level=0)
    assert reply["fired"] == {"com.microsoft::Gelu": 1}
    assert [node.op_type for node in onnx.load(reply["path"]).graph.node] == ["Gelu"]


def test_a_node_at_which_a_fusion_raises_is_left_as_it_was(tmp_path: Path) -> None:
    """ModernBERT normalises without a bias, and FusionSkipLayerNormalization takes the third input for granted."""
    reply = run(ZOO / "modernbert.dyn20.eager.onnx", tmp_path, "bert", opt_level=0)
    assert set(reply["left_out"]) == {"FusionSkipLayerNormalization"}
    reasons = reply["left_out"]["FusionSkipLayerNormalization"].values()
    assert len(reasons) > 1
    assert all(reason.startswith("IndexError: list index out of range (in fusion_skiplayernorm.py, ") for reason in reasons)
    assert any("and 3 more, which it therefore left alone" in note for note in reply["notes"])
    assert "com.microsoft::SkipLayerNormalization" not in reply["fired"]


def test_neither_torch_nor_sympy_is_imported(tmp_path: Path) -> None:
    code = """
import sys
for name in ("torch", "sympy", "transformers", "optimum", "onnxscript"):
    sys.modules[name] = None  # importing it raises
from rewright.model.load import load
from rewright.passes.ort import drivers
model = load(sys.argv[1])
reply = drivers.run(model.session_bytes(), {"root": "/", "folder": sys.argv[2], "model_type": "bert"})
assert reply["fired"]["com.microsoft::BiasGelu"] == 2, reply
"""
    subprocess.run([sys.executable, "-c", code, str(BERT), str(tmp_path)], check=True, capture_output=True, text=True)
