"""The faults that a cleanup pass can have: a wrong constant, a node too many taken out, a value taken for another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rewright.model.carrier import Model
from rewright.testing.mutants.mutant import Mutant
from rewright.testing.mutants.spots import Array

_MOST: Final = 3
"""Places for each kind of fault."""

_KEEPING_SHAPE: Final = frozenset({"Add", "Sub", "Mul", "Div", "Tanh", "Erf", "Relu", "Gelu", "Softmax", "LayerNormalization"})
_SELECTING: Final = frozenset({"Gather", "Shape", "Slice"})
"""Where one more may be out of range, of no consequence, or cut off again."""

_LARGEST: Final = 2**16

Item = TypeVar("Item")
Kind = tuple[int, tuple[int | str, ...]]


def cleanup_mutants(name: str, before: Model, after: Model) -> list[Mutant]:
    """Faults at places that the pass of this name has changed, spread over the main graph."""
    if name == "dead-code":
        return _spread(list(_removed(after.proto)))
    kinds = _kinds(before.proto)
    makers = (
        _wrong_constants(before.proto, after),
        _wrong_values(before.proto, after.proto, kinds),
        _wrong_lengths(before.proto, after.proto, kinds),
        _taken_out(before.proto, after.proto, kinds),
    )
    return [mutant for maker in makers for mutant in _spread(list(maker))]


def _spread(items: Sequence[Item]) -> list[Item]:
    return list(items) if len(items) <= _MOST else [items[len(items) * place // _MOST] for place in range(_MOST)]


def _mutant(kind: str, fault: str, op: str, change: Callable[[Model], None]) -> Mutant:
    return Mutant(kind, fault, "one site", op, change)


def _wrong_constants(before: ModelProto, after: Model) -> Iterator[Mutant]:
    """Constants in the place of what nodes computed, and new ones."""
    held = {tensor.name for tensor in before.graph.initializer}
    held.update(name for node in before.graph.node if node.op_type == "Constant" for name in node.output)
    read = {name for node in after.proto.graph.node for name in node.input}
    for number, tensor in enumerate(after.proto.graph.initializer):
        if tensor.name not in held and tensor.name in read:
            array = after.tensor(tensor)
            if 0 < array.size <= _LARGEST and array.dtype.kind in "iufb":
                yield _mutant("constant", f"the constant '{tensor.name}' off in one element", "", partial(_spoil, number))


def _spoil(number: int, model: Model) -> None:
    tensor = model.proto.graph.initializer[number]
    changed = np.array(model.tensor(tensor))
    last = changed.reshape(-1)[-1:]
    last[:] = _other(last)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def _other(value: Array) -> Array:
    if value.dtype.kind == "b":
        return np.logical_not(value)
    is_step = value.dtype.kind in "iu" or not value.any()
    return np.asarray(value + value.dtype.type(1) if is_step else value * value.dtype.type(1.01))


def _wrong_values(before: ModelProto, after: ModelProto, kinds: dict[str, Kind]) -> Iterator[Mutant]:
    """Nodes that read something else than before: they read yet another value of the same type and shape."""
    for number, position in _rewired(before, after):
        node = after.graph.node[number]
        held = kinds.get(node.input[position])
        earlier = [name for other in after.graph.node[:number] for name in other.output if name and kinds.get(name) == held]
        others = [name for name in earlier if name not in node.input]
        if held is not None and held[0] == TensorProto.FLOAT and others:
            change = partial(_read_another, number, position, others[-1])
            yield _mutant("wiring", f"{node.op_type} '{node.name}' reads another value", node.op_type, change)


def _read_another(number: int, position: int, name: str, model: Model) -> None:
    model.proto.graph.node[number].input[position] = name


def _wrong_lengths(before: ModelProto, after: ModelProto, kinds: dict[str, Kind]) -> Iterator[Mutant]:
    """Nodes that read a length from somewhere else than before: it is one too large there."""
    for number, position in _rewired(before, after):
        node = after.graph.node[number]
        if kinds.get(node.input[position], (0,))[0] == TensorProto.INT64 and node.op_type not in _SELECTING:
            change = partial(_lengthen, number, position)
            yield _mutant("wiring", f"{node.op_type} '{node.name}' reads one more than it should", node.op_type, change)


def _lengthen(number: int, position: int, model: Model) -> None:
    graph = model.proto.graph
    node = graph.node[number]
    more, one = f"{node.name}/more", f"{node.name}/one"
    graph.initializer.append(numpy_helper.from_array(np.asarray(1, np.int64), one))
    graph.node.insert(number, helper.make_node("Add", [node.input[position], one], [more], more))
    graph.node[number + 1].input[position] = more


def _taken_out(before: ModelProto, after: ModelProto, kinds: dict[str, Kind]) -> Iterator[Mutant]:
    """Nodes beside what the pass has changed that compute something: they are taken out as if they did not."""
    for number in dict.fromkeys(number for number, _ in _rewired(before, after)):
        node = after.graph.node[number]
        alike = kinds.get(node.input[0]) is not None and kinds.get(node.input[0]) == kinds.get(node.output[0])
        if node.op_type in _KEEPING_SHAPE and not node.domain and alike:
            yield _mutant("op", f"{node.op_type} '{node.name}' taken out too", node.op_type, partial(_take_out, number))


def _take_out(number: int, model: Model) -> None:
    node = model.proto.graph.node[number]
    node.CopyFrom(helper.make_node("Identity", [node.input[0]], [node.output[0]], node.name))


def _removed(after: ModelProto) -> Iterator[Mutant]:
    """Nodes that something reads, removed as if nothing did."""
    read = {name for node in after.graph.node for name in node.input} | {value.name for value in after.graph.output}
    for number, node in enumerate(after.graph.node):
        if read.intersection(node.output):
            yield _mutant("op", f"{node.op_type} '{node.name}' removed", node.op_type, partial(_remove, number))


def _remove(number: int, model: Model) -> None:
    del model.proto.graph.node[number]


def _rewired(before: ModelProto, after: ModelProto) -> Iterator[tuple[int, int]]:
    """(number of the node, position of the input) wherever a node that stayed reads another value."""
    held: dict[str, NodeProto] = {node.name: node for node in before.graph.node if node.name}
    for number, node in enumerate(after.graph.node):
        old = held.get(node.name)
        if old is not None and len(old.input) == len(node.input):
            pairs = zip(old.input, node.input, strict=True)
            yield from ((number, position) for position, (first, second) in enumerate(pairs) if first != second)


def _kinds(proto: ModelProto) -> dict[str, Kind]:
    """Element type and dimensions of the values whose shape is known."""
    found: dict[str, Kind] = {}
    graph = onnx.shape_inference.infer_shapes(proto).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        held = value.type.tensor_type
        dims = tuple(dim.dim_param or dim.dim_value for dim in held.shape.dim)
        if all(dims) and held.HasField("shape"):
            found[value.name] = (held.elem_type, dims)
    return found
