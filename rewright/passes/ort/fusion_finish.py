"""What surrounds a fusion class's work on a proto: names of graphs that tell them apart before, a well-formed model after."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from rewright.model.carrier import all_graphs, all_nodes
from rewright.model.elements import normal_domain
from rewright.passes.ort.fusion_model import sort


@contextlib.contextmanager
def finished(proto: ModelProto) -> Iterator[None]:
    """Gives the graphs of ``proto`` names of their own, by which the classes tell them apart, and afterwards puts it in order.

    Raises:
        ValueError: what is left has a cycle, or two weights or two values of one name.
    """
    names = {}
    for number, graph in enumerate(all_graphs(proto)):
        names[f"graph#{number}"] = graph.name
        graph.name = f"graph#{number}"
    inputs, outputs = list(proto.graph.input), list(proto.graph.output)
    yield
    for field, values in (("input", inputs), ("output", outputs)):
        del getattr(proto.graph, field)[:]
        getattr(proto.graph, field).extend(values)
    for graph in all_graphs(proto):
        graph.name = names.get(graph.name, graph.name)
        _drop_repeated(graph)
        sort(graph)
    _forget_lost_values(proto.graph)
    _import_domains(proto)


def _drop_repeated(graph: GraphProto) -> None:
    """Takes out a node or a weight that is there twice, as where two classes each put in the same Cast.

    Raises:
        ValueError: two that differ make, or are, values of one name.
    """
    makers: dict[str, NodeProto] = {}
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        made = next((name for name in node.output if name in makers), "")
        if not made:
            makers.update((name, node) for name in node.output if name)
        elif _is_same(node, makers[made]):
            del graph.node[index]
        else:
            raise ValueError(f"it leaves two nodes that make the value {made}")
    weights: dict[str, TensorProto] = {}
    for index in range(len(graph.initializer) - 1, -1, -1):
        tensor = graph.initializer[index]
        if weights.setdefault(tensor.name, tensor) is tensor:
            continue
        if tensor != weights[tensor.name]:
            raise ValueError(f"it leaves two weights of the name {tensor.name}")
        del graph.initializer[index]


def _is_same(one: NodeProto, other: NodeProto) -> bool:
    return (one.op_type, one.domain, list(one.input), list(one.output)) == (
        other.op_type,
        other.domain,
        list(other.input),
        list(other.output),
    ) and list(one.attribute) == list(other.attribute)


def _forget_lost_values(graph: GraphProto) -> None:
    """Takes out the types of values that nothing makes any more."""
    made = {name for node in graph.node for name in node.output}
    made.update(tensor.name for tensor in graph.initializer)
    for index in range(len(graph.value_info) - 1, -1, -1):
        if graph.value_info[index].name not in made:
            del graph.value_info[index]


def _import_domains(proto: ModelProto) -> None:
    known = {normal_domain(entry.domain) for entry in proto.opset_import}
    for domain in sorted({normal_domain(node.domain) for node in all_nodes(proto)} - known):
        proto.opset_import.add(domain=domain, version=1)
