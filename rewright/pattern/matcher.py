"""Finds a pattern above a node. Backtracking over operand orders and alternatives, without copying bindings or patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import isclose
from typing import Any, ClassVar, Final

import numpy as np
import onnx

from rewright.model import facts
from rewright.model.edit import Editor, domain_of
from rewright.pattern.joins import candidates
from rewright.pattern.language import (
    COMMUTATIVE,
    Any_,
    Bound,
    Constant,
    NodePattern,
    Optional_,
    Pattern,
    Product,
    Through,
)

_REL_TOL: Final = 1e-5
_UNITS: Final = 4
_BINARY: Final = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
_BROADCASTING: Final = _BINARY | {
    "Max",
    "Min",
    "Mod",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Less",
    "Greater",
    "LessOrEqual",
    "GreaterOrEqual",
}
_DEEPEST_PEEL: Final = 8
_ONE_WAY: Final = (None,)


@dataclass(frozen=True)
class NearMiss:
    """How far the best attempt came: the nodes that fitted, and what did not."""

    nodes: tuple[Any, ...]
    reason: str
    node: Any


class Attempt:
    """The state of one search: bindings, matched nodes, and the best failure so far."""

    def __init__(self, editor: Editor, graph: Any, watched: Sequence[Pattern] = ()) -> None:
        self._editor = editor
        self._graph = graph
        self._watched = {id(pattern) for pattern in watched}
        self._sources: dict[int, Any] = {}
        self.found: dict[int, Any] = {}
        self.values: dict[str, Any] = {}
        self.named: dict[str, Any] = {}
        self.nodes: list[tuple[Any, NodePattern | None]] = []
        self.near: NearMiss | None = None
        self.steps = 0

    def solve_all(self, roots: Sequence[Pattern], tensor: Any) -> Iterator[None]:
        """``solve`` for several roots: ``tensor`` fits the first, and each other one is found from the values they share."""
        for _ in self.solve(roots[0], tensor):
            yield from self._further(roots, 1)

    def _further(self, roots: Sequence[Pattern], index: int) -> Iterator[None]:
        if index == len(roots):
            yield
            return
        root = roots[index]
        if id(root) in self.found:
            yield from self._further(roots, index + 1)
            return
        for candidate in candidates(root, self, self._editor, self._graph):
            if any(held is candidate for held in self.found.values()):
                continue
            for _ in self.solve(root, candidate):
                yield from self._further(roots, index + 1)
        self._fail(f"nothing computes output {index} of the pattern from the same values", self.nodes[0][0])

    def solve(self, pattern: Pattern, tensor: Any) -> Iterable[None]:
        """Yields once for each way in which ``tensor`` fits ``pattern``; the state holds that way's bindings meanwhile."""
        self.steps += 1
        if id(pattern) in self._watched:
            return self._watch(pattern, tensor)
        return self._WAYS[type(pattern)](self, pattern, tensor)

    def _watch(self, pattern: Pattern, tensor: Any) -> Iterator[None]:
        held = self.found.get(id(pattern))
        if held is not None and held is not tensor:
            return
        for _ in self._WAYS[type(pattern)](self, pattern, tensor):
            self.found[id(pattern)] = tensor
            yield
            if held is None:
                del self.found[id(pattern)]

    def _any(self, pattern: Any_, tensor: Any) -> Iterator[None]:
        for choice in pattern.choices:
            yield from self.solve(choice, tensor)

    def _optional(self, pattern: Optional_, tensor: Any) -> Iterable[None]:
        return self.solve(pattern.inner, tensor) if tensor.name else _ONE_WAY

    def _fail(self, reason: str, node: Any, telling: bool = False) -> tuple[None, ...]:
        """Remembers the failure that came furthest: the first of several, unless a later one is more ``telling``.

        Returns:
            no way in which the pattern fits.
        """
        if self.near is None or len(self.nodes) + telling > len(self.near.nodes):
            self.near = NearMiss(tuple(matched for matched, _ in self.nodes), reason, node)
        return ()

    def _bind(self, pattern: Bound, tensor: Any) -> Iterator[None]:
        name = pattern.name
        held = self.values.get(name)
        if held is None:
            self.values[name] = tensor
            yield
            del self.values[name]
        elif held is tensor or _equal_constants(held, tensor):
            yield
        else:
            self._fail(f"'{held.name}' and '{tensor.name}' should be one value ({name})", facts.producer(tensor))

    def _constant(self, pattern: Constant, tensor: Any) -> Iterable[None]:
        if not facts.is_constant(tensor) or not facts.is_small_constant(tensor, 1):
            return self._fail(f"'{tensor.name}' is not the constant {pattern.value:g}", facts.producer(tensor))
        value = facts.constant_of(tensor)
        if value is None or value.size != 1 or not is_real(value.dtype) or (pattern.real and value.dtype.kind in "iub"):
            return self._fail(f"'{tensor.name}' is not the constant {pattern.value:g}", facts.producer(tensor))
        found = float(value.reshape(-1)[0])
        if not close(found, pattern.value, value.dtype, pattern.rel_tol):
            reason = f"the constant '{tensor.name}' is {found:g}, not {pattern.value:g}"
            return self._fail(reason, facts.producer(tensor))
        return _ONE_WAY

    def _producer(self, tensor: Any) -> Any | None:
        node = facts.producer(tensor)
        if node is None or self._editor.graph_of(node) is not self._graph:
            return None
        return node

    def _node(self, pattern: NodePattern, tensor: Any) -> Iterable[None]:
        node = self._producer(tensor)
        if node is None:
            return self._fail(f"'{tensor.name}' is not computed by {pattern.op} in this graph", None)
        if node.op != pattern.op or domain_of(node) not in pattern.domains:
            return self._fail(f"'{tensor.name}' comes from {node.op}, not from {pattern.op}", node)
        if len(node.outputs) <= pattern.output or node.outputs[pattern.output] is not tensor:
            return self._fail(f"'{tensor.name}' is another output of {node.op} than expected", node)
        if self._sources.get(id(pattern.source), node) is not node:
            return self._fail(f"'{tensor.name}' comes from another {node.op} than the other output", node)
        for name, expected in pattern.attributes.items():
            found = facts.attribute(node, name)
            if found is None:
                found = schema_default(node.op, domain_of(node), self._editor.view.opset_of(self._graph, domain_of(node)), name)
            if not same_value(found, expected):
                return self._fail(f"{name} is {found}, not {expected}", node)
        return self._matched(pattern, node)

    def _matched(self, pattern: NodePattern, node: Any) -> Iterator[None]:
        if any(matched is node for matched, _ in self.nodes):
            yield from self._inputs(pattern, node)
            return
        self.nodes.append((node, pattern))
        named = pattern.bind and pattern.bind not in self.named
        if named:
            self.named[pattern.bind] = node
        first_of_source = pattern.source is not None and id(pattern.source) not in self._sources
        if first_of_source:
            self._sources[id(pattern.source)] = node
        yield from self._inputs(pattern, node)
        if first_of_source:
            del self._sources[id(pattern.source)]
        if named:
            del self.named[pattern.bind]
        self.nodes.pop()

    def _inputs(self, pattern: NodePattern, node: Any) -> Iterator[None]:
        wanted, given = pattern.inputs, list(node.inputs)
        while given and not given[-1].name and len(given) > len(wanted):
            given.pop()
        if len(given) > len(wanted) and not pattern.open_inputs:
            self._fail(f"{node.op} has {len(given)} inputs, {len(wanted)} expected", node)
            return
        # The operands change places, not the patterns: a pattern's first operand is always tried first, and the author puts
        # the telling one there.
        orders = [given]
        if node.op in COMMUTATIVE and len(wanted) == len(given) == 2 and wanted[0] is not wanted[1]:
            orders.append(given[::-1])
            # A number's place tells the order: tried in the other one, it would only give a worse reason.
            for index in (index for index in (0, 1) if isinstance(wanted[index], Constant)):
                orders = [order for order in orders if facts.is_constant(order[index])] or orders
        for order in orders:
            if self._raises_rank(wanted, order, node):
                self._fail("a constant operand has more dimensions than the value it is combined with", node)
                continue
            yield from self._each(wanted, order, 0)

    def _each(self, wanted: Sequence[Pattern | None], given: list[Any], index: int) -> Iterator[None]:
        if index == len(wanted):
            yield
            return
        pattern = wanted[index]
        tensor = given[index] if index < len(given) else None
        if tensor is None or not tensor.name:
            if pattern is None or isinstance(pattern, Optional_):
                yield from self._each(wanted, given, index + 1)
            else:
                self._fail(f"input {index} is omitted", None)
            return
        if pattern is None:
            self._fail(f"input {index} ('{tensor.name}') should be omitted", facts.producer(tensor))
            return
        for _ in self.solve(pattern, tensor):
            yield from self._each(wanted, given, index + 1)

    def _raises_rank(self, wanted: Sequence[Pattern | None], given: list[Any], node: Any) -> bool:
        """A one-element constant of shape (1, 1, 1) lifts a vector to rank 3: then it is not a mere factor."""
        if node.op not in _BROADCASTING or len(wanted) != 2 or len(given) != 2:
            return False
        return any(isinstance(wanted[index], Constant) and lifts_rank(given[index], given[1 - index]) for index in (0, 1))

    def _through(self, pattern: Through, tensor: Any) -> Iterator[None]:
        peeled = 0
        yield from self.solve(pattern.inner, tensor)
        while peeled < _DEEPEST_PEEL:
            node = self._producer(tensor)
            if node is None or node.op not in pattern.ops or domain_of(node) or tensor is not node.outputs[0] or _drops(node):
                break
            self.nodes.append((node, None))
            peeled += 1
            tensor = node.inputs[0]
            yield from self.solve(pattern.inner, tensor)
        for _ in range(peeled):
            self.nodes.pop()

    def _product(self, pattern: Product, tensor: Any) -> Iterator[None]:
        for leaves, coefficient, nodes, dtype in self._frontiers(tensor, len(pattern.factors), _DEEPEST_PEEL):
            # The number is judged last, so that a product with the right factors and a wrong number is told from any other.
            is_close = close(coefficient, pattern.coefficient, dtype, pattern.rel_tol)
            self.nodes.extend((node, None) for node in nodes)
            for order in permutations(leaves):
                for _ in self._each(pattern.factors, list(order), 0):
                    if is_close:
                        yield
                    elif nodes:
                        reason = f"the product's constant factor is {coefficient:g}, not {pattern.coefficient:g}"
                        self._fail(reason, nodes[0], telling=True)
            del self.nodes[len(self.nodes) - len(nodes) :]

    def _frontiers(
        self, tensor: Any, count: int, depth: int
    ) -> Iterator[tuple[list[Any], float, list[Any], np.dtype[Any] | None]]:
        """Ways to read ``tensor`` as a product of ``count`` values and a number: leaves, number, nodes in between.

        At most ``depth`` numbers are peeled off one after the other.
        """
        if count == 1:
            yield [tensor], 1.0, [], None
        node = self._producer(tensor)
        if node is None or node.op not in ("Mul", "Div") or domain_of(node) or len(node.inputs) != 2:
            return
        left, right = node.inputs
        for value, scale in ((left, right), (right, left)) if node.op == "Mul" else ((left, right),):
            number = self._factor(scale, value) if depth else None
            if number is None or (node.op == "Div" and (number[0] == 0 or number[1].kind in "iu")):
                continue
            factor = number[0] if node.op == "Mul" else 1.0 / number[0]
            for leaves, coefficient, nodes, dtype in self._frontiers(value, count, depth - 1):
                yield leaves, coefficient * factor, [node, *nodes], dtype or number[1]
        if node.op == "Mul" and count > 1:
            for split in range(1, count):
                for leaves, coefficient, nodes, dtype in self._frontiers(left, split, depth):
                    for more, further, extra, other in self._frontiers(right, count - split, depth):
                        yield [*leaves, *more], coefficient * further, [node, *nodes, *extra], dtype or other

    def _factor(self, tensor: Any, other: Any) -> tuple[float, np.dtype[Any]] | None:
        if not facts.is_constant(tensor) or not facts.is_small_constant(tensor, 1) or lifts_rank(tensor, other):
            return None
        value = facts.constant_of(tensor)
        if value is None or value.size != 1 or not is_real(value.dtype):
            return None
        return float(value.reshape(-1)[0]), value.dtype

    _WAYS: ClassVar[dict[type[Pattern], Callable[..., Iterable[None]]]] = {
        NodePattern: _node,
        Bound: _bind,
        Constant: _constant,
        Any_: _any,
        Product: _product,
        Through: _through,
        Optional_: _optional,
    }


def close(found: float, expected: float, dtype: np.dtype[Any] | None, rel_tol: float | None) -> bool:
    """Whether a constant is the expected one: within ``rel_tol``, by default 1e-5 or 4 units in the last place of its dtype."""
    if rel_tol is None:
        rel_tol = _REL_TOL
        if dtype is not None and dtype.name == "bfloat16":
            rel_tol = _UNITS * 2.0**-8
        elif dtype is not None and dtype.itemsize == 1 and dtype.kind not in "iub":
            return found == float(np.asarray(expected).astype(dtype))
        elif dtype is not None and dtype.kind == "f":
            rel_tol = max(rel_tol, _UNITS * float(np.finfo(dtype).eps))
    return isclose(found, expected, rel_tol=rel_tol, abs_tol=0.0)


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether elements of the dtype are real numbers: no strings, objects or complex numbers."""
    return dtype.kind not in "OSUc"


def same_value(found: Any, expected: Any) -> bool:
    """Whether an attribute has the value that a pattern asks for; floats are stored with 32 bits."""
    if isinstance(expected, (list, tuple)):
        return isinstance(found, (list, tuple)) and len(found) == len(expected) and all(map(same_value, found, expected))
    if isinstance(expected, (bool, int, float)) and isinstance(found, (int, float)):
        return isclose(found, expected, rel_tol=1e-6) if isinstance(found, float) else found == expected
    return type(found) is type(expected) and bool(found == expected)


@lru_cache(maxsize=1024)
def schema_default(op: str, domain: str, opset: int, name: str) -> Any:
    """The default of an attribute in the op's schema, or None."""
    try:
        attribute = onnx.defs.get_schema(op, opset, domain).attributes[name]
    except (onnx.defs.SchemaError, KeyError):
        return None
    found = onnx.helper.get_attribute_value(attribute.default_value) if attribute.default_value.name else None
    return found.decode() if isinstance(found, bytes) else found


def _drops(node: Any) -> bool:
    """Whether a Dropout may run in training mode; only in inference is it the identity."""
    if node.op != "Dropout" or len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    mode = facts.constant_of(node.inputs[2])
    return mode is None or bool(mode.any())


def lifts_rank(constant: Any, other: Any) -> bool:
    """Whether broadcasting ``other`` with ``constant`` could give more dimensions than ``other`` has."""
    shape = facts.shape_of(constant)
    if shape is None:
        value = facts.constant_of(constant)
        shape = None if value is None else value.shape
    if shape is not None and len(shape) == 0:
        return False
    rank = facts.shape_of(other)
    return shape is None or rank is None or len(shape) > len(rank)


def _equal_constants(left: Any, right: Any) -> bool:
    if not (facts.is_constant(left) and facts.is_constant(right)):
        return False
    if not (facts.is_small_constant(left, 16) and facts.is_small_constant(right, 16)):
        return False
    a, b = facts.constant_of(left), facts.constant_of(right)
    return a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
