"""Runs ONNX Runtime's own optimizers on a model as anybody could, without rewright, and says what has become of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime as ort
from onnx import ModelProto
from onnxruntime.transformers.fusion_attention import AttentionMask, FusionAttention
from onnxruntime.transformers.fusion_bart_attention import FusionBartAttention
from onnxruntime.transformers.fusion_options import AttentionMaskFormat
from onnxruntime.transformers.onnx_model import OnnxModel
from side_by_side import differs, feeds_for, run_sets

from rewright.passes.ort.optimizers import all_but

Work = Callable[[ModelProto], ModelProto]


class _Shapes:
    """What the fusion classes ask of shapes, from onnx's shape inference: theirs needs sympy."""

    def __init__(self, model: ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model).graph
        self._dims = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
        }

    def get_edge_shape(self, name: str) -> list[Any] | None:
        return self._dims.get(name)

    def compare_shape(self, first: str, second: str) -> bool:
        known = self._dims.get(first)
        return known is not None and known == self._dims.get(second)


class _Shaped(OnnxModel):
    def infer_runtime_shape(self, dynamic_axis_mapping: Any = None, update: bool = False) -> _Shapes:
        return _Shapes(self.model)


def by_class(make: Callable[[OnnxModel], Any]) -> Work:
    """One fusion class of ``onnxruntime.transformers``, on a copy."""

    def work(model: ModelProto) -> ModelProto:
        copy = ModelProto()
        copy.CopyFrom(model)
        wrapped = _Shaped(copy)
        make(wrapped).apply()
        wrapped.topological_sort()
        return copy

    return work


def by_attention(heads: int = 0, mask: AttentionMaskFormat | None = None, bart: bool = False, hidden: int = 8) -> Work:
    """FusionAttention, or BART's, with the mask format that is asked for, else the one that the class chooses."""

    def make(model: OnnxModel) -> Any:
        attention_mask = AttentionMask(model)
        if mask is not None:
            attention_mask.set_mask_format(mask)
        return (FusionBartAttention if bart else FusionAttention)(model, hidden, heads, attention_mask)

    return by_class(make)


def in_turn(*works: Work) -> Work:
    """One after the other."""
    return lambda model: functools.reduce(lambda made, work: work(made), works, model)


def by_session(*optimizers: str) -> Work:
    """The session optimizers of these names, all others disabled."""

    def work(model: ModelProto) -> ModelProto:
        with TemporaryDirectory() as folder:
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            disabled = all_but(optimizers)
            given = model.SerializeToString()
            ort.InferenceSession(given, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
            return onnx.load(options.optimized_model_filepath)

    return work


def outcome(model: ModelProto, work: Work, prefixes: Sequence[str]) -> dict[str, str]:
    """By prefix of the outputs: "right", "wrong", "unchanged"; or what went wrong with all of it, by the prefix "all"."""
    try:
        after = work(model)
    except Exception as error:
        return {"all": f"raises {type(error).__name__}"}
    problem = order_problem(after)
    if problem:
        return {"all": problem}
    sets = feeds_for(model)
    expected = run_sets(model, sets)
    left = {value.name for value in after.graph.input}  # some classes drop an input that nothing reads any more
    try:
        actual = run_sets(after, [{name: array for name, array in feeds.items() if name in left} for feeds in sets])
    except Exception as error:
        return {"all": "does not run" if "running" in str(error) else "does not load"}
    before_text, after_text = (_text(graph) for graph in (model, after))
    found = {}
    for prefix in prefixes:
        same = [line for line in before_text if prefix in line] == [line for line in after_text if prefix in line]
        difference = differs(expected, actual, prefix)
        found[prefix] = "wrong" if difference else "unchanged" if same else "right"
    return found


def order_problem(model: ModelProto) -> str:
    """Whether a node reads, itself or in a body, what a later one makes."""
    late = {output for node in model.graph.node for output in node.output if output}
    for node in model.graph.node:
        read = {*node.input, *(name for attribute in node.attribute for inner in attribute.g.node for name in inner.input)}
        if read & late:
            return "is not in order"
        late -= set(node.output)
    return ""


def _text(model: ModelProto) -> list[str]:
    return sorted(f"{node.op_type} {list(node.input)} {list(node.output)}" for node in model.graph.node)
