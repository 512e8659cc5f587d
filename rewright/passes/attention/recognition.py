"""What is proven about one softmax: which values are the queries, keys and values of an attention, and what lies between."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from rewright.model.edit import Editor, domain_of
from rewright.model.facts import attribute, dtype_of, is_constant, producer, shape_of
from rewright.passes.attention.axes import Axes, Axis, Layout, Unproven, number
from rewright.passes.attention.operands import Place, Step, places
from rewright.passes.attention.products import Product, is_product, product_below
from rewright.passes.attention.scores import Scores, explained, scalar
from rewright.passes.attention.steps import downwards

_LAST_AXIS_IS_ALONE_SINCE: Final = 13
_LONGEST: Final = 8


@dataclass(frozen=True)
class Roles:
    """Which atoms play which role: batch, heads, queries' positions, keys' positions, head size, head size of the values."""

    batch: Axis
    heads: Axis
    rows: Axis
    columns: Axis
    size: Axis
    value_size: Axis


@dataclass
class Attention:
    """An attention.

    Attributes:
        softmax: its node.
        axes: what the atoms in the layouts are.
        roles: of the atoms.
        scores: how the scores come from the product of queries and keys.
        queries, keys, values: the places where each can be taken up, the factor of the product first.
        guard: whether rows of NaN become zeros after the softmax.
        results: values that can be replaced, with their layouts, the product with the values first.
        kind: the element type of queries, keys and values; what is shorter on the way is refused.
        measures: nodes that take the shape of a value that vanishes, with its layout.
    """

    softmax: Any
    axes: Axes
    roles: Roles
    scores: Scores
    queries: list[Place]
    keys: list[Place]
    values: list[Place]
    guard: bool
    results: list[tuple[Any, Layout]]
    kind: np.dtype[Any]
    measures: list[tuple[Any, Layout]] = field(default_factory=list)

    @property
    def head_count(self) -> int:
        """The number of heads.

        Raises:
            Unproven: it is not a number.
        """
        found = number(self.roles.heads)
        if found is None:
            raise Unproven("the number of heads is not known", self.scores.product.node)
        return found


def recognise(softmax: Any, editor: Editor, opset: int) -> Attention:
    """The attention around ``softmax``.

    Raises:
        Unproven: it is none, or a fact that the proof needs is not known; with the reason.
    """
    axes = Axes()
    source = softmax.inputs[0]
    layout = axes.seed(source)
    _check_axis(softmax, len(layout), opset)
    below = _Below(axes, editor, softmax, layout)
    obstacle: Unproven | None = None
    for scores in explained(axes, source, layout):
        try:
            return _assigned(axes, editor, softmax, layout, scores, below)
        except Unproven as unproven:
            obstacle = obstacle or unproven
    raise obstacle or Unproven("the scores are not a product of queries and keys", softmax)


def _check_axis(softmax: Any, rank: int, opset: int) -> None:
    default = -1 if opset >= _LAST_AXIS_IS_ALONE_SINCE else 1
    axis = attribute(softmax, "axis", default)
    if axis not in (-1, rank - 1):
        raise Unproven(f"the softmax runs over axis {axis}, not over the last", softmax)


class _Below:
    """From the softmax down to the product with the values, and on to where its layout suits."""

    def __init__(self, axes: Axes, editor: Editor, softmax: Any, layout: Layout) -> None:
        self.axes, self.editor = axes, editor
        self.guard = False
        self.measures: list[tuple[Any, Layout]] = []
        self.passed: list[Any] = []
        tensor, here = softmax.outputs[0], layout
        for _ in range(_LONGEST):
            self.passed.append(tensor)
            node = self._next(tensor, here)
            if is_product(node):
                break
            if node.op == "Where":
                if len(shape_of(node.outputs[0]) or ()) != len(here):
                    raise Unproven("a row of NaN becomes zeros with more axes", node)
                tensor, self.guard = node.outputs[0], True
                continue
            moved = here if _is_cast(node) else downwards(axes, node, here)
            if moved is None:
                raise Unproven(f"the result of the softmax goes into {node.op} '{node.name}'", node)
            tensor, here = node.outputs[0], moved
        else:
            raise Unproven("the result of the softmax does not go into a product with values", softmax)
        self.index = next(index for index, held in enumerate(node.inputs) if held is tensor)
        self.product: Product = product_below(node, self.index, here)
        self.results = self._results(node.outputs[0], self.product.result)

    def _users(self, tensor: Any, layout: Layout) -> list[Any]:
        """The nodes that use more than the shape of a value; the others are noted."""
        users = self.editor.consumers(tensor)
        self.measures.extend((user, layout) for user in users if _is_shape(user))
        return [user for user in users if not _is_shape(user)]

    def _next(self, tensor: Any, layout: Layout) -> Any:
        """The one node that uses the probabilities; a guard against NaN counts as one."""
        users = self._users(tensor, layout)
        if self.editor.is_graph_output(tensor):
            raise Unproven(f"the attention probabilities '{tensor.name}' are an output of the graph", producer(tensor))
        if len(users) == 1:
            return users[0]
        guard = next((user for user in users if user.op == "Where" and user.inputs[2] is tensor), None)
        test = next((user for user in users if user.op == "IsNaN"), None)
        if (
            len(users) == 2
            and guard is not None
            and test is not None
            and guard.inputs[0] is test.outputs[0]
            and len(self.editor.consumers(test.outputs[0])) == 1
            and scalar(guard.inputs[1]) == 0
        ):
            return guard
        raise Unproven(f"the attention probabilities '{tensor.name}' are used elsewhere too", producer(tensor))

    def _results(self, tensor: Any, layout: Layout) -> list[tuple[Any, Layout]]:
        found = [(tensor, layout)]
        for _ in range(_LONGEST):
            users = self._users(tensor, layout)
            if len(users) != 1 or self.editor.is_graph_output(tensor):
                break
            try:
                moved = downwards(self.axes, users[0], layout)
            except Unproven:
                break
            if moved is None:
                break
            tensor, layout = users[0].outputs[0], moved
            found.append((tensor, layout))
        return found


def _is_cast(node: Any) -> bool:
    if node.op != "Cast" or domain_of(node):
        return False
    kinds = [dtype_of(tensor) for tensor in (node.inputs[0], node.outputs[0])]
    return all(kind is not None and kind.kind == "f" for kind in kinds)


def _assigned(axes: Axes, editor: Editor, softmax: Any, layout: Layout, scores: Scores, below: _Below) -> Attention:
    product = scores.product
    columns = axes.atoms(layout[-1])
    for index in (0, 1):
        if axes.atoms(product.own[1 - index]) == columns:
            break
    else:
        raise Unproven("the softmax does not run over the positions of one factor of the scores", softmax)
    queries = list(places(axes, product.operands[index], product.layouts[index]))
    keys = list(places(axes, product.operands[1 - index], product.layouts[1 - index]))
    second = below.product
    if axes.atoms(second.contracted) != axes.atoms(layout[-1]):
        raise Unproven("the probabilities are not summed over the axis of the softmax", second.node)
    values = list(places(axes, second.operands[1 - below.index], second.layouts[1 - below.index]))
    for role, held in (("keys", keys), ("values", values)):
        if is_constant(held[-1].tensor):
            raise Unproven(f"the {role} are constant", product.node if role == "keys" else second.node)
    measures = _check_private(editor, [*scores.interior, (softmax.inputs[0], layout)], scores.shifts)
    roles = _roles(axes, layout, product, index, second, below.index, queries)
    if scores.factors:
        steps = tuple(Step("multiply", term.node, term.value, term.layout) for term in scores.factors)
        queries = [replace(place, steps=place.steps + steps) for place in queries]
    # A softmax or a product in a longer type than that of the values is what the kernels do by themselves.
    kind = dtype_of(values[0].tensor)
    queries, keys, values = ([place for place in held if dtype_of(place.tensor) == kind] for held in (queries, keys, values))
    if kind is None or not queries or not keys:
        raise Unproven("queries, keys and values are not known to have one element type", softmax)
    _check_types(kind, [*(tensor for tensor, _ in scores.interior), *softmax.inputs, *below.passed], softmax)
    return Attention(
        softmax, axes, roles, scores, queries, keys, values, below.guard, below.results, kind, measures + below.measures
    )


def _check_types(kind: np.dtype[Any], tensors: list[Any], softmax: Any) -> None:
    """Refuses what is computed in a shorter type than that of the values: its rounding and its range would be lost."""
    for tensor in tensors:
        held = dtype_of(tensor)
        if held is None or held.itemsize < kind.itemsize:
            raise Unproven(f"'{tensor.name}' is computed in {held or 'an unknown type'}, and the values are {kind}", softmax)


def _check_private(editor: Editor, values: list[tuple[Any, Layout]], shifts: tuple[Any, ...]) -> list[tuple[Any, Layout]]:
    """Refuses scores that anything else uses; returns the nodes that take only their shapes."""
    measures = []
    for tensor, layout in values:
        if editor.is_graph_output(tensor):
            raise Unproven(f"the scores '{tensor.name}' are an output of the graph", producer(tensor))
        users = [user for user in editor.consumers(tensor) if user not in shifts]
        measures += [(user, layout) for user in users if _is_shape(user)]
        if sum(not _is_shape(user) for user in users) > 1:
            raise Unproven(f"the scores '{tensor.name}' are used elsewhere too", producer(tensor))
    return measures


def _is_shape(node: Any) -> bool:
    return node.op == "Shape" and not domain_of(node)


def _roles(axes: Axes, layout: Layout, product: Product, index: int, second: Product, below: int, queries: list[Place]) -> Roles:
    columns, size = axes.atoms(layout[-1]), axes.atoms(product.contracted)
    rows = axes.atoms(product.own[index])
    value_size = axes.atoms(second.own[1 - below])
    common = [atom for axis in layout for atom in axes.atoms(axis) if atom not in rows and atom not in columns]
    if axes.atoms(second.own[below]) != rows:
        raise Unproven("the rows of the probabilities are not those of the scores", second.node)
    for place in reversed(queries):
        held = axes.resolve(place.layout)
        if len(held) != 3 or held[1] != rows:
            continue
        last = axes.used(held[2])
        heads = last[: len(last) - len(size)]
        if last[len(heads) :] == size and set(held[0]) | set(heads) == set(common) and not set(held[0]) & set(heads):
            return Roles(held[0], heads, rows, columns, size, value_size)
    batch_axes = [axis for axis in axes.resolve(product.result)[:-2] if axis]
    heads = batch_axes[-1] if len(batch_axes) > 1 else ()
    batch = tuple(atom for axis in batch_axes for atom in axis if atom not in heads)
    if set(batch) | set(heads) != set(common):
        raise Unproven("the axes of the scores are not batch, heads, queries and keys", product.node)
    return Roles(batch, heads, rows, columns, size, value_size)
