"""What values measure on given inputs: one run with the smallest and the largest element of each value as further outputs.

The reductions are part of the graph that is run, so that no value leaves the session and each is freed as soon as it would be
anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto, helper

from rewright.model.carrier import Model
from rewright.model.elements import normal_domain
from rewright.model.graph import walk_bodies
from rewright.ops.contract import CONTRACTS
from rewright.ops.lowering import lower
from rewright.verify.process import SessionError, SessionWorker, first_line
from rewright.verify.static.interval import Interval, hull
from rewright.verify.static.measured_bodies import exposing_bodies
from rewright.verify.static.ranges import Ranges

_REDUCED: Final = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32}
"""Element types that ONNX Runtime's ReduceMin and ReduceMax take on every provider."""
_CHUNK: Final = 2000
"""Values that one run measures; a session's outputs are looked up one by one."""


def measure(
    model: Model, ranges: Ranges, worker: SessionWorker, input_sets: Sequence[Mapping[str, np.ndarray[Any, Any]]]
) -> tuple[dict[str, Interval], list[str]]:
    """The smallest and the largest element of each floating-point value of the main graph and its bodies over all input sets.

    Args:
        model: the model that ``ranges`` is about.
        ranges: knows the element types.
        worker: runs it.
        input_sets: arrays by input name.

    Returns:
        intervals by value, without those that were empty or held nothing but NaN; and why sets could not be run.
    """
    lowered = lower(model)
    types = _types(ranges)
    names = list(types)
    found: dict[str, list[Interval]] = {}
    problems: list[str] = []
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        exposing = model.with_proto(_exposing(lowered.proto, {name: types[name] for name in chunk}))
        try:
            results = worker.run(exposing, input_sets).results
        except SessionError as error:
            return {}, [first_line(error.message)]
        for result in results:
            if result.error:
                problems.append(first_line(result.error))
                continue
            for index, name in enumerate(chunk):
                low, high = (float(result.outputs[output]) for output in _outputs(index))
                if low <= high:  # neither empty nor NaN
                    found.setdefault(name, []).append(Interval(low, high))
    problems += _measure_bodies(lowered, ranges, worker, input_sets, found)
    return {name: hull(intervals) for name, intervals in found.items()}, list(dict.fromkeys(problems))


def _measure_bodies(
    lowered: Model,
    ranges: Ranges,
    worker: SessionWorker,
    input_sets: Sequence[Mapping[str, np.ndarray[Any, Any]]],
    found: dict[str, list[Interval]],
) -> list[str]:
    """Adds what the values of bodies measure; returns why they could not be."""
    types = _types_of_bodies(ranges)
    names, problems = list(types), list[str]()
    for start in range(0, len(names), _CHUNK):
        proto, extremes = exposing_bodies(lowered.proto, {name: types[name] for name in names[start : start + _CHUNK]})
        if not extremes:
            continue
        try:
            results = worker.run(lowered.with_proto(proto), input_sets).results
        except SessionError as error:
            return [f"values of bodies: {first_line(error.message)}"]
        for result in results:
            if result.error:
                problems.append(first_line(result.error))
                continue
            for one in extremes:
                low, high = float(result.outputs[one.low]), float(result.outputs[one.high])
                if low <= high:  # neither empty nor NaN, and computed at all
                    found.setdefault(one.value, []).append(Interval(low, high))
    return problems


def _types_of_bodies(ranges: Ranges) -> dict[str, int]:
    """The floating-point values of bodies; a name that means values of two types is left out."""
    types: dict[str, int] = {}
    doubtful: set[str] = set()
    for body in walk_bodies(ranges.view.graph):
        for name, kind in _types_of(ranges, body).items():
            if types.setdefault(name, kind) != kind:
                doubtful.add(name)
    return {name: kind for name, kind in types.items() if name not in doubtful}


def _types(ranges: Ranges) -> dict[str, int]:
    """The floating-point values of the main graph, with their element types."""
    return _types_of(ranges, ranges.view.graph)


def _types_of(ranges: Ranges, graph: Any) -> dict[str, int]:
    tensors = [*graph.inputs, *(tensor for node in graph.nodes if _is_typed(node) for tensor in node.outputs)]
    types = {}
    for tensor in tensors:
        dtype = ranges.dtype(tensor)
        if tensor.name and dtype is not None and dtype.kind in "fV":
            types[tensor.name] = int(helper.np_dtype_to_tensor_dtype(dtype))
    return types


def _is_typed(node: Any) -> bool:
    """Whether the types of the node's outputs are certain: a session refuses a Reduce of a value of another type."""
    domain = normal_domain(node.domain)
    return not domain.startswith("com.microsoft") or f"{domain}::{node.op}" in CONTRACTS


def _exposing(proto: ModelProto, types: Mapping[str, int]) -> ModelProto:
    """The model with two scalar outputs for each of the values, in place of its own."""
    made = ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    del graph.output[:]
    for index, (name, kind) in enumerate(types.items()):
        source = name
        if kind not in _REDUCED:
            source = f"rewright.range.{index}.wide"
            graph.node.append(helper.make_node("Cast", [name], [source], to=TensorProto.FLOAT))
            kind = TensorProto.FLOAT  # noqa: PLW2901
        for op, output in zip(("ReduceMin", "ReduceMax"), _outputs(index), strict=True):
            graph.node.append(helper.make_node(op, [source], [output], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(output, kind, []))
    return made


def _outputs(index: int) -> tuple[str, str]:
    return f"rewright.range.{index}.low", f"rewright.range.{index}.high"
