"""The dimensions of every value of a view, kept up to date: what is new is inferred, and what follows from it, no more."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import onnx_graphsurgeon as gs

from rewright.model.elements import normal_domain
from rewright.model.facts import shape_of
from rewright.model.graph import state_of
from rewright.model.order import node_has_bodies
from rewright.model.view import View
from rewright.shapes import terms
from rewright.shapes.dimensions import Size, SizeText, is_vague, size_of
from rewright.shapes.inference import Inference

_MOST_ROUNDS: Final = 8


def shapes_of(view: View) -> Shapes:
    """What is known about the view's dimensions; made when it is first asked for."""
    if view.shapes is None:
        view.shapes = Shapes(view)
    return view.shapes  # type: ignore[no-any-return]


class Shapes(Inference):
    """Infers the dimensions of values by the rules of their nodes.

    1. Facts are numbers, names that the model's inputs give, sums and products of those (``2*batch*seq``) and functions of them
       (``floor(seq/2)``, ``min(seq, 64)``), and made-up names for what depends on the data. Equal texts mean equal sizes.
    2. A fact holds for every run that computes the model. A node that can be computed only if two sizes are equal (a
       contraction, a Concat) makes them equal everywhere; made-up names give way to names of the model. What a node in a body
       demands is used for names of that body only, because the body may not run.
    3. A fact is never taken back: passes keep values as they are. New nodes are inferred from their inputs.

    Loops: what a loop carries has the dimensions that the body declares, or unknown ones.
    """

    def __init__(self, view: View) -> None:
        super().__init__(0)
        self._view = view
        self._may_lack = False
        self._not_negative: set[Size] = set()
        self._asked: dict[Size, list[tuple[Any, Any]]] = {}
        self._visited: tuple[Any, Any] | None = None
        self._queue: deque[tuple[Any, Any]] = deque()
        self._queued: set[int] = set()

    def equal(self, one: Size, other: Size) -> None:
        """Both sizes are equal, or the node cannot be computed."""
        self.names.equate(one, other, self.graph, self.graph is self._view.graph)

    def is_dimension(self, size: Size) -> bool:
        """Whether the size cannot be negative: by what it is made of, or because the model could not be computed otherwise."""
        if terms.never_negative(size) or size in self._not_negative:
            return True
        if self._visited is not None:
            self._asked.setdefault(size, []).append(self._visited)
        return False

    def not_negative(self, size: Size) -> None:
        """The size is not negative. What asked before is visited again; what holds in a body is not said of the model."""
        if self.graph is self._view.graph and size not in self._not_negative and not terms.never_negative(size):
            self._not_negative.add(size)
            for graph, node in self._asked.pop(size, ()):
                self._enqueue(graph, node)

    def refresh(self) -> None:
        """Infers the nodes that are new since the last time, and what their outputs say about others."""
        for graph in (self._view.graph, *self._view.functions):
            self._start(graph)
        for _ in range(_MOST_ROUNDS):
            self._work()
            if not self.names.unsettled:
                break
            self._settle()

    def lacks_something(self) -> bool:
        """Whether the rules leave something open."""
        if self._may_lack:  # what was open when it was visited may be known by now
            self._may_lack = any(
                is_open(tensor) for graph in self._view.graphs() for node in graph.nodes for tensor in node.outputs
            )
        return self._may_lack

    def revisit(self) -> None:
        """Lets every node be visited again; what is known stays."""
        self._may_lack = False
        for graph in self._view.graphs():
            for node in graph.nodes:
                node.__dict__["inferred"] = None

    def note(self, tensor: Any) -> None:
        """More is known about the value than its readers have seen."""
        if isinstance(tensor, gs.Constant):
            tensor.__dict__.pop("items", None)
        for node in tensor.outputs:
            node.__dict__["inferred"] = None

    def _start(self, graph: Any) -> None:
        """Visits what is new in a graph and its bodies, in order: a body before the node that holds it."""
        self._enter(graph)
        for tensor in (*graph.inputs, *graph.outputs):
            for dim in tensor.shape or ():
                if isinstance(dim, str) and not isinstance(dim, SizeText) and not dim.isidentifier():
                    self.names.declared.add(dim)
        for tensor in graph.inputs:
            self.dims(tensor)
            for dim in tensor.shape or ():
                self.names.fix(size_of(dim))  # a signature is not changed by what is learnt
        for node in graph.nodes:
            if not getattr(node, "alive", True):
                continue
            if node_has_bodies(node):
                for body in node.subgraphs():
                    self._start(body)
                self._enter(graph)
            if node.__dict__.get("inferred") is None:
                self._visit(graph, node)

    def _enter(self, graph: Any) -> None:
        self.graph = graph
        self.opset = self._view.opset_of(graph)

    def _work(self) -> None:
        while self._queue:
            graph, node = self._queue.popleft()
            self._queued.discard(id(node))
            if getattr(node, "alive", True):
                self._enter(graph)
                self._visit(graph, node)

    def _visit(self, graph: Any, node: Any) -> None:
        node.__dict__["inferred"] = graph
        self._visited = graph, node
        improved = self.infer(node)
        if node_has_bodies(node):
            improved |= self._choice(node)
        for tensor in node.outputs:
            if not tensor.name or not isinstance(tensor, gs.Variable):
                continue
            if tensor.shape is None or tensor.dtype is None:
                self._may_lack = True
                self._ask_onnx(node)
            elif any(map(is_vague, tensor.shape)):
                self._may_lack = True
                self.dims(tensor)
        if improved:
            self._wake(node)

    def _ask_onnx(self, node: Any) -> None:
        """onnx may know another domain's op through a function, or through its contract; but not twice from the same inputs."""
        given = [shape_of(tensor) for tensor in node.inputs]
        if normal_domain(node.domain) and node.__dict__.get("asked") != given:
            node.__dict__["asked"] = given
            self._view.facts_stale = True

    def _choice(self, node: Any) -> bool:
        """If: the dimensions that both branches give, or those of the branch that is always taken."""
        if node.op != "If" or normal_domain(node.domain):
            return False
        taken = self.numbers(node, 0)
        names = ("then_branch", "else_branch") if taken is None else ("then_branch" if taken[0] else "else_branch",)
        branches = [body.outputs for name in names if isinstance(body := node.attrs.get(name), gs.Graph)]
        improved = False
        for index, tensor in enumerate(node.outputs):
            shapes = [self.dims(outputs[index]) if index < len(outputs) else None for outputs in branches]
            known = [dims for dims in shapes if dims is not None]
            if len(known) < len(names) or len(known[0]) != len(known[-1]) or not tensor.name:
                continue
            if taken is None:
                improved |= self.improve(
                    tensor, [self._outside(one) if one == two else None for one, two in zip(*known, strict=True)]
                )
            else:
                improved |= self.improve(tensor, list(known[0]))
        return improved

    def _outside(self, size: Size) -> Size | None:
        """A branch's size, if it is made of names that mean something outside it."""
        return size if self.names.is_meant_in(self.graph, size) else None

    def _wake(self, node: Any) -> None:
        """Visits again what has read the node's outputs before."""
        for tensor in node.outputs:
            for reader in tensor.outputs:
                graph = reader.__dict__.get("inferred")
                if graph is not None:
                    self._enqueue(graph, reader)

    def _enqueue(self, graph: Any, node: Any) -> None:
        if id(node) not in self._queued:
            self._queued.add(id(node))
            self._queue.append((graph, node))

    def _settle(self) -> None:
        """Writes what was learnt about names into all facts that hold them."""
        self.names.unsettled = False
        for graph in self._view.graphs():
            for node in graph.nodes:
                changed = False
                for tensor in node.outputs:
                    shape = tensor.shape
                    if shape is not None and isinstance(tensor, gs.Variable) and any(isinstance(dim, str) for dim in shape):
                        now = [self.dim(size) for size in self.dims(tensor) or ()]
                        if now != list(shape):
                            tensor.shape = now
                            changed = True
                    held = tensor.__dict__.get("items")
                    if held is not None and (items := self.resolved_items(held)) is not held:
                        tensor.__dict__["items"] = items
                        changed = True
                if changed:
                    self._wake(node)


def is_open(tensor: Any) -> bool:
    """Whether something about a computed value is not known."""
    if not tensor.name or not isinstance(tensor, gs.Variable):
        return False
    return tensor.shape is None or tensor.dtype is None or any(map(is_vague, tensor.shape))


def forget(view: View) -> None:
    """Lets everything be inferred anew, after edits that may have changed what values mean."""
    view.shapes = None
    view.facts_stale = True
    for graph in view.graphs():
        returned = {id(tensor) for tensor in graph.outputs}
        for node in graph.nodes:
            node.__dict__.pop("inferred", None)
            node.__dict__.pop("asked", None)
            for tensor in (*node.inputs, *node.outputs):
                tensor.__dict__.pop("items", None)
            for tensor in node.outputs:
                if isinstance(tensor, gs.Variable) and id(tensor) not in returned:
                    tensor.shape = None
        _keep_declared_only(graph)


def _keep_declared_only(graph: Any) -> None:
    """Outputs of the graph have the dimensions that are declared, and no derived ones."""
    source = state_of(graph).proto
    declared = {
        value.name: value.type.tensor_type.shape.dim for value in getattr(source, "output", ()) if not isinstance(value, str)
    }
    for tensor in graph.outputs:
        dims = declared.get(tensor.name, ())
        if isinstance(tensor, gs.Variable) and tensor.shape is not None and tensor.inputs:
            numbers = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
            numbers += [None] * (len(tensor.shape) - len(numbers))
            tensor.shape = [
                None if isinstance(dim, SizeText) or (isinstance(dim, int) and dim != number) else dim
                for dim, number in zip(tensor.shape, numbers, strict=False)
            ]
