"""Whether what is known about a model's shapes holds when it runs: every value is returned, every fact is compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnxruntime as ort

from rewright.model.carrier import Model
from rewright.model.facts import dtype_of, shape_of
from rewright.model.load import load
from rewright.model.view import View
from rewright.passes.cleanup.dead_code import DeadCode
from rewright.passes.session import PassSession
from rewright.shapes.dimensions import Polynomial, Size, size_of
from rewright.shapes.terms import Term
from rewright.shapes.walk import Shapes, shapes_of

Feeds = Mapping[str, np.ndarray]


def known_about(model: onnx.ModelProto | Model) -> tuple[View, Shapes]:
    """A view with facts."""
    session = PassSession(DeadCode(), load(model))
    session.ensure_facts()
    return session.view, shapes_of(session.view)


def facts_of(model: onnx.ModelProto | Model) -> dict[str, tuple[int | str | None, ...] | None]:
    """The shape of every value that a node gives."""
    view, _ = known_about(model)
    return {tensor.name: shape_of(tensor) for node in view.graph.nodes for tensor in node.outputs if tensor.name}


def evaluated(size: Size, sizes: Mapping[str, int]) -> int | None:
    """The number that the size is, or None if a name in it has no size."""
    if isinstance(size, int):
        return size
    total = 0
    for names, factor in size.terms:
        values = [_applied(name, sizes) if isinstance(name, Term) else sizes.get(name) for name in names]
        if None in values:
            return None
        total += factor * math.prod(values)
    return total


def _applied(term: Term, sizes: Mapping[str, int]) -> int | None:
    arguments = [evaluated(argument, sizes) for argument in term.arguments]
    if None in arguments:
        return None
    if term.function == "broadcast":
        return next((argument for argument in arguments if argument != 1), 1)
    if term.function == "sliced":
        start, end, dim = arguments
        return len(range(*slice(start, end).indices(dim)))
    if term.function in ("floor", "div"):
        above, below = arguments
        if below == 0:
            return None
        return above // below if term.function == "floor" else int(above / below)
    return {"min": min, "max": max}[term.function](arguments)


def violations(model: onnx.ModelProto | Model, feeds: Iterable[Feeds]) -> tuple[list[str], int]:
    """What is known but does not hold, for each run that computes the model; and how many runs did."""
    loaded = load(model)
    view, shapes = known_about(loaded)
    values = {
        tensor.name: tensor
        for node in view.graph.nodes
        for tensor in node.outputs
        if tensor.name and shape_of(tensor) is not None
    }
    try:
        session = _session(loaded, values)
    except Exception:  # as below: a graph that cannot be computed at all
        return [], 0
    names = [output.name for output in session.get_outputs()]
    wrong: list[str] = []
    ran = 0
    for feed in feeds:
        try:
            found = dict(zip(names, session.run(names, dict(feed)), strict=True))
        except Exception:  # facts speak of runs that compute the model; onnxruntime raises types of its own
            continue
        ran += 1
        sizes: dict[str, int] = {}
        for tensor in view.graph.inputs:
            wrong += _bind(tensor.name, shape_of(tensor), feed[tensor.name].shape, sizes)
        arrays = {name: array for name, array in found.items() if name in values and isinstance(array, np.ndarray)}
        for name, array in arrays.items():
            wrong += _bind(name, shape_of(values[name]), array.shape, sizes)
            if dtype_of(values[name]) != array.dtype:
                wrong.append(f"{name} is {array.dtype}, not {dtype_of(values[name])}")
        for name, array in arrays.items():
            wrong += _compare(name, values[name], array, shapes, sizes)
    return wrong, ran


def _session(model: Model, values: Iterable[str]) -> ort.InferenceSession:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    returned = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in returned)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER)
    return ort.InferenceSession(model.with_proto(proto).session_bytes(), options, providers=["CPUExecutionProvider"])


def _bind(name: str, shape: tuple[int | str | None, ...] | None, actual: tuple[int, ...], sizes: dict[str, int]) -> list[str]:
    """Takes the sizes of plain names from where they are first seen; equal texts must be equal sizes."""
    if shape is None or len(shape) != len(actual):
        return [f"{name} is {actual}, not {shape}"]
    wrong = []
    for dim, number in zip(shape, actual, strict=True):
        if isinstance(dim, str) and sizes.setdefault(f"text {dim}", number) != number:
            wrong.append(f"{name} is {actual}, not {shape}, where {dim} is {sizes[f'text {dim}']} elsewhere")
        size = size_of(dim) if dim is not None else None
        if isinstance(size, Polynomial) and size.symbol is not None and not isinstance(size.symbol, Term):
            sizes.setdefault(size.symbol, number)
    return wrong


def _compare(name: str, tensor: object, array: np.ndarray, shapes: Shapes, sizes: Mapping[str, int]) -> list[str]:
    wrong = []
    for dim, number in zip(shape_of(tensor) or (), array.shape, strict=False):
        expected = evaluated(size_of(dim), sizes) if dim is not None else None
        if expected not in (None, number):
            wrong.append(f"{name} is {array.shape}, not {shape_of(tensor)}: {dim} is {expected}")
    items = shapes.items(tensor)
    if items is not None:
        for item, number in zip(items.items, array.reshape(-1), strict=True):
            expected = evaluated(item, sizes) if item is not None else None
            if expected not in (None, int(number)):
                wrong.append(f"{name} holds {number}, not {item} = {expected}")
    return wrong
