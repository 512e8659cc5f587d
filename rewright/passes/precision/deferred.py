"""The child's side of ONNX Runtime's converter to float16: one model in, one file out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import GraphProto, ModelProto, TensorProto

from rewright.model.carrier import all_graphs, all_nodes
from rewright.model.regions import reads
from rewright.passes.ort.anchor_guard import quiet
from rewright.passes.ort.fusion_model import transformers_module
from rewright.passes.ort.proto_weights import MOST_BYTES, ProtoWeights


def convert(model: bytes, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Lets ``onnxruntime.transformers.float16`` convert a model, but for some nodes; inputs and outputs stay float32.

    Args:
        model: a serialized skeleton with the types of its values.
        arguments: "root", the folder that the skeleton's external data is relative to; "folder", an existing one to write to;
            "kept", the first outputs of the nodes that stay in float32; "most_bytes", how much of the weights may be in memory.

    Returns:
        "path" of the model that was written; "halves", the values that are float16 in it; "notes", what the converter says.

    Raises:
        TooManyWeights: the converter wants all weights in memory, and they are more than that.
        Exception: what the converter raises.
    """
    weights = ProtoWeights(arguments["root"], arguments["folder"], arguments.get("most_bytes") or MOST_BYTES)
    proto = weights.parse(model)
    weights.fill_all(proto)
    names = _named(proto)  # it knows nodes by name, and some have none, or that of another
    kept = set(arguments["kept"])
    blocked = [node.name for node in all_nodes(proto) if next(filter(None, node.output), "") in kept]
    notes: list[str] = []
    with quiet(notes):
        module = transformers_module("float16")
        made = module.convert_float_to_float16(proto, keep_io_types=True, node_block_list=blocked)
    for graph in all_graphs(made):
        _join_islands(graph, set(names))
    for node in all_nodes(made):
        node.name = names.get(node.name, node.name)
    return {"path": str(weights.write(weights.skeleton(made))), "halves": _halves(made), "notes": notes}


def _halves(proto: ModelProto) -> list[str]:
    described = [value for graph in all_graphs(proto) for value in graph.value_info]
    return [value.name for value in described if value.type.tensor_type.elem_type == TensorProto.FLOAT16]


def _join_islands(graph: GraphProto, before: set[str]) -> None:
    """Takes out the casts by way of float16 that the converter puts between two nodes which stay in float32 because of a range.

    ``before``: the names of nodes that are not the converter's.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.name not in before}
    kinds = {name: node.attribute[0].i for name, node in casts.items()}
    sources = {
        name: casts[node.input[0]].input[0]
        for name, node in casts.items()
        if kinds[name] == TensorProto.FLOAT and kinds.get(node.input[0]) == TensorProto.FLOAT16
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = sources.get(name, name)
    returned = {value.name for value in graph.output}
    for name in sources.keys() & returned:
        casts[name].input[0], casts[name].op_type = sources[name], "Identity"
        del casts[name].attribute[:]
    read = returned.union(*(reads(node) for node in graph.node if node.output[0] not in sources.keys() - returned))
    kept = [node for node in graph.node if node.output[0] not in casts or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)


def _named(proto: ModelProto) -> dict[str, str]:
    """Gives each node a name of its own; returns those that they had."""
    had = {}
    for number, node in enumerate(all_nodes(proto)):
        name = f"rewright.node.{number}"
        had[name], node.name = node.name, name
    return had
