"""Graphs of the editing view: ``gs.Graph`` and ``gs.Function`` with the methods repaired that are wrong or quadratic."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx_graphsurgeon as gs
from onnx import FunctionProto, GraphProto, TensorProto

from rewright.model.elements import Constant, make_constant, make_node, make_variable
from rewright.model.errors import PassError
from rewright.model.order import node_has_bodies, stable_order


class GraphState:
    """What graphsurgeon's graph does not keep: the source proto, the initializers by name, defaults of inputs."""

    def __init__(self, proto: GraphProto | FunctionProto | None) -> None:
        self.proto = proto
        self.initializers: dict[str, Constant] = {}
        self.input_defaults: dict[str, TensorProto] = {}
        self.opsets: dict[str, int] | None = None
        self.layer_names: set[str] | None = None
        self.shell: GraphProto | None = None

    def copied(self, tensors: dict[str, Any]) -> GraphState:
        """The state of a copy of the graph whose tensors are ``tensors``."""
        made = GraphState(self.proto)
        made.initializers = {name: tensors.get(constant.name, constant) for name, constant in self.initializers.items()}
        made.input_defaults = dict(self.input_defaults)
        made.opsets = self.opsets
        return made


def state_of(graph: Any) -> GraphState:
    """The graph's state; a fresh one for a ``gs.Graph`` that a pass made itself."""
    state: GraphState = graph.__dict__.setdefault("state", GraphState(None))
    return state


class _Repaired:
    """Methods that ``Graph`` and ``Function`` share."""

    nodes: list[Any]
    inputs: list[Any]
    outputs: list[Any]
    name: str
    doc_string: str
    functions: list[Any]
    state: GraphState

    def __getattr__(self, name: str) -> Any:
        # graphsurgeon logs an error for any unknown name, and copying a graph then never ends.
        registered = name in gs.Graph.GLOBAL_FUNC_MAP or any(name in table for table in gs.Graph.OPSET_FUNC_MAP.values())
        local = any(function.name == name for function in self.__dict__.get("_functions", ()))
        if not (registered or local):
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        return super().__getattr__(name)  # type: ignore[misc]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = memo[id(self)] = self.copy()
        return made

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled; pass the model's serialized proto instead.")

    @property
    def opset(self) -> int:
        """The version of the standard domain; assigning it changes what the exported model imports."""
        versions = self.state.opsets
        return int(versions.get("", self.__dict__["_opset"]) if versions is not None else self.__dict__["_opset"])

    @opset.setter
    def opset(self, version: int) -> None:
        self.__dict__["_opset"] = version
        if self.state.opsets is not None:
            self.state.opsets[""] = version

    def layer(self, inputs: Any = (), outputs: Any = (), *args: Any, **kwargs: Any) -> Any:
        """graphsurgeon's ``layer``: a new node at the end of the node list. Linear: the graph's names are collected once."""
        names = self.state.layer_names
        if names is None:
            names = self.state.layer_names = {node.name for node in self.nodes}
            names.update(tensor.name for tensor in (*self.inputs, *self.outputs))
            for node in self.nodes:
                names.update(tensor.name for tensor in (*node.inputs, *node.outputs))
        options = dict(zip(("op", "name", "attrs"), args, strict=False)) | kwargs
        read = [_layer_tensor(item, names) for item in inputs or ()]
        made = [_layer_tensor(item, names) for item in outputs or ()]
        name = options.get("name") or _unused("onnx_graphsurgeon_node", names)
        node = make_node(options["op"], name, options.get("domain") or "", read, made)
        node.attrs = dict(options.get("attrs") or {})
        self.nodes.append(node)
        return node.outputs

    def copy(self, tensor_map: dict[str, Any] | None = None) -> Any:
        """A copy of the nodes, tensors and bodies. Weights are shared; captured values come from ``tensor_map`` by name."""
        captured = dict(tensor_map or {})
        own = {tensor.name: tensor for node in self.nodes for tensor in node.outputs}
        own |= {tensor.name: tensor for tensor in self.inputs} | {c.name: c for c in self.state.initializers.values()}
        tensors = captured | {name: tensor.copy() for name, tensor in own.items() if name}

        def copied(tensor: Any) -> Any:
            if not tensor.name:
                return make_variable("")
            if tensor.name not in tensors:  # captured, and copied without the graph around it
                tensors[tensor.name] = tensor.copy()
            return tensors[tensor.name]

        made = self._empty_copy()
        made.state = self.state.copied(tensors)
        for node in self.nodes:
            ends = [copied(tensor) for tensor in node.inputs], [copied(tensor) for tensor in node.outputs]
            made.nodes.append(node.copy(*ends, tensors))
        made.inputs = [copied(tensor) for tensor in self.inputs]
        made.outputs = [copied(tensor) for tensor in self.outputs]
        made._functions = self.functions
        return made

    if TYPE_CHECKING:

        def _empty_copy(self) -> Any: ...

    def toposort(self, *_: Any, **__: Any) -> Any:
        """Sorts the nodes; stable and iterative."""
        self.nodes = stable_order(self.nodes)
        for graph in list(walk_bodies(self)):
            graph.nodes = stable_order(graph.nodes)
        return self

    def cleanup(self, *_: Any, **__: Any) -> Any:
        """Removes the nodes whose outputs nothing uses; graph inputs stay, they are the model's signature."""
        from rewright.model.edit import remove_dead_nodes

        remove_dead_nodes([self, *walk_bodies(self)])
        return self

    def fold_constants(self, *_: Any, **__: Any) -> Any:
        """Not available: graphsurgeon folds Shape(start, end) to a wrong value and freezes random ops."""
        raise PassError(
            "Pass developer: Graph.fold_constants() is not sound.",
            "Put 'constant-folding' into the chain before your pass.",
        )


class Graph(_Repaired, gs.Graph):  # type: ignore[misc]
    """A graph or body of the view."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state = GraphState(None)
        super().__init__(*args, **kwargs)

    def _empty_copy(self) -> Graph:
        made = Graph(name=self.name, doc_string=self.doc_string, opset=self.opset, ir_version=self.ir_version)
        made.import_domains = copy.deepcopy(self.import_domains)
        made.producer_name, made.producer_version = self.producer_name, self.producer_version
        return made


class Function(_Repaired, gs.Function):  # type: ignore[misc]
    """A model-local function of the view."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state = GraphState(None)
        super().__init__(*args, **kwargs)

    def _empty_copy(self) -> Function:
        attributes = dict(self.attrs)
        made = Function(self.name, self.domain, doc_string=self.doc_string, opset=self.opset, attrs=attributes)
        made.import_domains, made.ir_version = copy.deepcopy(self.import_domains), self.ir_version
        return made


def _layer_tensor(item: Any, names: set[str]) -> Any:
    if isinstance(item, gs.Tensor):
        names.add(item.name)
        return item
    if isinstance(item, str):
        return make_variable(_unused(item, names) if item else "")
    if isinstance(item, np.ndarray):
        return make_constant(_unused("onnx_graphsurgeon_constant", names), item)
    values = item if isinstance(item, (list, tuple)) else (item,)
    if not all(isinstance(value, (int, float, np.integer, np.floating)) for value in values):
        raise PassError(
            f"Graph.layer() got the input or output {item!r}.", "Pass developer: give tensors, strings, arrays or numbers."
        )
    dtype = np.float32 if any(isinstance(value, (float, np.floating)) for value in values) else np.int64
    return make_constant(_unused("onnx_graphsurgeon_lst_constant", names), np.array(item, dtype))


def _unused(base: str, names: set[str]) -> str:
    """``base`` with a number, as graphsurgeon names things, and not yet taken."""
    number = len(names)
    while (name := f"{base}_{number}") in names:
        number += 1
    names.add(name)
    return name


def walk_bodies(graph: Any) -> Iterator[Any]:
    """Every body below ``graph``, iterative."""
    pending = [graph]
    while pending:
        current = pending.pop()
        for node in current.nodes:
            if node_has_bodies(node):
                inner = list(node.subgraphs())
                pending.extend(inner)
                yield from inner
