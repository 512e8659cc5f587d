"""Rewrites fused ops into calls of model-local functions that hold their meaning in standard ops.

The verifier runs a model that was made for another target this way: an op without a kernel here is run through the body in
its contract.
"""

from __future__ import annotations

from itertools import count

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, helper

from rewright.model.carrier import Model, all_graphs
from rewright.model.elements import normal_domain
from rewright.ops.contract import CONTRACTS, OpContract
from rewright.ops.targets import unsupported
from rewright.ops.widening import widened

LOWERED_DOMAIN = "rewright.lowered"
"""The domain of the functions; each specialisation has a name of its own."""

_FIRST_IR_WITH_FUNCTIONS = 8


def lower(model: Model, target: str = "cpu", every: bool = False) -> Model:
    """The same computation without the ops that ``target`` cannot run, as far as contracts describe them, and without bfloat16 on
    the CPU; ``model`` itself if there is nothing to do.

    Nodes of the graph and of its bodies are rewritten, each for its own attributes, optional inputs and element type.
    Left alone are nodes whose element type neither the model states nor onnx infers, and nodes inside model-local functions,
    whose values have no types, and nodes that ask for what their contract does not describe.

    Args:
        model: any model.
        target: where the result is going to run.
        every: also lowers the ops that the target has a kernel for.
    """
    if target == "cpu" and not every:
        model = widened(model)
    proto = model.proto
    if not any(_contract(node) for graph in all_graphs(proto) for node in graph.node):
        return model
    lowering = _Lowering(proto, target, every)
    lowered = ModelProto()
    lowered.CopyFrom(proto)
    for graph in all_graphs(lowered):
        lowering.graph(graph)
    if not lowering.functions:
        return model
    lowered.functions.extend(lowering.functions.values())
    if all(entry.domain != LOWERED_DOMAIN for entry in proto.opset_import):
        lowered.opset_import.append(helper.make_opsetid(LOWERED_DOMAIN, 1))
    lowered.ir_version = max(lowered.ir_version, _FIRST_IR_WITH_FUNCTIONS)
    return model.with_proto(lowered)


class _Lowering:
    def __init__(self, proto: ModelProto, target: str, every: bool) -> None:
        self._types = _element_types(proto)
        self._opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
        self._target = target
        self._every = every
        self._taken = {function.name for function in proto.functions}
        self._by_key: dict[tuple[object, ...], FunctionProto | None] = {}
        self.functions: dict[bytes, FunctionProto] = {}

    def graph(self, graph: GraphProto) -> None:
        """Rewrites the nodes of one graph in place."""
        for node in graph.node:
            contract = _contract(node)
            elem_type = self._types.get(_typing_input(node, contract), 0) if contract is not None else 0
            if contract is not None and elem_type and self._wanted(node, elem_type):
                self._call(node, contract, elem_type)

    def _wanted(self, node: NodeProto, elem_type: int) -> bool:
        dtype = helper.tensor_dtype_to_np_dtype(elem_type)
        return self._every or unsupported(normal_domain(node.domain), node.op_type, dtype, self._target) is not None

    def _call(self, node: NodeProto, contract: OpContract, elem_type: int) -> None:
        key = _specialisation(node, contract, elem_type)
        if key not in self._by_key:
            self._by_key[key] = self._function(node, contract, elem_type)
        function = self._by_key[key]
        if function is None:
            return
        given = [name for name in node.input if name], [name for name in node.output if name]
        del node.attribute[:], node.input[:], node.output[:]
        node.input.extend(given[0])
        node.output.extend(given[1])
        node.domain, node.op_type = function.domain, function.name

    def _function(self, node: NodeProto, contract: OpContract, elem_type: int) -> FunctionProto | None:
        body = contract.body(node, self._opset, elem_type) if _described(node, contract) else None
        if body is None:
            return None
        same = body.SerializeToString(deterministic=True)
        if same not in self.functions:
            numbered = (f"{contract.op}_{number}" for number in count(len(self.functions)))
            body.domain, body.name = LOWERED_DOMAIN, next(name for name in numbered if name not in self._taken)
            self._taken.add(body.name)
            self.functions[same] = body
        return self.functions[same]


def _specialisation(node: NodeProto, contract: OpContract, elem_type: int) -> tuple[object, ...]:
    """All that a body can depend on: nodes that agree in it share one."""
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return contract.domain, contract.op, elem_type, *map(bool, node.input), "outputs", *map(bool, node.output), *attributes


def _contract(node: NodeProto) -> OpContract | None:
    return CONTRACTS.get(f"{normal_domain(node.domain)}::{node.op_type}")


def _described(node: NodeProto, contract: OpContract) -> bool:
    """Whether the contract knows all that the node has; a later version of the op may have more."""
    attributes = all(attribute.name in contract.attributes for attribute in node.attribute)
    return attributes and not any(node.input[len(contract.inputs) :]) and not any(node.output[len(contract.outputs) :])


def _typing_input(node: NodeProto, contract: OpContract) -> str:
    return node.input[contract.typed_by] if contract.typed_by < len(node.input) else ""


def _element_types(proto: ModelProto) -> dict[str, int]:
    """Element types by value name: as the model states them, and where that leaves a contract op open, as onnx infers them."""
    typed = [
        (_typing_input(node, contract), node.output[0])
        for graph in all_graphs(proto)
        for node in graph.node
        if node.output and (contract := _contract(node)) is not None
    ]
    types = _spread(_stated_types(proto), typed)
    if any(name not in types for name, _ in typed):
        types = _spread(_stated_types(onnx.shape_inference.infer_shapes(proto)), typed)
    return types


def _spread(types: dict[str, int], typed: list[tuple[str, str]]) -> dict[str, int]:
    """Adds what follows from a contract op's first output having the type of the input that the contract is typed by."""
    for pair in typed:
        for known, same in (pair, pair[::-1]):
            if known in types and same:
                types.setdefault(same, types[known])
    return types


def _stated_types(proto: ModelProto) -> dict[str, int]:
    types: dict[str, int] = {}
    for graph in all_graphs(proto):
        types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.elem_type:
                types[value.name] = value.type.tensor_type.elem_type
    return types
