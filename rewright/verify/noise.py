"""How far rounding alone moves the outputs of the original: a floor under the tolerance of rewrites that round otherwise.

A decoder on inputs of magnitude 30 multiplies the last bit of an early value by hundreds. A fused normalisation, as exact as
what it replaces when both are held against float64, then differs by more than a fixed tolerance allows. What the original
itself loses is measured: its floating-point inputs, or the rows that it looks up for its tokens, move by one unit in the last
place, and its outputs show by how much they follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from zlib import crc32

import ml_dtypes
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from rewright.model.carrier import Model, all_graphs
from rewright.model.errors import UsageError
from rewright.verify.process import SessionError, SessionRun
from rewright.verify.roles import infer_roles
from rewright.verify.seeds import draws

Feed = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]
Runner = Callable[[Model, Sequence[Feed]], SessionRun]

SAMPLES: Final = 4
_NUMBERS: Final = frozenset(("float", "image", "waveform", "past"))
"""Kinds of inputs that hold measured numbers. A mask is not one: (1 - mask) * -3e38 makes anything of its last bit."""

_UNIT: Final[dict[int, float]] = {
    TensorProto.FLOAT: 2.0**-23,
    TensorProto.DOUBLE: 2.0**-52,
    TensorProto.FLOAT16: 2.0**-10,
    TensorProto.BFLOAT16: 2.0**-7,
}
"""The distance between 1 and the next larger number."""


PHASE: Final = "rewright/last-place/phase"
_FREQUENCY: Final = 1e5
"""Turns weights, which differ by a thousandth or so, into angles that have nothing in common."""

_PERTURBATION: Final = (
    "row", "wide", "phase", "frequency", "unit", "turned", "angle", "sine", "sign", "relative", "step", "moved",
)  # fmt: skip
"""The values between a looked-up row and its perturbed form."""


class NoiseFloor:
    """The movements of one original's outputs, measured once for an input set, when first asked for.

    Args:
        model: the original.
        run: loads a model once and runs it on the given feeds.
        coarse: a type of fewer digits that a pass has brought in; what is moved then moves by a unit of that.
    """

    def __init__(self, model: Model, run: Runner, coarse: np.dtype | None = None) -> None:
        self._model = model
        self._run = run
        self._unit = _UNIT[int(helper.np_dtype_to_tensor_dtype(coarse))] if coarse is not None else 0.0
        self._perturbed: Model | None = None
        # The feed is kept beside its measurement, so that no other one can come to have its id.
        self._measured: dict[int, tuple[Feed, dict[str, np.ndarray]]] = {}

    def of(self, feed: Feed, outputs: Outputs) -> Mapping[str, np.ndarray]:
        """For each real floating-point output, the largest movement of every element over some perturbations, as float64.

        `outputs` is what the original computes on this feed. Where the model has nothing to perturb, or draws random
        numbers, nothing is returned.
        """
        if id(feed) not in self._measured:
            self._measured[id(feed)] = feed, self._measure(feed, outputs)
        return self._measured[id(feed)][1]

    def _measure(self, feed: Feed, outputs: Outputs) -> dict[str, np.ndarray]:
        if draws(self._model):
            return {}
        try:
            if self._perturbed is None:
                self._perturbed = perturb_lookups(self._model, self._unit)
            feeds = perturbed_feeds(self._model, feed, self._unit)
            if _reads_phase(self._perturbed):
                feeds = [{**each, PHASE: np.asarray(sample, np.float32)} for sample, each in enumerate(feeds)]
            results = self._run(self._perturbed, feeds).results
        except (SessionError, UsageError):  # the floor is then zero, and nothing is excused
            return {}
        if any(result.error for result in results):
            return {}
        moved: dict[str, np.ndarray] = {}
        for name, reference in outputs.items():
            if reference.dtype.kind != "f" and reference.dtype != ml_dtypes.bfloat16:
                continue
            samples = [result.outputs[name] for result in results if name in result.outputs]
            if len(samples) == len(results) and all(sample.shape == reference.shape for sample in samples):
                moved[name] = _movement(reference, samples)
        return moved


def perturbed_feeds(model: Model, feed: Feed, unit: float = 0.0) -> list[dict[str, np.ndarray]]:
    """Some copies of the feed in which every element of a floating-point input is its upper or its lower neighbour.

    ``unit``: the least that it moves by, relative.
    """
    roles = [role for role in infer_roles(model) if role.kind in _NUMBERS and role.name in feed]
    feeds = []
    for sample in range(SAMPLES):
        arrays = dict(feed)
        for role in roles:
            rng = np.random.default_rng([crc32(role.name.encode()), sample])
            arrays[role.name] = _neighbours(arrays[role.name], rng, unit)
        feeds.append(arrays)
    return feeds


def perturb_lookups(model: Model, unit: float = 0.0) -> Model:
    """A copy in which each row that a Gather looks up in a weight is multiplied by 1 plus or minus a unit in the last place.

    The signs follow from the values and from a further input, the float32 scalar PHASE, which the copy has if there is
    such a Gather. (ONNX Runtime has no kernels for the random ops of opset 22.) ``unit`` is the least that counts as a unit.
    """
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    weights = {
        tensor.name: tensor.data_type
        for graph in all_graphs(proto)
        for tensor in graph.initializer
        if tensor.data_type in _UNIT and len(tensor.dims) >= 2
    }
    if sum(_perturb_graph(graph, weights, unit) for graph in all_graphs(proto)):
        proto.graph.input.append(helper.make_tensor_value_info(PHASE, TensorProto.FLOAT, []))
    return model.with_proto(proto)


def _reads_phase(model: Model) -> bool:
    return any(value.name == PHASE for value in model.proto.graph.input)


def _perturb_graph(graph: GraphProto, weights: Mapping[str, int], unit: float) -> bool:
    """Whether there was something to perturb."""
    fixed = {tensor.name for tensor in graph.initializer}
    fixed.update(name for node in graph.node if node.op_type == "Constant" for name in node.output)
    nodes: list[NodeProto] = []
    for node in graph.node:
        looks_up = node.op_type == "Gather" and node.domain in ("", "ai.onnx") and node.input[0] in weights
        if looks_up and node.input[1] not in fixed:
            nodes.extend(_perturbed_lookup(node, weights[node.input[0]], unit))
        else:
            nodes.append(node)
    if len(nodes) == len(graph.node):
        return False
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return True


def _perturbed_lookup(gather: NodeProto, dtype: int, unit: float) -> list[NodeProto]:
    """The Gather and what perturbs its output; in float64 where that is its type, else in float32."""
    output = gather.output[0]
    name = f"{output}/last-place"
    width = TensorProto.DOUBLE if dtype == TensorProto.DOUBLE else TensorProto.FLOAT
    inner = {key: f"{name}/{key}" for key in _PERTURBATION}
    looked_up = NodeProto()
    looked_up.CopyFrom(gather)
    looked_up.output[0] = inner["row"]

    def constant(key: str, value: float) -> NodeProto:
        return helper.make_node("Constant", [], [inner[key]], value=helper.make_tensor("", width, [], [value]))

    def node(op: str, key: str, *read: str) -> NodeProto:
        return helper.make_node(op, [inner[value] for value in read], [inner[key]])

    return [
        looked_up,
        helper.make_node("Cast", [inner["row"]], [inner["wide"]], to=int(width)),
        helper.make_node("Cast", [PHASE], [inner["phase"]], to=int(width)),
        constant("frequency", _FREQUENCY),
        constant("unit", max(unit, _UNIT[dtype])),
        node("Mul", "turned", "wide", "frequency"),
        node("Add", "angle", "turned", "phase"),
        node("Sin", "sine", "angle"),
        node("Sign", "sign", "sine"),
        node("Mul", "relative", "sign", "unit"),
        node("Mul", "step", "wide", "relative"),
        node("Add", "moved", "wide", "step"),
        helper.make_node("Cast", [inner["moved"]], [output], to=dtype),
    ]


def _neighbours(array: np.ndarray, rng: np.random.Generator, unit: float) -> np.ndarray:
    if array.dtype.kind == "f" and unit:
        factor = 1.0 + max(unit, float(np.finfo(array.dtype).eps)) * rng.choice([-1.0, 1.0], array.shape)
        return np.asarray(array * factor).astype(array.dtype)
    if array.dtype.kind == "f":
        upwards = rng.random(array.shape) < 0.5
        return np.asarray(np.nextafter(array, np.where(upwards, np.inf, -np.inf).astype(array.dtype)))
    if array.dtype == ml_dtypes.bfloat16:
        factor = 1.0 + _UNIT[TensorProto.BFLOAT16] * rng.choice([-1.0, 1.0], array.shape)
        return np.asarray(array.astype(np.float32) * factor).astype(array.dtype)
    return array


def _movement(reference: np.ndarray, samples: Sequence[np.ndarray]) -> np.ndarray:
    """Element by element the largest finite difference."""
    moved = np.zeros(reference.shape, np.float64)
    wanted = reference.astype(np.float64)
    for sample in samples:
        with np.errstate(invalid="ignore"):
            difference = np.abs(sample.astype(np.float64) - wanted)
        moved = np.maximum(moved, np.where(np.isfinite(difference), difference, 0.0))
    return moved
