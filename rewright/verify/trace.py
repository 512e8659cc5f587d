"""Values inside a model: its inner tensors as outputs of a throw-away copy, a bounded amount at a time."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from rewright.model.carrier import Model
from rewright.model.regions import GraphIndex, reads
from rewright.verify.process import SessionError, SessionWorker

CHUNK_BYTES: Final = 256 * 2**20
"""What one run may give back; the values of one model may be many times that."""

FIRST_CHUNK: Final = 16
SAMPLE: Final = 16_384
_REFUSALS: Final = 64
"""Failing runs until no more values are asked for; finding one value that is refused among n takes log2(n) of them."""


@dataclass(frozen=True)
class Seen:
    """What is kept of a value: all of it, or every so many elements of a large one.

    Attributes:
        dtype, shape: of the value.
        sample: one axis; values of one shape are sampled at the same places.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    sample: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> Seen:
        flat = array.reshape(-1)
        # odd, so that the places do not stay in one column of a matrix whose width is a power of two
        step = -(-flat.size // SAMPLE) | 1 if flat.size > SAMPLE else 1
        return cls(array.dtype, array.shape, flat[::step].copy())


class Tracer:
    """Runs one model on one input set for any of the values of its main graph.

    Attributes:
        index: who makes and who reads them.
        places: the values that nodes of the main graph make, in the order of computation.
    """

    def __init__(self, model: Model, arrays: Mapping[str, np.ndarray], worker: SessionWorker) -> None:
        self.model, self.arrays, self.worker = model, arrays, worker
        self.index = GraphIndex(model)
        self.places = self.index.producer
        self._largest = 0
        self._refused = 0

    def room(self) -> int:
        """How many values one run may give, going by the largest so far."""
        return max(1, CHUNK_BYTES // self._largest) if self._largest else FIRST_CHUNK

    def behind(self, outputs: Iterable[str]) -> list[str]:
        """The values that these are computed from, themselves included, in the order of computation."""
        needed = self._nodes_for(outputs)
        return [name for name, number in self.places.items() if number in needed]

    def after(self, name: str) -> set[str]:
        """The values that are computed from this one, itself included."""
        found = {name}
        for node in self.index.nodes:
            if not found.isdisjoint(reads(node)):
                found.update(filter(None, node.output))
        return found

    def fetch(self, names: Sequence[str], given: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The values of these names; without those that are no tensors or that ONNX Runtime does not give out.

        Args:
            given: takes the place of what the model computes for these names.
        """
        given = given or {}
        pending, found = [list(names)] if names else [], {}
        while pending and self._refused < _REFUSALS:
            part = pending.pop()
            try:
                result = self.worker.run(self._giving(part, given), [{**self.arrays, **given}]).results[0]
                error = result.error
            except SessionError as problem:
                error = problem.message
            if not error:
                found.update({name: result.outputs[name] for name in part if name in result.outputs})
            elif given:
                break  # what is given may fit nowhere, which no other part would mend
            else:
                self._refused += 1
                middle = len(part) // 2
                pending += [part[:middle], part[middle:]] if middle else []
        self._largest = max([self._largest, *(array.nbytes for array in found.values())])
        return found

    def _giving(self, names: Sequence[str], given: Mapping[str, np.ndarray]) -> Model:
        """The model with these values as its outputs, and without what they do not need."""
        needed = self._nodes_for(names, given)
        proto = ModelProto()
        proto.CopyFrom(self.model.proto)
        declared = {value.name: value for value in self.model.proto.graph.output}
        del proto.graph.output[:]
        # ONNX Runtime infers a type that is not stated
        proto.graph.output.extend(declared.get(name, ValueInfoProto(name=name)) for name in names)
        if len(needed) < len(self.index.nodes):
            del proto.graph.node[:]
            proto.graph.node.extend(self.index.nodes[number] for number in sorted(needed))
        for name, array in given.items():
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            proto.graph.input.append(helper.make_tensor_value_info(name, kind, None))
        for node in proto.graph.node if given else ():
            for place, name in enumerate(node.output):
                if name in given:
                    node.output[place] = f"{name}_as_computed"
        return self.model.with_proto(proto)

    def _nodes_for(self, names: Iterable[str], given: Container[str] = ()) -> Collection[int]:
        """The nodes that these values need, if those that are given need not be computed."""
        pending = [self.places[name] for name in names if name in self.places and name not in given]
        needed = set(pending)
        while pending:
            for name in reads(self.index.nodes[pending.pop()]):
                number = self.places.get(name)
                if number is not None and number not in needed and name not in given:
                    needed.add(number)
                    pending.append(number)
        return needed
