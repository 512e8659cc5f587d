"""What the tests of narrower types share: run the pass in a real run, look at the types of what it made."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from onnx.parser import parse_model

import rewright
from rewright.model.carrier import Model, all_graphs
from rewright.run.options import RunResult

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
Arrays = dict[str, np.ndarray[Any, Any]]


def parsed(body: str, opset: int = 17, domains: str = "") -> onnx.ModelProto:
    """A model of a graph in text."""
    return parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{domains}]> {body}')


def converted(source: Any, chain: str = "float16", inputs: list[Arrays] | None = None, **options: Any) -> RunResult:
    """The result of a real run, which is checked: valid, sorted, each name once, loads with and without optimizations."""
    result = rewright.Chain(chain).run(rewright.load(source), inputs=inputs, **options)
    check(result.model)
    return result


def check(model: Model) -> None:
    """The model is valid and sorted, each name has one meaning, no value is cast twice to one type, ONNX Runtime loads it."""
    proto = model.proto
    for graph in all_graphs(proto):
        names = [node.name for node in graph.node if node.name]
        assert len(names) == len(set(names))
        casts = [(node.input[0], node.attribute[0].i) for node in graph.node if node.op_type == "Cast" and is_new(node)]
        assert len(casts) == len(set(casts)), casts
    if all(entry.domain in ("", "ai.onnx") for entry in proto.opset_import) and not any(
        tensor.external_data for tensor in proto.graph.initializer
    ):
        onnx.checker.check_model(proto, full_check=True)
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        session_of(model, level)


def is_new(node: onnx.NodeProto) -> bool:
    """Whether a pass has put the node in."""
    return any(entry.key == "rewright.pass" for entry in node.metadata_props)


def session_of(model: Model, level: Any = ort.GraphOptimizationLevel.ORT_DISABLE_ALL) -> ort.InferenceSession:
    """A session of the model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER)
    return ort.InferenceSession(model.session_bytes(), options, providers=["CPUExecutionProvider"])


def ops(model: Model) -> list[str]:
    """The ops of the main graph, in order."""
    return [node.op_type for node in model.proto.graph.node]


def types_made(model: Model) -> dict[str, int]:
    """The element type of what each named node of the main graph makes, as onnx infers it."""
    inferred = onnx.shape_inference.infer_shapes(model.proto, strict_mode=False)
    known = {value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)}
    return {node.name: known.get(node.output[0], 0) for node in inferred.graph.node}


def kept(result: RunResult) -> dict[str, str]:
    """The nodes that stayed in float32, each with the reason."""
    return {entry.node: entry.reason for entry in result.report.passes[-1].coverage if entry.outcome == "missed"}


def done(result: RunResult) -> set[str]:
    """The nodes that compute in the narrow type."""
    return {entry.node for entry in result.report.passes[-1].coverage if entry.outcome == "quantized"}
