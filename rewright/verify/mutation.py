"""The proof that the parity gate can fail: throw-away copies of the original with a fault in them, which it must notice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model
from rewright.verify.parity import ParityGate

MUTANTS_PER_KIND: Final = 2
_PERTURBED_ELEMENTS: Final = 2**20
"""Only tensors up to this size are copied into a mutant."""

_PERTURBATION: Final = 0.05
_MASK: Final = 1e4
_SWAPS: Final = {
    "Add": "Sub",
    "Sub": "Add",
    "Mul": "Add",
    "Div": "Mul",
    "Relu": "Neg",
    "Tanh": "Sigmoid",
    "Sigmoid": "Tanh",
    "Erf": "Tanh",
    "Sqrt": "Neg",
    "Exp": "Neg",
    "Neg": "Identity",
}
"""Ops of the same inputs and outputs that compute something else."""


class MutationEvidence(BaseModel):
    """Which faults were tried, and which of them the gate noticed.

    Some faults change nothing (a softmax does not see a constant added to its scores), so that the test is passed when
    at least half of them were noticed. `not-run` means that the original cannot be compared or offers no place for one.
    """

    model_config = ConfigDict(extra="forbid")

    status: Literal["passed", "failed", "not-run"]
    tried: list[str] = Field(default_factory=list)
    noticed: list[str] = Field(default_factory=list)
    reason: str = ""


def self_test(reference: Model, gate: ParityGate) -> MutationEvidence:
    """Put faults into copies of the reference, one at a time, and see whether the gate notices.

    Faults are a weight that is off by up to a twentieth, and an op that is taken for another one. No weight above 2^20
    elements is copied. Do this before quantizing passes are kept: their budget allows a fault of this size.
    """
    evidence = MutationEvidence(status="not-run")
    for kind in (_weight_mutants, _op_mutants):
        for description, mutant in kind(reference):
            judged = gate.check(mutant, "reassociating", is_trial=True)
            if judged.status == "not-run":
                evidence.reason = judged.reason
                return evidence
            evidence.tried.append(description)
            if judged.status == "failed":
                evidence.noticed.append(description)
    if not evidence.tried:
        evidence.reason = "the model has no weight and no op to put a fault into"
    elif 2 * len(evidence.noticed) >= len(evidence.tried):
        evidence.status = "passed"
    else:
        missed = [description for description in evidence.tried if description not in evidence.noticed]
        evidence.status, evidence.reason = "failed", f"the parity gate did not notice: {'; '.join(missed)}"
    return evidence


def _weight_mutants(reference: Model) -> Iterator[tuple[str, Model]]:
    """Perturb the float initializers that are closest to the outputs, where no later layer can hide it."""
    readers = _distances(reference.proto)
    candidates = [
        (readers[tensor.name], index)
        for index, tensor in enumerate(reference.proto.graph.initializer)
        if tensor.name in readers and tensor.data_type == TensorProto.FLOAT and _is_perturbable(tensor)
    ]
    telling = (index for _, index in sorted(candidates) if not _masks(reference, index))
    for index in islice(telling, MUTANTS_PER_KIND):
        name = reference.proto.graph.initializer[index].name

        def perturb(proto: ModelProto, index: int = index) -> None:
            tensor = proto.graph.initializer[index]
            stored = reference.tensor(reference.proto.graph.initializer[index])
            values, largest = np.asarray(stored, np.float64), float(np.finfo(stored.dtype).max)
            spread = float(np.std(values)) or float(np.max(np.abs(values))) or 1.0
            noise = np.random.default_rng(index).uniform(-_PERTURBATION, _PERTURBATION, values.shape)
            perturbed = np.clip(values + spread * noise, -largest, largest)  # masks are filled with the lowest number
            tensor.CopyFrom(numpy_helper.from_array(perturbed.astype(stored.dtype), tensor.name))

        yield f"weight '{name}' perturbed by a twentieth", _mutant(reference, perturb)


def _masks(reference: Model, index: int) -> bool:
    """Whether an initializer is a number that is put in the place of masked scores: a twentieth of it more masks as well."""
    tensor = reference.proto.graph.initializer[index]
    return math.prod(tensor.dims) == 1 and abs(float(reference.tensor(tensor).reshape(-1)[0])) >= _MASK


def _op_mutants(reference: Model) -> Iterator[tuple[str, Model]]:
    """Swap the ops that are closest to the outputs."""
    distances = _distances(reference.proto)
    candidates = sorted(
        (distances[node.output[0]], index)
        for index, node in enumerate(reference.proto.graph.node)
        if node.op_type in _SWAPS and node.domain in ("", "ai.onnx") and node.output[0] in distances
    )
    for _, index in candidates[:MUTANTS_PER_KIND]:
        node = reference.proto.graph.node[index]

        def swap(proto: ModelProto, index: int = index) -> None:
            proto.graph.node[index].op_type = _SWAPS[proto.graph.node[index].op_type]

        yield f"{node.op_type} '{node.name}' taken for {_SWAPS[node.op_type]}", _mutant(reference, swap)


def _mutant(reference: Model, change: Callable[[ModelProto], None]) -> Model:
    copy = onnx.ModelProto()
    copy.CopyFrom(reference.proto)
    change(copy)
    return reference.with_proto(copy)


def _is_perturbable(tensor: TensorProto) -> bool:
    return 0 < math.prod(tensor.dims) <= _PERTURBED_ELEMENTS


def _distances(proto: ModelProto) -> dict[str, int]:
    """How many nodes lie between a value of the main graph and the nearest output that it reaches."""
    producers: dict[str, NodeProto] = {name: node for node in proto.graph.node for name in node.output if name}
    distances = {output.name: 0 for output in proto.graph.output}
    reached = list(distances)
    for name in reached:  # grows while it is walked: breadth first
        node = producers.get(name)
        for read in node.input if node is not None else ():
            if read and read not in distances:
                distances[read] = distances[name] + 1
                reached.append(read)
    return distances
