"""Exported, optimized, loaded without extra arguments, run in a pipeline of transformers: what it says is what it said before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_models import NAMES, SENTENCES
from optimum.onnxruntime import (
    ORTModelForFeatureExtraction,
    ORTModelForImageClassification,
    ORTModelForMaskedLM,
    ORTModelForQuestionAnswering,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)
from outcome import TOLERANCE, Optimized
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, pipeline

Optimize = Callable[..., Optimized]
Record = Callable[..., None]


def pipe(task: str, model_class: type, folder: Path) -> Any:
    """A pipeline over a folder, whose every part comes from that folder."""
    model = model_class.from_pretrained(folder)
    if task == "image-classification":
        return pipeline(task, model=model, image_processor=AutoImageProcessor.from_pretrained(folder))
    return pipeline(task, model=model, tokenizer=AutoTokenizer.from_pretrained(folder))


def worst(before: Sequence[float], after: Sequence[float]) -> float:
    difference = float(np.max(np.abs(np.asarray(before) - np.asarray(after))))
    assert difference <= TOLERANCE
    return difference


@pytest.mark.parametrize(
    ("name", "level", "backend"),
    [
        ("bert-classes", "O1", "standalone"),
        ("bert-classes", "O2", "standalone"),
        ("bert-classes", "O2", "auto"),
        ("bert-classes", "O2", "ort"),
        ("bert-classes", "O3", "standalone"),
        ("distilbert-classes", "O2", "standalone"),
        ("albert-classes", "O2", "standalone"),
    ],
)
def test_text_classification(optimized: Optimize, figures: Record, name: str, level: str, backend: str) -> None:
    run = optimized(name, level, backend)
    if level == "O1":  # cleanups only
        assert run.result.verdict == "passed"
        assert run.attentions() == {"model.onnx": 0}
    else:
        run.assert_fused()

    def classify(folder: Path) -> list[dict[str, float]]:
        made = pipe("text-classification", ORTModelForSequenceClassification, folder)
        answers = made(list(SENTENCES), batch_size=len(SENTENCES), padding=True, top_k=None)
        return [{one["label"]: one["score"] for one in answer} for answer in answers]

    before, after = classify(run.before), classify(run.after)
    assert all(answer.keys() == set(NAMES) for answer in before)
    assert [list(answer) for answer in after] == [list(answer) for answer in before]  # best first
    assert len({next(iter(answer)) for answer in before}) > 1
    scores = [[answer[name] for answer in said for name in NAMES] for said in (before, after)]
    assert np.ptp(scores[0]) > 0.2
    figures(run, worst(*scores))


def test_token_classification(optimized: Optimize, figures: Record) -> None:
    run = optimized("electra-tokens")
    run.assert_fused()

    def tag(folder: Path) -> list[dict[str, Any]]:
        made = pipe("token-classification", ORTModelForTokenClassification, folder)
        return list(chain.from_iterable(made(list(SENTENCES), batch_size=len(SENTENCES))))

    before, after = tag(run.before), tag(run.after)
    spans = [[(one["entity"], one["start"], one["end"]) for one in said] for said in (before, after)]
    assert spans[0] == spans[1]
    assert len({entity for entity, _, _ in spans[0]}) > 1
    figures(run, worst([one["score"] for one in before], [one["score"] for one in after]))


def test_question_answering(optimized: Optimize, figures: Record) -> None:
    run = optimized("roberta-answers")
    run.assert_fused()
    questions = [{"question": SENTENCES[3], "context": SENTENCES[0]}, {"question": "who likes it?", "context": SENTENCES[2]}]

    def answer(folder: Path) -> list[dict[str, Any]]:
        made = pipe("question-answering", ORTModelForQuestionAnswering, folder)
        return list(chain.from_iterable(made(questions, top_k=3, batch_size=2)))

    before, after = answer(run.before), answer(run.after)
    assert [one["answer"] for one in after] == [one["answer"] for one in before]
    assert len({one["answer"] for one in before}) > 2
    assert max(one["score"] for one in before) > 50 * TOLERANCE
    figures(run, worst([one["score"] for one in before], [one["score"] for one in after]))


def test_feature_extraction(optimized: Optimize, figures: Record) -> None:
    run = optimized("mpnet-features")
    run.assert_fused()

    def read(folder: Path) -> np.ndarray:
        made = pipe("feature-extraction", ORTModelForFeatureExtraction, folder)
        padded = made(list(SENTENCES), batch_size=len(SENTENCES), tokenize_kwargs={"padding": True}, return_tensors=True)
        return np.concatenate([np.asarray(one).reshape(-1) for one in padded])

    before, after = read(run.before), read(run.after)
    assert np.std(before) > 0.5
    figures(run, worst(before, after))


def test_fill_mask(optimized: Optimize, figures: Record) -> None:
    run = optimized("roberta-masks")
    run.assert_fused()
    gaps = [sentence.replace(word, "<mask>") for sentence, word in zip(SENTENCES, ("cold", "!", "warm"), strict=False)]

    def fill(folder: Path) -> list[dict[str, Any]]:
        made = pipe("fill-mask", ORTModelForMaskedLM, folder)
        return list(chain.from_iterable(made(gaps, batch_size=3, tokenizer_kwargs={"padding": True})))

    before, after = fill(run.before), fill(run.after)
    assert [one["token"] for one in after] == [one["token"] for one in before]
    assert len({one["token"] for one in before}) > 5
    assert max(one["score"] for one in before) > 50 * TOLERANCE
    figures(run, worst([one["score"] for one in before], [one["score"] for one in after]))


def test_image_classification(optimized: Optimize, figures: Record) -> None:
    run = optimized("vit-classes")
    run.assert_fused()
    noise = np.random.default_rng(5)
    images = [Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8) // (1 + shade)) for shade in range(4)]

    def classify(folder: Path) -> list[dict[str, float]]:
        made = pipe("image-classification", ORTModelForImageClassification, folder)
        return [{one["label"]: one["score"] for one in answer} for answer in made(images, batch_size=4, top_k=5)]

    before, after = classify(run.before), classify(run.after)
    assert [list(answer) for answer in after] == [list(answer) for answer in before]
    scores = [[answer[name] for answer in said for name in NAMES] for said in (before, after)]
    assert max(np.ptp(scores[0]), 0) > 0.1
    assert len({tuple(answer) for answer in before}) > 1
    figures(run, worst(*scores))
