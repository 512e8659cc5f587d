"""Exported, optimized and quantized by one command, loaded without extra arguments, run in a pipeline of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_models import SENTENCES
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM, ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

from rewright.cli.main import run

Export = Callable[[str], Path]
MOVED: dict[str, float] = {"dynamic": 0.05, "weight-only": 0.2}
"""How far a probability may move, by mode."""

BUDGET = ("--budget", "sqnr=5, cosine=0.9")
"""These models are small and untrained: their logits lose more than those of real ones, and all of each is to be quantized."""


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


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
@pytest.mark.parametrize("name", ["bert-classes", "distilbert-classes"])
def test_text_classification(exported: Export, tmp_path: Path, name: str, mode: str) -> None:
    before, after = exported(name), tmp_path / "quantized"
    report = quantized(before, after, "--mode", mode)
    coverage = report["files"]["model.onnx"]["quantization"]["coverage"]
    assert coverage["MatMul"]["quantized"] == coverage["MatMul"]["total"]
    assert weights(after) < 0.6 * weights(before)

    def classify(folder: Path) -> list[dict[str, float]]:
        model = ORTModelForSequenceClassification.from_pretrained(folder)
        made = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
        answers = made(list(SENTENCES), batch_size=len(SENTENCES), padding=True, top_k=None)
        return [{one["label"]: one["score"] for one in answer} for answer in answers]

    for wanted, got in zip(classify(before), classify(after), strict=True):
        assert max(abs(wanted[label] - got[label]) for label in wanted) < MOVED[mode]


@pytest.mark.parametrize(
    ("name", "model_class"),
    [("gpt2-goes-on", ORTModelForCausalLM), ("llama-goes-on", ORTModelForCausalLM), ("bart-merged", ORTModelForSeq2SeqLM)],
)
def test_generation(exported: Export, tmp_path: Path, name: str, model_class: Any) -> None:
    before, after = exported(name), tmp_path / "quantized"
    report = quantized(before, after)
    for found in report["files"].values():
        assert sum(counts["quantized"] for counts in found["quantization"]["coverage"].values()) > 0
    assert weights(after) < weights(before)
    tokens = AutoTokenizer.from_pretrained(after)(list(SENTENCES), return_tensors="pt", padding=True)
    tokens.pop("token_type_ids", None)
    said = model_class.from_pretrained(after).generate(**tokens, max_new_tokens=4, do_sample=False)
    assert np.asarray(said).shape[0] == len(SENTENCES)
