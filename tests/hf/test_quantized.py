"""Exported, optimized and quantized by one command, loaded without extra arguments, run in a pipeline of transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from local_models import LAYERS, NAMES, SENTENCES
from optimum.onnxruntime import (
    AutoOptimizationConfig,
    AutoQuantizationConfig,
    CalibrationConfig,
    ORTModelForCausalLM,
    ORTModelForSeq2SeqLM,
    ORTModelForSequenceClassification,
)
from optimum.onnxruntime.configuration import CalibrationMethod
from outcome import count_attention
from transformers import AutoTokenizer, pipeline

from rewright.cli.main import run
from rewright.integrations import huggingface

Export = Callable[[str], Path]
MOVED: dict[str, float] = {"dynamic": 0.05, "weight-only": 0.3}
"""How far a probability may move, by mode."""

BUDGET = ("--budget", "sqnr=5, cosine=0.9")
"""These models are small and untrained: their logits lose more than those of real ones, and all of each is to be quantized."""

MIN_MAX = CalibrationConfig("tokenized", "plain", "train", len(SENTENCES), CalibrationMethod.MinMax)


def quantized(before: Path, after: Path, *options: str) -> dict[str, Any]:
    """Runs the command; returns its report."""
    report = after.with_suffix(".json")
    status = run(
        ["quantize", str(before), "-o", str(after), "--preset", "arm64", "--report", str(report), "-q", *BUDGET, *options]
    )
    assert status == 0
    return json.loads(report.read_text())


def weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.onnx*"))


def classify(folder: Path) -> list[dict[str, float]]:
    """The scores of each sentence by label, the best one first."""
    model = ORTModelForSequenceClassification.from_pretrained(folder)
    made = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    answers = made(list(SENTENCES), batch_size=len(SENTENCES), padding=True, top_k=None)
    return [{one["label"]: one["score"] for one in answer} for answer in answers]


def labels(answers: list[dict[str, float]]) -> list[str]:
    return [max(answer, key=lambda label: answer[label]) for answer in answers]


def moved(before: list[dict[str, float]], after: list[dict[str, float]]) -> float:
    pairs = zip(before, after, strict=True)
    return max(abs(wanted[label] - got[label]) for wanted, got in pairs for label in wanted)


def integers(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """The matrices of a model that are stored in 8 bits, in branches too."""

    def of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from of(attribute.g)

    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    found = (tensor for tensor in of(onnx.load(path).graph) if tensor.data_type in kinds and len(tensor.dims) == 2)
    return [(hashlib.sha256(onnx.numpy_helper.to_array(tensor).tobytes()).hexdigest(), tuple(tensor.dims)) for tensor in found]


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
@pytest.mark.parametrize("name", ["bert-classes", "distilbert-classes"])
def test_text_classification(exported: Export, tmp_path: Path, name: str, mode: str) -> None:
    before, after = exported(name), tmp_path / "quantized"
    report = quantized(before, after, "--mode", mode)
    coverage = report["files"]["model.onnx"]["quantization"]["coverage"]
    assert coverage["MatMul"]["quantized"] == coverage["MatMul"]["total"]
    assert weights(after) < 0.6 * weights(before)
    assert moved(classify(before), classify(after)) < MOVED[mode]


@pytest.mark.parametrize("name", ["bert-taught", "distilbert-taught"])
def test_a_fused_model_is_quantized_and_keeps_its_labels(exported: Export, tmp_path: Path, name: str) -> None:
    """The order that Optimum recommends and whose second step fails there: optimize at O2, then quantize what was fused."""
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    before = exported(name)
    huggingface.optimize(before, tmp_path / "optimized", AutoOptimizationConfig.O2())
    assert count_attention(tmp_path / "optimized" / "model.onnx") == LAYERS
    twice = huggingface.quantize(tmp_path / "optimized", tmp_path / "twice", config, level="O0", budget=BUDGET[1])
    once = huggingface.quantize(before, tmp_path / "once", config, budget=BUDGET[1])
    wanted = classify(before)
    for result in (twice, once):
        assert result.verdict == "passed"
        coverage = result.files["model.onnx"].report.quantization.coverage
        assert coverage["com.microsoft::Attention"].quantized == LAYERS
        got = classify(result.save_dir)
        assert labels(got) == labels(wanted) == [NAMES[number % len(NAMES)] for number in range(len(SENTENCES))]
        assert 0 < moved(wanted, got) < MOVED["dynamic"]


def test_static_quantization_on_tokenized_samples(exported: Export, tmp_path: Path) -> None:
    before = exported("bert-classes")
    tokenizer = AutoTokenizer.from_pretrained(before)
    samples = ({**tokenizer(sentence), "label": 0} for sentence in SENTENCES)  # lists, as a data set of Hugging Face has them
    config = AutoQuantizationConfig.arm64(is_static=True)
    result = huggingface.quantize(
        before,
        tmp_path / "out",
        config,
        calibration=samples,
        calibration_config=MIN_MAX,
        budget=BUDGET[1],
        file_suffix="quantized",
    )
    assert result.verdict == "passed"
    coverage = result.files["model.onnx"].report.quantization.coverage
    assert coverage["MatMul"].quantized == coverage["MatMul"].total
    assert (tmp_path / "out" / "model_quantized.onnx").is_file()
    assert moved(classify(before), classify(tmp_path / "out")) < 2 * MOVED["dynamic"]


GENERATING = [
    ("gpt2-goes-on", ORTModelForCausalLM),
    ("llama-goes-on", ORTModelForCausalLM),
    ("bart-merged", ORTModelForSeq2SeqLM),
]


@pytest.mark.parametrize("options", [(), ("--mode", "weight-only", "--bits", "8")], ids=["dynamic", "weight-only"])
@pytest.mark.parametrize(("name", "model_class"), GENERATING)
def test_generation(exported: Export, tmp_path: Path, name: str, model_class: Any, options: tuple[str, ...]) -> None:
    before, after = exported(name), tmp_path / "quantized"
    report = quantized(before, after, *options)
    for found in report["files"].values():
        assert sum(counts["quantized"] for counts in found["quantization"]["coverage"].values()) > 0
    assert weights(after) < weights(before)
    tokens = AutoTokenizer.from_pretrained(after)(list(SENTENCES), return_tensors="pt", padding=True)
    tokens.pop("token_type_ids", None)
    said = model_class.from_pretrained(after).generate(**tokens, max_new_tokens=4, do_sample=False)
    assert np.asarray(said).shape[0] == len(SENTENCES)


def test_branches_of_a_merged_decoder_share_their_integers(exported: Export, tmp_path: Path) -> None:
    before, after = exported("bart-merged"), tmp_path / "quantized"
    quantized(before, after, "-O", "O0")
    found = integers(after / "decoder_model_merged.onnx")
    assert len(found) == len(set(found))
    both = onnx.load(after / "decoder_model_merged.onnx").graph.node
    branches = [attribute.g for node in both if node.op_type == "If" for attribute in node.attribute]
    used = [sum(node.op_type == "DynamicQuantizeMatMul" for node in branch.node) for branch in branches]
    assert min(used) > LAYERS
    assert sum(used) > len(found)
