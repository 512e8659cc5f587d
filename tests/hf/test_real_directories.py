"""What users hand over besides a plain export: Optimum's objects and options, other layouts; and what becomes of the source."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from local_models import LAYERS, RECIPES, SENTENCES
from onnx.external_data_helper import uses_external_data
from optimum.onnxruntime import AutoOptimizationConfig, ORTConfig, ORTModelForSeq2SeqLM, ORTModelForSequenceClassification
from optimum.onnxruntime import OptimizationConfig as OptimumsConfig
from outcome import TOLERANCE, count_attention
from transformers import AutoTokenizer

from rewright.integrations import huggingface

ROOT = Path(__file__).parent.parent.parent
Export = Callable[[str], Path]


def logits(model: Any, folder: Path) -> np.ndarray:
    batch = AutoTokenizer.from_pretrained(folder)(list(SENTENCES), return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**batch).logits.numpy()


def distance(before: Path, after: Path) -> float:
    """The largest difference between what the classifiers of two folders say."""
    first, second = (logits(ORTModelForSequenceClassification.from_pretrained(folder), folder) for folder in (before, after))
    assert np.ptp(first, axis=0).min() > 0.1
    return float(np.abs(first - second).max())


def content(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def with_data(exported: Export, tmp_path: Path) -> Path:
    """The classifier with all weights in a data file, as exports of large models have them."""
    folder = tmp_path / "with-data"
    shutil.copytree(exported("bert-classes"), folder)
    proto = onnx.load(folder / "model.onnx")
    (folder / "model.onnx").unlink()
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    return folder


def test_a_model_that_optimum_has_just_exported(exported: Export, tmp_path: Path) -> None:
    RECIPES["bert-classes"].make(tmp_path / "torch")
    loaded = ORTModelForSequenceClassification.from_pretrained(tmp_path / "torch", export=True)
    result = huggingface.optimize(loaded, tmp_path / "saved")
    assert result.verdict == "passed"
    assert count_attention(tmp_path / "saved" / "model.onnx") == LAYERS
    after = ORTModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert after.config.id2label == loaded.config.id2label
    np.testing.assert_allclose(logits(after, tmp_path / "saved"), logits(loaded, tmp_path / "saved"), atol=TOLERANCE)


def test_a_loaded_model_of_several_files(exported: Export, tmp_path: Path) -> None:
    before = ORTModelForSeq2SeqLM.from_pretrained(exported("bart-merged"))
    result = huggingface.optimize(before, tmp_path / "saved")
    assert sorted(result.files) == ["decoder_model_merged.onnx", "encoder_model.onnx"]  # what it has loaded
    after = ORTModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    batch = AutoTokenizer.from_pretrained(tmp_path / "saved")(list(SENTENCES), return_tensors="pt", padding=True)
    tokens = [model.generate(**batch, max_new_tokens=8, num_beams=2, no_repeat_ngram_size=2) for model in (before, after)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        (AutoOptimizationConfig.O1(), (0, 0)),
        (AutoOptimizationConfig.O2(), (LAYERS, LAYERS)),
        (AutoOptimizationConfig.O3(), (LAYERS, LAYERS)),
        (ORTConfig(optimization=AutoOptimizationConfig.O2()), (LAYERS, LAYERS)),
        (OptimumsConfig(optimization_level=2, disable_gelu_fusion=True), (LAYERS, 0)),
        (OptimumsConfig(optimization_level=2, disable_attention_fusion=True), (0, LAYERS)),
    ],
    ids=["O1", "O2", "O3", "ort-config", "without-gelu", "without-attention"],
)
def test_options_of_optimum(exported: Export, tmp_path: Path, config: Any, counts: tuple[int, int]) -> None:
    before, after = exported("bert-classes"), tmp_path / "saved"
    result = huggingface.optimize(before, after, config)
    assert result.verdict == "passed"
    ops = result.files["model.onnx"].report.model.ops_after
    gelus = sum(number for op, number in ops.items() if op.endswith(("::BiasGelu", "::FastGelu", "::Gelu")))
    assert (count_attention(after / "model.onnx"), gelus) == counts
    assert distance(before, after) <= (0.01 if config == AutoOptimizationConfig.O3() else TOLERANCE)
    written = ORTConfig.from_pretrained(after).optimization
    assert written.optimization_level == getattr(config, "optimization", config).optimization_level


def test_weights_in_a_data_file(with_data: Path, tmp_path: Path) -> None:
    before = content(with_data)
    result = huggingface.optimize(with_data, tmp_path / "saved")
    assert result.verdict == "passed"
    assert content(with_data) == before
    assert distance(with_data, tmp_path / "saved") <= TOLERANCE
    written = onnx.load(tmp_path / "saved" / "model.onnx", load_external_data=False)
    assert any(map(uses_external_data, written.graph.initializer))
    shutil.rmtree(with_data)  # the result stands alone
    ORTModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_models_in_a_folder_of_their_own(exported: Export, tmp_path: Path) -> None:
    """As repositories for transformers.js have them: the configuration above, the models in onnx/."""
    source = tmp_path / "source"
    shutil.copytree(exported("bert-classes"), source)
    (source / "onnx").mkdir()
    (source / "model.onnx").rename(source / "onnx" / "model.onnx")
    before = content(source)
    result = huggingface.optimize(source, tmp_path / "saved")
    assert list(result.files) == ["onnx/model.onnx"]
    assert content(source) == before
    assert count_attention(tmp_path / "saved" / "onnx" / "model.onnx") == LAYERS
    assert distance(source, tmp_path / "saved") <= TOLERANCE


def test_the_comparison_notices_one_wrong_bias(exported: Export, tmp_path: Path) -> None:
    before, after = exported("bert-classes"), tmp_path / "saved"
    huggingface.optimize(before, after)
    proto = onnx.load(after / "model.onnx")
    bias = next(tensor for tensor in proto.graph.initializer if re.search(r"LayerNorm\.bias$", tensor.name))
    wrong = onnx.numpy_helper.to_array(bias).copy()
    wrong[0] += 0.01
    bias.CopyFrom(onnx.numpy_helper.from_array(wrong, bias.name))
    onnx.save(proto, after / "model.onnx")
    assert distance(before, after) > TOLERANCE


def test_the_command_line(exported: Export, tmp_path: Path) -> None:
    before, after = exported("bart"), tmp_path / "saved"
    command = [sys.executable, "-m", "rewright", "optimize", str(before), "-o", str(after), "-O2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert {name: one["verdict"] for name, one in report["files"].items()} == dict.fromkeys(RECIPES["bart"].attentions, "passed")
    assert {path.name: count_attention(path) for path in after.glob("*.onnx")} == RECIPES["bart"].attentions
    assert content(after).keys() >= content(before).keys()
    ORTModelForSeq2SeqLM.from_pretrained(after)


def test_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RECIPES["bert-classes"].make(tmp_path / "torch")
    example = runpy.run_path(str(ROOT / "examples" / "text_classification.py"))
    example["main"](str(tmp_path / "torch"), str(tmp_path / "saved"))
    shown = capsys.readouterr().out
    said = {name: re.findall(rf"^{name}: (.*)$", shown, re.MULTILINE) for name in ("exported", "optimized")}
    assert said["exported"] == said["optimized"]
    assert len(said["exported"]) == 3
    assert "passed" in shown
    assert count_attention(tmp_path / "saved" / "model.onnx") == LAYERS
