"""Graphs of the editing view: ``gs.Graph`` and ``gs.Function`` with the methods repaired that are wrong or quadratic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_graphsurgeon as gs
from onnx import FunctionProto, GraphProto, TensorProto

from rewright.model.elements import Constant
from rewright.model.errors import PassError
from rewright.model.order import node_has_bodies, stable_order


class GraphState:
    """What graphsurgeon's graph does not keep: the source proto, the initializers by name, defaults of inputs."""

    def __init__(self, proto: GraphProto | FunctionProto | None) -> None:
        self.proto = proto
        self.initializers: dict[str, Constant] = {}
        self.input_defaults: dict[str, TensorProto] = {}
        self.source_nodes: list[Any] = []
        self.opsets: dict[str, int] | None = None


class _Repaired:
    """Methods that ``Graph`` and ``Function`` share."""

    nodes: list[Any]
    outputs: list[Any]
    state: GraphState

    def __getattr__(self, name: str) -> Any:
        # graphsurgeon logs an error for any unknown name, and copying a graph then never ends.
        registered = name in gs.Graph.GLOBAL_FUNC_MAP or any(name in table for table in gs.Graph.OPSET_FUNC_MAP.values())
        if not registered:
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        return super().__getattr__(name)  # type: ignore[misc]

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


class Function(_Repaired, gs.Function):  # type: ignore[misc]
    """A model-local function of the view."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state = GraphState(None)
        super().__init__(*args, **kwargs)


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
