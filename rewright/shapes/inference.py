"""One node: the dimensions, element types and elements of its outputs from those of its inputs."""

from __future__ import annotations

from typing import Any, Final

import onnx_graphsurgeon as gs

from rewright.model.elements import normal_domain
from rewright.model.facts import Dim, attribute, dtype_of, infer_outputs, shape_of
from rewright.model.order import node_has_bodies
from rewright.shapes import dimensions, terms
from rewright.shapes.compute import COMPUTE
from rewright.shapes.dimensions import Polynomial, Size, SizeText, dim_of, size_of
from rewright.shapes.items import Items
from rewright.shapes.layout import LAYOUT
from rewright.shapes.microsoft import MICROSOFT
from rewright.shapes.nametable import NameTable
from rewright.shapes.rule import Dims, Rule
from rewright.shapes.types import output_dtypes
from rewright.shapes.values import bounded, constant_items, items_rule

_RULES: Final[dict[str, dict[str, Rule]]] = {"": {**LAYOUT, **COMPUTE}, "com.microsoft": MICROSOFT}


class Inference:
    """What is known, as the rules ask for it, and what they say, as facts.

    Attributes:
        opset: of the standard domain.
        graph: the graph that the node at hand is in, if that is known.
        names: of dimensions.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.graph: Any = None
        self.names = NameTable()

    def infer(self, node: Any) -> bool:
        """Fills and improves the facts of the node's outputs; returns whether more is known now."""
        domain = normal_domain(node.domain)
        rule = _RULES.get(domain, {}).get(node.op)
        improved = self._apply(node, rule) if rule is not None else False
        if any(tensor.name and (tensor.dtype is None or tensor.shape is None) for tensor in node.outputs):
            improved |= self._types(node)
            if not domain and rule is None and not node_has_bodies(node):
                infer_outputs(node, self.opset)
        if not domain and self._evaluate(node):
            improved = True
        return improved

    def dims(self, tensor: Any) -> list[Size] | None:
        """The dimensions of a value; unnamed ones get a name here, so that they can be compared. None: the rank is unknown."""
        shape = tensor.shape
        if shape is None:
            return None
        for dim in shape:
            if type(dim) is not int:
                break
        else:
            return list(shape)
        if None in shape and isinstance(tensor, gs.Variable):
            tensor.shape = shape = [self._fresh() if dim is None else dim for dim in shape]
        sizes = [size_of(dim) if isinstance(dim, str) else int(dim) for dim in shape]
        if self.names.known:
            sizes = [self.names.resolved(size) for size in sizes]
        for size in sizes:
            if not isinstance(size, int) and not size.is_not_negative:
                self.not_negative(size)
        return sizes

    def dim(self, size: Size) -> int | SizeText:
        """The size as a dimension of a shape; where the model declares a name that reads the same, it is put in parentheses."""
        found = dim_of(size)
        return (
            SizeText(f"({found})", size)
            if found in self.names.declared and isinstance(size, Polynomial) and size.symbol is None
            else found
        )

    def items(self, tensor: Any) -> Items | None:
        """The elements of a small integer tensor: numbers, sizes, or None; None if it is none, or nothing is known."""
        state = tensor.__dict__
        if "items" in state:
            held: Items | None = state["items"]
        elif isinstance(tensor, gs.Constant) or (tensor.inputs and tensor.inputs[0].op == "Constant"):
            held = state["items"] = constant_items(tensor)
        else:
            return None
        return self.resolved_items(held) if self.names.known and held is not None else held

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

    def is_dimension(self, size: Size) -> bool:
        """Whether the size cannot be negative: by what it is made of, or because a value has it."""
        return terms.never_negative(size)

    def not_negative(self, size: Size) -> None:
        """The size is not negative, or the node cannot be computed."""

    def equal(self, one: Size, other: Size) -> None:
        """Both sizes are equal, or the node cannot be computed. A single node teaches nothing about others."""

    def resolved_items(self, held: Items) -> Items:
        items = tuple(item if item is None else self.names.resolved(item) for item in held.items)
        return held if items == held.items else Items(items, held.is_vector, held.dtype)

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
                improved |= self.improve(tensor, sizes)
        return improved

    def improve(self, tensor: Any, sizes: Dims) -> bool:
        before = shape_of(tensor)
        if before is None:
            tensor.shape = [size if type(size) is int and size >= 0 else self._better(None, size) for size in sizes]
            return True
        if len(before) != len(sizes):
            return False
        after = [self._better(dim, size) for dim, size in zip(before, sizes, strict=True)]
        if after == list(before):
            if any(type(new) is not type(dim) for new, dim in zip(after, before, strict=True)):
                tensor.shape = after
            return False
        tensor.shape = after
        return True

    def _better(self, old: Dim, size: Size | None) -> Dim:
        if isinstance(old, int):
            return old
        if size is None:
            return self._fresh() if old is None else old
        if self.names.known:
            size = self.names.resolved(size)  # a node that is visited again makes names that have given way anew
        if isinstance(size, int):
            return size if size >= 0 else old if old is not None else self._fresh()
        return self.dim(size)  # also where it has no name: it is the same size elsewhere, and a declared name is only a name

    def _fresh(self) -> Dim:
        return self.dim(self.names.fresh(self.graph))

    def _types(self, node: Any) -> bool:
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
        if found is not None and self.names.known:
            found = self.resolved_items(found)
        if found is None or found == before:
            return False
        tensor.__dict__["items"] = found
        return True


def infer_node(node: Any, opset: int) -> None:
    """Fills the facts of the outputs of one new node from those of its inputs."""
    Inference(opset).infer(node)
    if not normal_domain(node.domain) and any(tensor.name and tensor.shape is None for tensor in node.outputs):
        infer_outputs(node, opset)
