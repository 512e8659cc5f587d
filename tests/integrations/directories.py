"""Directories as Hugging Face lays them out, small, made here, and what is in them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

ZOO = Path(__file__).parents[1] / "zoo"
BERT = ZOO / "bert.ts17.sdpa.onnx"
ENCODER = ZOO / "bart_enc.dyn20.eager.onnx"

CONFIGURATION = {
    "config.json": json.dumps({"model_type": "bert", "hidden_size": 32}),
    "generation_config.json": "{}",
    "tokenizer.json": json.dumps({"version": "1.0"}),
    "chat_template.jinja": "{{ messages }}",
    "vocab.txt": "[PAD]\n[UNK]\nhello\n",
    "spiece.model": "pieces",
    "preprocessor_config.json": "{}",
}


def make_directory(path: Path, **models: Path | ModelProto) -> Path:
    """A directory with configuration, tokenizer and processor files, and models by their names without ".onnx"."""
    path.mkdir(parents=True)
    for name, text in CONFIGURATION.items():
        (path / name).write_text(text)
    for stem, model in models.items():
        if isinstance(model, Path):
            shutil.copyfile(model, path / f"{stem}.onnx")
        else:
            onnx.save(model, path / f"{stem}.onnx")
    return path


def merged_decoder(mask_length: str = "past_sequence_length + sequence_length") -> ModelProto:
    """A decoder of one layer as Optimum merges two of them: `If` takes the branch that reads the cache, or the one that does not.

    input_ids int64 (batch, sequence_length), attention_mask int64 (batch, `mask_length`), past_key_values.0.key float (batch,
    past_sequence_length, 8), use_cache_branch bool (1) -> logits float (batch, sequence_length, 20), present.0.key float (batch,
    sum of both lengths, 8). The mask is as long as the keys are.
    """
    first, following = _branch("first", "Identity(new)"), _branch("following", "Concat<axis = 1>(past, new)")
    outputs = ["logits", "present.0.key"]
    choice = helper.make_node("If", ["use_cache_branch"], outputs, then_branch=following, else_branch=first)
    long = "past_sequence_length + sequence_length"
    graph = helper.make_graph(
        [choice],
        "merged",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", mask_length]),
            helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, ["batch_size", "past_sequence_length", 8]),
            helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", 20]),
            helper.make_tensor_value_info("present.0.key", TensorProto.FLOAT, ["batch_size", long, 8]),
        ],
    )
    random = np.random.default_rng(0)
    for name, shape in (("table", (20, 8)), ("projection", (8, 64)), ("back", (64, 8)), ("head", (8, 20))):
        graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 4, name))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _branch(name: str, keys: str) -> GraphProto:
    """Attention with a padding mask over `keys`, then the exact Gelu, which `gelu` fuses."""
    graph = onnx.parser.parse_graph(f"""{name} (int64[b, s] input_ids) => (float[b, s, 20] logits, float[b, t, 8] present) {{
        rows = Gather(table, input_ids) raised = MatMul(rows, projection) new = MatMul(raised, back) keys = {keys}
        turned = Transpose<perm = [0, 2, 1]>(keys) scores = MatMul(rows, turned)
        one = Constant<value = int64[1] {{1}}>() valid = Cast<to = 9>(attention_mask) wide = Unsqueeze(valid, one)
        low = Constant<value = float {{-10000.0}}>() masked = Where(wide, scores, low)
        weights = Softmax(masked) context = MatMul(weights, keys)
        root = Constant<value = float {{1.4142135}}>() scaled = Div(context, root) risen = Erf(scaled)
        unit = Constant<value = float {{1.0}}>() moved = Add(risen, unit) gated = Mul(context, moved)
        half = Constant<value = float {{0.5}}>() hidden = Mul(gated, half) logits = MatMul(hidden, head)
        present = Identity(keys)
    }}""")
    made = {output: f"{name}_{output}" for node in graph.node for output in node.output}
    for node in graph.node:
        node.input[:] = [made.get(each, "past_key_values.0.key" if each == "past" else each) for each in node.input]
        node.output[:] = [made[each] for each in node.output]
    for value in graph.output:
        value.name = made[value.name]
    del graph.input[:]
    return graph


def ops(path: Path) -> list[str]:
    """The ops of a model, bodies included."""
    return [node.op_type for node in _nodes(onnx.load(path, load_external_data=False).graph)]


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def outputs_of(path: Path, feeds: dict[str, Any]) -> list[Any]:
    """What a model computes, loaded from its file as Optimum loads it."""
    return list(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds))


def contents(path: Path) -> dict[str, str]:
    """Every file below a directory, with a digest of what it holds."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def token_feeds(length: int = 6) -> dict[str, Any]:
    """Inputs of BERT: two texts, of which the second is padded."""
    ids = np.arange(2 * length, dtype=np.int64).reshape(2, length) % 90 + 5
    mask = np.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
