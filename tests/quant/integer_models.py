"""Small models to quantize, and what tests of it ask: the model after a chain, its numbers, what was covered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, helper, numpy_helper

import rewright
from rewright.report.model import CoveredReport
from rewright.run.options import RunResult

ZOO = Path(__file__).parents[1] / "zoo"


def weights(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Like those of a trained layer: normal, and small."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def graph(text: str, opset: int = 17, **constants: np.ndarray[Any, Any]) -> ModelProto:
    """The model of onnx's text form, whose constants are arrays."""
    imports = f'"" : {opset}, "com.microsoft" : 1'
    model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> g {text}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
    return model


def quantize(model: Any, options: str = "", *, chain: str = "", **settings: Any) -> RunResult:
    """The result of the pass on a model, a file or a proto; under the default budget unless ``settings`` say otherwise."""
    text = f"quantize-dynamic{{{options}}}" if options else "quantize-dynamic"
    source = rewright.load(model)
    return rewright.Chain(f"{chain}, {text}" if chain else text).run(source, **settings)


def proto_of(result: RunResult) -> ModelProto:
    """The quantized model, weights and all; the checker accepts it, unless it holds an op that only ONNX Runtime knows."""
    with TemporaryDirectory() as folder:
        result.save(Path(folder) / "quantized.onnx")
        proto = onnx.load(Path(folder) / "quantized.onnx")
    if "SimplifiedLayerNormalization" not in {node.op_type for node in proto.graph.node}:
        onnx.checker.check_model(proto, full_check=True)
    return proto


def ops(result: RunResult) -> Counter[str]:
    """How many nodes of each op, without "ai.onnx"."""
    return Counter({op.removeprefix("ai.onnx::"): count for op, count in result.report.model.ops_after.items()})


def covered(result: RunResult) -> dict[str, CoveredReport]:
    """The records of the pass by the names of the nodes."""
    return {entry.node: entry for entry in result.report.passes[-1].coverage}


def reasons(result: RunResult) -> dict[str, str]:
    """Why nodes were missed."""
    return {name: entry.reason for name, entry in covered(result).items() if entry.outcome == "missed"}


def outputs(model: ModelProto, feeds: dict[str, Any], *, optimized: bool = True) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime computes, with all of its own optimizations or none."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def errors(model: ModelProto, result: RunResult, feeds: dict[str, Any]) -> list[float]:
    """Of each output, optimized by ONNX Runtime, the root mean square of the error relative to that of the original's."""
    wanted, found = outputs(model, feeds, optimized=False), outputs(proto_of(result), feeds)
    plain = outputs(proto_of(result), feeds, optimized=False)
    for left, right in zip(found, plain, strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-2, atol=2e-2 * float(np.abs(right).max(initial=0.0)))
    return [
        float(np.sqrt(np.square(right - left).sum() / np.square(left).sum())) for left, right in zip(wanted, found, strict=True)
    ]


def stored(result: RunResult) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each initializer with two dimensions or more."""
    kind = helper.tensor_dtype_to_np_dtype
    return {
        tensor.name: (kind(tensor.data_type).name, tuple(tensor.dims))
        for tensor in proto_of(result).graph.initializer
        if len(tensor.dims) > 1
    }
