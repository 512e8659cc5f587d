"""The dimensions of every value of a view, kept up to date: what is new is inferred, and what follows from it, no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import onnx_graphsurgeon as gs

from rewright.model.elements import normal_domain
from rewright.model.facts import Dim, attribute, dtype_of, infer_outputs, shape_of
from rewright.model.order import node_has_bodies
from rewright.model.view import View
from rewright.shapes import dimensions, terms
from rewright.shapes.compute import COMPUTE
from rewright.shapes.dimensions import Polynomial, Size, dim_of, is_vague, size_of
from rewright.shapes.items import Items
from rewright.shapes.layout import LAYOUT
from rewright.shapes.microsoft import MICROSOFT
from rewright.shapes.nametable import NameTable
from rewright.shapes.rule import Dims, Rule
from rewright.shapes.types import output_dtypes
from rewright.shapes.values import bounded, constant_items, items_rule

_RULES: Final[dict[str, dict[str, Rule]]] = {"": {**LAYOUT, **COMPUTE}, "com.microsoft": MICROSOFT}
_MOST_ROUNDS: Final = 8


def shapes_of(view: View) -> Shapes:
    """What is known about the view's dimensions; made when it is first asked for."""
    if view.shapes is None:
        view.shapes = Shapes(view)
    return view.shapes  # type: ignore[no-any-return]


class Shapes:
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
        self.opset = 0
        self._view = view
        self._graph: Any = None
        self.lacks_something = False
        self._names = NameTable()
        self._dimensions: set[Size] = set()
        self._queue: deque[tuple[Any, Any]] = deque()
        self._queued: set[int] = set()

    # What rules ask for.

    def dims(self, tensor: Any) -> list[Size] | None:
        """The dimensions of a value; unnamed ones get a name here, so that they can be compared. None: the rank is unknown."""
        shape = tensor.shape
        if shape is None:
            return None
        if None in shape and isinstance(tensor, gs.Variable):
            tensor.shape = shape = [self._fresh() if dim is None else dim for dim in shape]
        sizes = [size_of(dim) if isinstance(dim, str) else int(dim) for dim in shape]
        if self._names.known:
            sizes = [self._names.resolved(size) for size in sizes]
        for size in sizes:
            if not isinstance(size, int) and not size.is_not_negative:
                self._dimensions.add(size)
        return sizes

    def items(self, tensor: Any) -> Items | None:
        """The elements of a small integer tensor: numbers, sizes, or None; None if it is none, or nothing is known."""
        state = tensor.__dict__
        if "items" in state:
            held: Items | None = state["items"]
        elif isinstance(tensor, gs.Constant) or (tensor.inputs and tensor.inputs[0].op == "Constant"):
            held = state["items"] = constant_items(tensor)
        else:
            return None
        return self._resolved_items(held) if self._names.known and held is not None else held

    def numbers(self, node: Any, index: int) -> list[int] | None:
        """The elements of an operand, if it is given and all are numbers."""
        held = self.items(node.inputs[index]) if len(node.inputs) > index and node.inputs[index].name else None
        return held.numbers() if held is not None else None

    def setting(self, node: Any, name: str, index: int, since: int, default: list[int] | None) -> list[int] | None:
        """An operand that was an attribute before opset ``since``; ``default`` where it is absent, None where it is not known."""
        if self.opset < since:
            held = attribute(node, name)
            return default if held is None else [int(item) for item in held] if isinstance(held, list) else None
        if len(node.inputs) <= index or not node.inputs[index].name:
            return default
        return self.numbers(node, index)

    def broadcast(self, shapes: list[Dims]) -> Dims:
        """The dimensions that broadcasting makes; a dimension beside an unknown one is unknown unless it is never 1."""
        rank = max(map(len, shapes))
        result: Dims = [1] * rank
        for shape in shapes:
            offset = rank - len(shape)
            for index, right in enumerate(shape, offset):
                left = result[index]
                if right in (left, 1):
                    continue
                if left == 1:
                    result[index] = right
                elif left is None or right is None:
                    known = right if left is None else left
                    result[index] = known if known is not None and dimensions.never_one(known) else None
                else:
                    made = terms.broadcast(left, right)
                    result[index] = made
                    self._learn_from_broadcast(left, right, made)
        return result

    def _learn_from_broadcast(self, left: Size, right: Size, made: Size) -> None:
        """Two sizes that are never 1 are equal; and so are a and min(a, 64)."""
        if dimensions.never_one(left) and dimensions.never_one(right):
            self.equal(left, right)
        elif made in (left, right):
            other = right if made == left else left
            bound = terms.term_of(other, "min")
            if bound is not None and made in bound.arguments and any(isinstance(a, int) and a > 1 for a in bound.arguments):
                self.equal(left, right)

    def best(self, sizes: Iterable[Size]) -> Size:
        """Of sizes that must be equal, the one that says most."""
        return self._names.best(sizes)

    def is_dimension(self, size: Size) -> bool:
        """Whether the size cannot be negative: by what it is made of, or because a value has it."""
        return terms.never_negative(size) or size in self._dimensions

    def equal(self, one: Size, other: Size) -> None:
        """Both sizes are equal, or the node cannot be computed."""
        self._names.equate(one, other, self._graph, self._graph is self._view.graph)

    def _resolved_items(self, held: Items) -> Items:
        items = tuple(item if item is None else self._names.resolved(item) for item in held.items)
        return held if items == held.items else Items(items, held.is_vector, held.dtype)

    # The walk.

    def refresh(self) -> None:
        """Infers the nodes that are new since the last time, and what their outputs say about others."""
        for graph in (self._view.graph, *self._view.functions):
            self._start(graph)
        for _ in range(_MOST_ROUNDS):
            self._work()
            if not self._names.unsettled:
                break
            self._settle()

    def revisit(self) -> None:
        """Lets every node be visited again; what is known stays."""
        self.lacks_something = False
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
        for tensor in graph.inputs:
            self.dims(tensor)
            for dim in tensor.shape or ():
                self._names.fix(size_of(dim))  # a signature is not changed by what is learnt
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
        self._graph = graph
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
        domain = normal_domain(node.domain)
        rule = _RULES.get(domain, {}).get(node.op)
        improved = False
        if rule is not None:
            improved = self._apply(node, rule)
        elif node_has_bodies(node):
            improved = self._choice(node)
        missing = [tensor for tensor in node.outputs if tensor.name and (tensor.dtype is None or tensor.shape is None)]
        if missing:
            improved |= self._types(node, missing)
            if not domain and rule is None and not node_has_bodies(node):
                infer_outputs(node, self.opset)
        for tensor in node.outputs:
            if not tensor.name or not isinstance(tensor, gs.Variable):
                continue
            if tensor.shape is None or tensor.dtype is None:
                self.lacks_something = True
                if domain:
                    self._view.facts_stale = True  # onnx may know it through a function, or through the op's contract
            elif any(map(is_vague, tensor.shape)):
                self.lacks_something = True
                self.dims(tensor)
        if not domain and self._evaluate(node):
            improved = True
        if improved:
            self._wake(node)

    def _apply(self, node: Any, rule: Rule) -> bool:
        try:
            found = rule(self, node)
        except (IndexError, TypeError, ValueError):  # a malformed node: the checker reports it, nothing is known about it
            return False
        improved = False
        if found is None:
            return False
        for tensor, sizes in zip(node.outputs, found, strict=False):
            if sizes is not None and tensor.name and isinstance(tensor, gs.Variable):
                improved |= self._improve(tensor, sizes)
        return improved

    def _improve(self, tensor: Any, sizes: Dims) -> bool:
        before = shape_of(tensor)
        if before is not None and len(before) != len(sizes):
            return False
        old: Iterable[Dim] = before if before is not None else (None,) * len(sizes)
        after = [self._better(dim, size) for dim, size in zip(old, sizes, strict=True)]
        if before is not None and after == list(before):
            if any(type(new) is not type(dim) for new, dim in zip(after, before, strict=True)):
                tensor.shape = after
            return False
        tensor.shape = after
        return True

    def _better(self, old: Dim, size: Size | None) -> Dim:
        if isinstance(old, int):
            if isinstance(size, Polynomial):
                self.equal(size, old)
            return old
        if size is None:
            return self._fresh() if old is None else old
        if isinstance(size, int):
            return size if size >= 0 else old if old is not None else self._fresh()
        new = dim_of(size)
        if old is None or not is_vague(new) or is_vague(old):
            return new
        return old

    def _fresh(self) -> Dim:
        return dim_of(self._names.fresh(self._graph))

    def _types(self, node: Any, missing: list[Any]) -> bool:
        found = output_dtypes(node, self.opset)
        improved = False
        for tensor, dtype in zip(node.outputs, found, strict=False):
            if dtype is not None and tensor.dtype is None and tensor.name and isinstance(tensor, gs.Variable):
                tensor.dtype = dtype
                improved = True
        return improved

    def _evaluate(self, node: Any) -> bool:
        """Evaluates the node's output, if it is shape arithmetic; returns whether more is known now."""
        rule = items_rule(node.op)
        if rule is None or len(node.outputs) != 1:
            return False
        tensor = node.outputs[0]
        shape, dtype = tensor.shape, dtype_of(tensor)
        if (shape is not None and len(shape) > 1) or (dtype is not None and dtype.kind not in "iub"):
            return False
        try:
            found = bounded(rule(self, node))
        except (IndexError, TypeError, ValueError):
            return False
        before = tensor.__dict__.get("items")
        if found is None or found == before:
            return False
        tensor.__dict__["items"] = found
        return True

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
                improved |= self._improve(
                    tensor, [self._outside(one) if one == two else None for one, two in zip(*known, strict=True)]
                )
            else:
                improved |= self._improve(tensor, list(known[0]))
        return improved

    def _outside(self, size: Size) -> Size | None:
        """A branch's size, if it is made of names that mean something outside it."""
        return size if self._names.is_meant_in(self._graph, size) else None

    def _wake(self, node: Any) -> None:
        """Visits again what has read the node's outputs before."""
        for tensor in node.outputs:
            for reader in tensor.outputs:
                graph = reader.__dict__.get("inferred")
                if graph is not None and id(reader) not in self._queued:
                    self._queued.add(id(reader))
                    self._queue.append((graph, reader))

    def _settle(self) -> None:
        """Writes what was learnt about names into all facts that hold them."""
        self._names.unsettled = False
        for graph in self._view.graphs():
            for node in graph.nodes:
                changed = False
                for tensor in node.outputs:
                    shape = tensor.shape
                    if shape is not None and isinstance(tensor, gs.Variable) and any(isinstance(dim, str) for dim in shape):
                        now = [dim_of(size) for size in self.dims(tensor) or ()]
                        if now != list(shape):
                            tensor.shape = now
                            changed = True
                    held = tensor.__dict__.get("items")
                    if held is not None and (items := self._resolved_items(held)) is not held:
                        tensor.__dict__["items"] = items
                        changed = True
                if changed:
                    self._wake(node)


def forget(view: View) -> None:
    """Lets everything be inferred anew, after edits that may have changed what values mean."""
    view.shapes = None
    view.facts_stale = True
    for graph in view.graphs():
        for node in graph.nodes:
            node.__dict__.pop("inferred", None)
            for tensor in (*node.inputs, *node.outputs):
                tensor.__dict__.pop("items", None)


__all__ = ["Shapes", "forget", "shapes_of"]
