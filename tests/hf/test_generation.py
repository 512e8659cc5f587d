"""Decoders with caches: ``generate`` gives the same tokens before and after, greedy and with beams, on padded batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_models import LAYERS, RECIPES, SENTENCES
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
from outcome import TOLERANCE, Optimized
from transformers import AutoTokenizer, pipeline

STEPS = 12
Optimize = Callable[..., Optimized]
Record = Callable[..., None]
# A random model with tied embeddings likes to repeat itself; no pair of tokens twice keeps it moving.
SEARCH = {"do_sample": False, "max_new_tokens": STEPS, "no_repeat_ngram_size": 2}
GREEDY = SEARCH | {"output_logits": True, "return_dict_in_generate": True}
BEAMS = SEARCH | {"num_beams": 3, "num_return_sequences": 2}
MODELS = {"text-generation-with-past": ORTModelForCausalLM, "text2text-generation-with-past": ORTModelForSeq2SeqLM}

CAUSAL = ("gpt2-goes-on", "gpt-neo-goes-on", "llama-goes-on")
SEQ2SEQ = ("bart", "bart-merged", "t5", "t5-merged")


def load(name: str, folder: Path) -> tuple[Any, Any]:
    return MODELS[RECIPES[name].task].from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", [*CAUSAL, *SEQ2SEQ])
def test_generate_gives_the_same_tokens(optimized: Optimize, figures: Record, name: str) -> None:
    run = optimized(name)
    run.assert_fused()
    greedy, beams = [], []
    for folder in (run.before, run.after):
        model, tokenizer = load(name, folder)
        assert model.can_use_cache
        batch = tokenizer(list(SENTENCES), return_tensors="pt", padding=True)
        assert 0 in batch["attention_mask"]
        greedy.append(model.generate(**batch, **GREEDY))
        beams.append(model.generate(**batch, **BEAMS))
    assert torch.equal(greedy[0].sequences, greedy[1].sequences)
    assert torch.equal(*beams)
    new = greedy[0].sequences[:, -STEPS:]
    assert len({tuple(row) for row in new.tolist()}) == len(SENTENCES)
    assert len(set(new.flatten().tolist())) > STEPS
    steps = [torch.stack(said.logits) for said in greedy]
    assert steps[0].std() > 0.5
    difference = float((steps[0] - steps[1]).abs().max())
    assert difference <= TOLERANCE * float(steps[0].abs().max())
    figures(run, difference)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_prompt_reads_the_same_alone_and_padded(optimized: Optimize, name: str) -> None:
    """Left padding is masked in the fused decoder: a short prompt goes on the same with and without padding before it."""
    model, tokenizer = load(name, optimized(name).after)
    padded = tokenizer(list(SENTENCES), return_tensors="pt", padding=True)
    together = model.generate(**padded, **SEARCH)[:, padded["input_ids"].shape[1] :]
    for sentence, row in zip(SENTENCES, together, strict=True):
        alone = tokenizer(sentence, return_tensors="pt")
        new = model.generate(**alone, **SEARCH)[0, alone["input_ids"].shape[1] :]
        assert row[: len(new)].tolist() == new.tolist()


@pytest.mark.parametrize(("name", "task"), [("gpt2-goes-on", "text-generation"), ("bart-merged", "text2text-generation")])
def test_a_pipeline_says_the_same(optimized: Optimize, name: str, task: str) -> None:
    run = optimized(name)
    said = []
    for folder in (run.before, run.after):
        model, tokenizer = load(name, folder)
        made = pipeline(task, model=model, tokenizer=tokenizer)
        said.append(made(list(SENTENCES), batch_size=3, **SEARCH))
    assert said[0] == said[1]
    assert len({str(answer) for answer in said[0]}) == len(SENTENCES)


@pytest.mark.parametrize(
    ("name", "level", "backend"),
    [
        ("gpt2-goes-on", "O1", "standalone"),
        ("gpt2-goes-on", "O3", "standalone"),
        ("gpt2-goes-on", "O2", "ort"),
        ("llama-goes-on", "O2", "auto"),
        ("t5", "O3", "standalone"),
        ("bart", "O2", "ort"),
        ("bart-merged", "O2", "auto"),
    ],
)
def test_other_ways_give_the_same_tokens(optimized: Optimize, figures: Record, name: str, level: str, backend: str) -> None:
    run = optimized(name, level, backend)
    assert run.result.verdict == "passed"
    if backend == "auto":
        run.assert_fused()
    if backend == "ort":  # attention is what it does not find here, or loses the mask of
        counts = [one.report.model.ops_after["com.microsoft::SkipLayerNormalization"] for one in run.result.files.values()]
        assert min(counts) >= 2 * LAYERS
    tokens, steps = [], []
    for folder in (run.before, run.after):
        model, tokenizer = load(name, folder)
        batch = tokenizer(list(SENTENCES), return_tensors="pt", padding=True)
        said = model.generate(**batch, **GREEDY)
        tokens.append(said.sequences)
        steps.append(torch.stack(said.logits))
    assert torch.equal(*tokens)
    figures(run, float((steps[0] - steps[1]).abs().max()))
