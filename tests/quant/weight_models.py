"""Models with weights in every spelling, and a reference of what block-wise weights compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, helper, numpy_helper, parser

import rewright
from rewright.api import Chain
from rewright.quant.blocks import BlockFormat, round_to_nearest

K, N = 48, 40
RNG = np.random.default_rng(5)
FLOATS = {
    "w": RNG.standard_normal((K, N)),
    "wt": RNG.standard_normal((N, K)),
    "w3": RNG.standard_normal((1, K, N)),
    "batch": RNG.standard_normal((2, K, N)),
    "flat": RNG.standard_normal(K * N),
    "v": RNG.standard_normal(K),
    "tiny": RNG.standard_normal((K, 3)),
    "c": RNG.standard_normal(N),
    "c2": RNG.standard_normal((1, N)),
    "e": RNG.standard_normal((40, 64)),
    "odd": RNG.standard_normal((64, 33)),
}


def model_of(body: str, signature: str = f"(float[B, S, {K}] x) => (float y)", *, opset: int = 17, **arrays: Any) -> ModelProto:
    """A model in text; what it reads of FLOATS, and other arrays that are given, are its initializers."""
    held = {**{name: array.astype(np.float32) for name, array in FLOATS.items()}, **arrays}
    text = f'<ir_version: {10 if opset >= 21 else 8}, opset_import: ["": {opset}, "com.microsoft": 1]> g {signature} {{ {body} }}'
    model = parser.parse_model(text)
    read = _read(model.graph)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items() if name in read)
    return model


def _read(graph: onnx.GraphProto) -> set[str]:
    found = {name for node in graph.node for name in node.input}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _read(attribute.g)
    return found


def quantized(model: ModelProto, options: str = "", **run: Any) -> rewright.RunResult:
    """The pass on the model; nothing is undone, so that a test sees what it does."""
    text = f"quantize-weights{{{options}}}" if options else "quantize-weights"
    return Chain(text).run(model, **{"verify": "structure", **run})


def coverage(result: rewright.RunResult) -> dict[str, Any]:
    return {entry.node: entry for entry in result.report.passes[-1].coverage}


def ops(result: rewright.RunResult) -> list[str]:
    return [node.op_type for node in result.model.proto.graph.node]


def run(model: Any, feeds: dict[str, Any], *, optimized: bool = False) -> list[np.ndarray]:
    """The outputs of a ModelProto, or of what a run has made."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, ModelProto):
        data = model.SerializeToString()
    else:
        data = model.model.session_bytes()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", model.model.SESSION_FOLDER)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def rounded(rows: np.ndarray, bits: int = 4, block_size: int = 32, *, symmetric: bool = True) -> np.ndarray:
    """Rows (N, K) as their blocks have them."""
    form = BlockFormat(bits, block_size, symmetric, rows.dtype)
    return round_to_nearest(rows.astype(np.float32), form).dequantized(rows.shape[1])


def attributes(result: rewright.RunResult, op: str) -> dict[str, Any]:
    node = next(node for node in result.model.proto.graph.node if node.op_type == op)
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
