"""Puts small graphs side by side into one model, makes inputs for them, and runs models on ONNX Runtime as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper

from rewright.model.carrier import Model
from rewright.model.load import load

Feeds = dict[str, Any]

LENGTHS = {
    "N": "batch",
    "B": "batch",
    "M": "batch",
    "K": "rows",
    "batch": "batch",
    "S": "rows",
    "sequence": "rows",
    "T": "keys",
    "keys": "keys",
}
SETS = [
    {"batch": 1, "rows": 5, "keys": 5, "scale": 1.0, "padding": "left", "flag": True},
    {"batch": 2, "rows": 4, "keys": 6, "scale": 1e-3, "padding": "right", "flag": False},
    {"batch": 3, "rows": 1, "keys": 4, "scale": 4.0, "padding": "none", "flag": True},
    {"batch": 2, "rows": 6, "keys": 3, "scale": 1.0, "padding": "holes", "flag": False},
]
"""Sizes, the size of numbers, and where masks have zeros: rows of little variance, padding of either side, batches of 1 to 3."""

HIGHEST_ID = 12


def side_by_side(models: Mapping[str, ModelProto]) -> ModelProto:
    """One model with the graphs of all, which share nothing; what belongs to ``key`` is called ``key/...``."""
    whole = ModelProto()
    for key, model in models.items():
        renamed = ModelProto()
        renamed.CopyFrom(model)
        _rename(renamed.graph, f"{key}/")
        if not whole.graph.name:
            whole.CopyFrom(renamed)
            continue
        assert list(whole.opset_import) == list(renamed.opset_import), key
        for field in ("node", "initializer", "input", "output", "value_info"):
            getattr(whole.graph, field).extend(getattr(renamed.graph, field))
        whole.functions.extend(renamed.functions)
    return whole


def _rename(graph: onnx.GraphProto, prefix: str) -> None:
    """Puts the prefix before every name, also of what bodies read from outside; nodes without a name get that of their output."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name and prefix + name for name in names]
        node.name = prefix + node.name if node.name else next(filter(None, node.output), prefix)
        for attribute in node.attribute:
            _rename(attribute.g, prefix)
    for item in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.name = prefix + item.name


def feeds_for(model: ModelProto) -> list[Feeds]:
    """Inputs by declared type, symbolic sizes and the end of the name: ``ids``, ``mask``, ``additive``, ``flag``, else floats."""
    return [{value.name: _made(value, sizes) for value in model.graph.input} for sizes in SETS]


def _made(value: onnx.ValueInfoProto, sizes: Mapping[str, Any]) -> Any:
    kind, name = value.type.tensor_type, value.name.rsplit("/", 1)[-1]
    shape = [sizes[LENGTHS[dim.dim_param]] if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    rng = np.random.default_rng(sum(map(ord, value.name)) + sum(shape))
    if kind.elem_type == TensorProto.BOOL:
        return np.full(shape, sizes["flag"])
    if name.endswith("mask"):
        return _mask(shape, sizes["padding"]).astype(dtype)
    if name == "additive":
        return np.where(_mask([shape[0], shape[-1]], sizes["padding"])[:, None, None] == 0, -1e4, 0).astype(dtype)
    if dtype.kind == "i":
        return rng.integers(0, 2 if name.startswith("type") else HIGHEST_ID, shape).astype(dtype)
    return np.asarray(sizes["scale"] * rng.normal(size=shape), dtype)


def _mask(shape: list[int], padding: str) -> Any:
    """(batch, keys) of zeros and ones: every other sequence is padded, and no row is masked as a whole."""
    mask, keys = np.ones(shape, np.int64), shape[1]
    padded = {"left": slice(0, keys // 2), "right": slice(keys - keys // 2, keys), "holes": slice(1, keys, 2)}.get(padding)
    if padded is not None:
        mask[::2, padded] = 0
    return mask


def session_of(model: ModelProto | Model) -> ort.InferenceSession:
    """A session that computes what the nodes say: no optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER)
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    loaded = load(model)  # its weights are a file for as long as it lives
    return ort.InferenceSession(loaded.session_bytes(), options, providers=["CPUExecutionProvider"])


def run_sets(model: ModelProto | Model, sets: Iterable[Feeds]) -> list[dict[str, Any]]:
    """The outputs by name, for each input set."""
    session = session_of(model)
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, feeds), strict=True)) for feeds in sets]


def differs(expected: list[dict[str, Any]], actual: list[dict[str, Any]], prefix: str = "", absolute: float = 1e-5) -> str:
    """What differs in the outputs that begin with ``prefix``, or nothing; NaNs have to be at the same places."""
    compared = 0
    for number, (before, after) in enumerate(zip(expected, actual, strict=True)):
        for name in (name for name in before if name.startswith(prefix)):
            first, second = before[name], after[name]
            if (first.dtype, first.shape) != (second.dtype, second.shape):
                return f"{name}: {second.dtype}{second.shape} for {first.dtype}{first.shape} (set {number})"
            compared += first.size
            close = np.isclose(second, first, rtol=1e-4, atol=absolute, equal_nan=True)
            if not close.all():
                worst = np.nanmax(np.abs(second.astype(float) - first.astype(float)))
                return f"{name}: {np.sum(~close)} of {close.size} numbers differ, by up to {worst:.3g} (set {number})"
    assert compared > 0, prefix
    return ""


def ops_behind(model: ModelProto, prefix: str) -> list[str]:
    """The ops, as "MatMul" or "com.microsoft::Gelu", that the outputs which begin with ``prefix`` are made by."""
    makers = {output: node for node in model.graph.node for output in node.output if output}
    wanted = [value.name for value in model.graph.output if value.name.startswith(prefix)]
    seen: dict[int, onnx.NodeProto] = {}
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            wanted += _inputs_of(node)
    return sorted(_named_op(inner) for node in seen.values() for inner in _with_bodies(node))


def _inputs_of(node: onnx.NodeProto) -> list[str]:
    return [name for inner in _with_bodies(node) for name in inner.input]


def _with_bodies(node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
    yield node
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _with_bodies(inner)


def _named_op(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
