"""The model object that fusion classes of ``onnxruntime.transformers`` work on here.

It is their own, ``OnnxModel`` or a driver of a model type, with some answers of ours:

1. Shapes come from the model's ``value_info``, so that neither sympy nor symbolic shape inference is needed.
2. Weights are read when they are looked up.
3. What bodies of If, Loop and Scan capture, at any depth, counts as used; so do the outputs of the graph.
4. Pruning takes away what has become unused, never an input, nor what nothing used from the beginning.
5. Lookups take an index instead of a search by deep comparison, and what a class asks for again and again is remembered.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from rewright.model.carrier import all_graphs
from rewright.model.regions import reads
from rewright.passes.ort.proto_weights import ProtoWeights

_PACKAGE: Final = "onnxruntime.transformers"


def transformers_module(name: str) -> Any:
    """A module of ``onnxruntime.transformers``, whose modules import each other by their bare names.

    Raises:
        ValueError: the installed onnxruntime has no such module.
    """
    try:
        folder = os.path.dirname(str(importlib.import_module(_PACKAGE).__file__))
        sys.path.insert(0, folder)  # before packages of the same names
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)
    except ImportError as error:
        version = importlib.import_module("onnxruntime").__version__
        raise ValueError(f"onnxruntime {version} has no usable {_PACKAGE}.{name}: {error}") from error


def model_class(base: type[Any], weights: ProtoWeights) -> type[Any]:
    """A subclass of ``OnnxModel`` or of one of its subclasses with the answers of this module."""
    return type(f"Own{base.__name__}", (_OwnAnswers, base), {"weights": weights})


class KnownShapes:
    """What ``SymbolicShapeInferenceHelper`` answers, from the shapes that the model states.

    Attributes:
        known_vi_: the stated type of every value, by name; one without a shape for a value that has none.
    """

    def __init__(self, proto: ModelProto) -> None:
        self.known_vi_: dict[str, ValueInfoProto] = _StatedTypes()
        for graph in all_graphs(proto):
            for value in (*graph.value_info, *graph.input, *graph.output):
                self.known_vi_.setdefault(value.name, value)
            for tensor in graph.initializer:
                if tensor.name not in self.known_vi_:
                    self.known_vi_[tensor.name] = onnx.helper.make_tensor_value_info(
                        tensor.name, tensor.data_type, list(tensor.dims)
                    )

    def get_edge_shape(self, edge: str) -> list[int | str] | None:
        """The dimensions, numbers or names, or None; a dimension that nobody named equals no other."""
        tensor_type = self.known_vi_[edge].type.tensor_type
        if not tensor_type.HasField("shape"):
            return None
        return [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"?{edge}:{axis}"
            for axis, dim in enumerate(tensor_type.shape.dim)
        ]

    def compare_shape(self, edge: str, edge_other: str) -> bool:
        """Whether both shapes are known and equal."""
        shape = self.get_edge_shape(edge)
        return shape is not None and shape == self.get_edge_shape(edge_other)


class _StatedTypes(dict[str, ValueInfoProto]):
    def __missing__(self, name: str) -> ValueInfoProto:
        return ValueInfoProto(name=name)


class _OwnAnswers:
    """Overrides methods of ``OnnxModel``; their names and arguments are its."""

    weights: ProtoWeights
    model: ModelProto
    enable_shape_infer: bool
    all_graphs: list[GraphProto] | None

    def initialize(self, model: ModelProto) -> None:
        super().initialize(model)  # type: ignore[misc]
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[str, NodeProto] = {}
        self._indexed: tuple[int, ...] = ()
        self._unused_before = _unused(model.graph)
        self._makers: dict[str, NodeProto] | None = None
        self._keeps_makers = False
        self._inputs = set(self.get_graphs_input_names())  # type: ignore[attr-defined]

    def infer_runtime_shape(self, dynamic_axis_mapping: Any = None, update: bool = False) -> KnownShapes | None:
        return KnownShapes(self.model) if self.enable_shape_infer else None

    # Lookups.

    def get_initializer(self, name: str) -> TensorProto | None:
        self._index()
        tensor = self._initializers.get(name)
        if tensor is not None:
            self.weights.fill(tensor)
        return tensor

    def get_constant_value(self, output_name: str) -> Any:
        self._index()
        node = self._constants.get(output_name)
        if node is not None:
            for attribute in node.attribute:
                if attribute.name == "value":
                    return onnx.numpy_helper.to_array(attribute.t)
        tensor = self.get_initializer(output_name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def output_name_to_node(self, exclude_subgraphs: bool = False) -> dict[str, NodeProto]:
        if not self._keeps_makers or exclude_subgraphs:
            return super().output_name_to_node(exclude_subgraphs)  # type: ignore[misc, no-any-return]
        if self._makers is None or self._counts() != self._indexed:
            self._index()
            self._makers = super().output_name_to_node()  # type: ignore[misc]
        return self._makers

    def remember_makers(self, is_on: bool) -> None:
        """Whether who makes which value may be remembered from now on; what was remembered is forgotten."""
        self._keeps_makers, self._makers = is_on, None

    def forget_makers_after(self, removed: Sequence[NodeProto], added: Sequence[NodeProto]) -> None:
        """Forgets who makes which value if a change has renamed what a node makes that it does not take away.

        Then a new node makes a value that such a node used to make, or reads one that nobody has heard of.
        """
        if self._makers is None:
            return
        makers, gone = self._makers, {id(node) for node in removed}
        given = {name for node in added for name in node.output}
        taken = (makers[name] for name in given if name in makers)
        if any(id(node) not in gone for node in taken) or any(
            name and not (name in makers or name in given or name in self._initializers or name in self._inputs)
            for node in added
            for name in node.input
        ):
            self._makers = None

    def _index(self) -> None:
        counts = self._counts()
        if counts == self._indexed:
            return
        self._indexed = counts
        graphs = self._graphs()
        # The first one of a name counts, outer graphs before bodies.
        self._initializers = {tensor.name: tensor for graph in reversed(graphs) for tensor in reversed(graph.initializer)}
        self._constants = {
            node.output[0]: node
            for graph in reversed(graphs)
            for node in reversed(graph.node)
            if node.op_type == "Constant" and node.output
        }

    def _counts(self) -> tuple[int, ...]:
        return tuple(count for graph in self._graphs() for count in (len(graph.node), len(graph.initializer)))

    def _graphs(self) -> list[GraphProto]:
        return self.graphs()  # type: ignore[attr-defined, no-any-return]

    def get_graph_by_node(self, node: NodeProto) -> GraphProto | None:
        graphs = self._graphs()
        return graphs[0] if len(graphs) == 1 else next((graph for graph in graphs if _position(graph.node, node) >= 0), None)

    # Changes.

    def remove_node(self, node: NodeProto) -> None:
        for graph in self._graphs():
            position = _position(graph.node, node)
            if position >= 0:
                del graph.node[position]
                return

    def remove_initializer(self, tensor: TensorProto) -> None:
        for graph in self._graphs():
            position = _position(graph.initializer, tensor)
            if position >= 0:
                del graph.initializer[position]
                self._indexed = ()
                return

    def is_safe_to_fuse_nodes(
        self, nodes_to_remove: Any, keep_outputs: Any, input_name_to_nodes: Any, output_name_to_node: Any
    ) -> bool:
        given = set(self.get_graphs_output_names())  # type: ignore[attr-defined]
        if any(name in given and name not in keep_outputs for node in nodes_to_remove for name in node.output):
            return False
        return bool(
            super().is_safe_to_fuse_nodes(  # type: ignore[misc]
                nodes_to_remove, keep_outputs, input_name_to_nodes, output_name_to_node
            )
        )

    def update_graph(self, verbose: bool = False, allow_remove_graph_inputs: bool = False) -> None:
        graph = self.model.graph
        used = _used(graph, graph.node)
        _keep(graph.initializer, lambda tensor: tensor.name in used or tensor.name in self._unused_before)
        self._indexed = ()
        self.remove_unused_constant()

    def remove_unused_constant(self) -> None:
        used = _used(self.model.graph, self.model.graph.node)
        _keep(
            self.model.graph.node,
            lambda node: node.op_type != "Constant" or node.output[0] in used or node.output[0] in self._unused_before,
        )

    def prune_graph(self, outputs: Any = None, allow_remove_graph_inputs: bool = True) -> None:
        graph = self.model.graph
        needed = _live(graph) | self._unused_before
        made: set[str] = set()
        for index in range(len(graph.node) - 1, -1, -1):  # a new node takes the place of an older one that makes the same value
            names = [name for name in graph.node[index].output if name in needed and name not in made]
            if names:
                made.update(names)
            else:
                del graph.node[index]
        self.update_graph()

    def topological_sort(self, is_deterministic: bool = False, dump_model_on_failure: bool = False) -> None:
        for graph in self._graphs():
            sort(graph)


def _position(repeated: Any, wanted: Any) -> int:
    return next((index for index, item in enumerate(repeated) if item is wanted), -1)


def _keep(repeated: Any, is_kept: Any) -> None:
    """Deletes the other elements; those that stay are the same objects as before."""
    for index in range(len(repeated) - 1, -1, -1):
        if not is_kept(repeated[index]):
            del repeated[index]


def _used(graph: GraphProto, nodes: Iterable[NodeProto]) -> set[str]:
    """The names that the nodes, their bodies, and the graph's interface refer to."""
    names = {name for node in nodes for name in reads(node)}
    names.update(value.name for value in (*graph.output, *graph.input))
    return names


def _live(graph: GraphProto) -> set[str]:
    """The values that the graph's outputs depend on."""
    makers = {name: node for node in graph.node for name in node.output if name}
    live: set[str] = set()
    pending = [value.name for value in graph.output]
    while pending:
        name = pending.pop()
        if name not in live:
            live.add(name)
            if name in makers:
                pending.extend(reads(makers[name]))
    return live


def _unused(graph: GraphProto) -> set[str]:
    """The values that nothing uses."""
    live = _live(graph)
    names = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output if name}
    dead_nodes = [node for node in graph.node if live.isdisjoint(node.output)]
    return (names - live) | {name for node in dead_nodes for name in reads(node)} - live


def sort(graph: GraphProto) -> None:
    """Puts the nodes in topological order, captures counted; each node as late as before, or just before its first reader.

    Raises:
        ValueError: they form a cycle.
    """
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    order: list[int] = []
    state = bytearray(len(nodes))  # 1: on the way to it, 2: placed
    for start in range(len(nodes)):
        path: list[tuple[int, Iterator[int]]] = []
        wanted = start
        while True:
            if not state[wanted]:
                state[wanted] = 1
                path.append((wanted, iter([makers[name] for name in reads(nodes[wanted]) if name in makers])))
            elif state[wanted] == 1:
                raise ValueError(f"the nodes that it leaves form a cycle through {nodes[wanted].name or nodes[wanted].op_type}")
            while path and (following := next(path[-1][1], None)) is None:
                done = path.pop()[0]
                state[done] = 2
                order.append(done)
            if not path:
                break
            wanted = following  # type: ignore[assignment]
    if order != list(range(len(nodes))):
        del graph.node[:]
        graph.node.extend(nodes[index] for index in order)
