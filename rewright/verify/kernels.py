"""Whether ONNX Runtime has a kernel for what a pass added, without loading the model.

Loading a model of fifty thousand nodes takes seconds and grows faster than the model; a pass adds nodes of a handful of
kinds. Each kind is loaded once, as a model of one node. The parity gate loads the whole model anyway, so that this check
is for runs without it, and for saying which op is at fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model, all_graphs, bodies
from rewright.model.load import load
from rewright.verify.process import SessionError, SessionWorker, first_line


class KernelEvidence(BaseModel):
    """Which added nodes ONNX Runtime refuses.

    `unknown` names one node of each kind that could not be tried, because the element type of an input is not known or
    because it has a body.
    """

    model_config = ConfigDict(extra="forbid")

    gate: Literal["kernels"] = "kernels"
    status: Literal["passed", "failed"]
    problems: list[str] = Field(default_factory=list)
    unknown: list[str] = Field(default_factory=list)


def check_kernels(after: Model, added_nodes: Iterable[str], worker: SessionWorker) -> KernelEvidence:
    """Load one node of every distinct kind (domain, op, input types, attributes) among the added ones.

    `added_nodes` are names; names that the model does not have are ignored. Graph, bodies included; not functions.
    """
    wanted = set(added_nodes)
    evidence = KernelEvidence(status="passed")
    nodes = [node for graph in all_graphs(after.proto) for node in graph.node if node.name in wanted]
    if not nodes:
        return evidence
    types = _element_types(after.proto)
    constants = {tensor.name: tuple(tensor.dims) for graph in all_graphs(after.proto) for tensor in graph.initializer}
    tried: set[bytes] = set()
    for node in nodes:
        input_types = [types.get(name, 0) if name else -1 for name in node.input]
        signature = _signature(node, input_types)
        if signature in tried:
            continue
        tried.add(signature)
        if 0 in input_types or next(bodies(node), None) is not None:
            evidence.unknown.append(f"{node.op_type} '{node.name}'")
            continue
        try:
            worker.load(load(_one_node_model(after.proto, node, types, constants)))
        except SessionError as error:
            evidence.problems.append(f"{node.op_type} '{node.name}': {first_line(error.message)}")
    if evidence.problems:
        evidence.status = "failed"
    return evidence


def _element_types(proto: ModelProto) -> dict[str, int]:
    """Element types by value name, as far as they are stated or onnx can infer them."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    types: dict[str, int] = {}
    for graph in all_graphs(inferred):
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.elem_type:
                types[value.name] = value.type.tensor_type.elem_type
        types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    return types


def _signature(node: NodeProto, input_types: list[int]) -> bytes:
    """What decides about a kernel; neither names nor the values of inputs do."""
    kind = NodeProto(op_type=node.op_type, domain=node.domain, output=["o" if name else "" for name in node.output])
    kind.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    return kind.SerializeToString(deterministic=True) + repr(input_types).encode()


def _one_node_model(
    proto: ModelProto, node: NodeProto, types: dict[str, int], constants: Mapping[str, tuple[int, ...]]
) -> ModelProto:
    names = dict.fromkeys(name for name in node.input if name)
    graph = GraphProto(name="one_node", node=[node])
    # some ops of com.microsoft insist on the shape of a constant, as MatMulNBits on that of its bias
    graph.input.extend(helper.make_tensor_value_info(name, types[name], constants.get(name)) for name in names)
    graph.output.extend(ValueInfoProto(name=name) for name in node.output if name)
    model = ModelProto(ir_version=proto.ir_version, graph=graph)
    model.opset_import.extend(proto.opset_import)
    model.functions.extend(proto.functions)
    return model
