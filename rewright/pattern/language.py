"""Patterns: what a traced ``pattern`` function builds.

A pattern is written as the computation it looks for. Parameters of the function are bindings; arithmetic on them, and the
methods of ``op``, build the tree::

    def pattern(self, op, x, bias):
        return op.Gelu(x + bias)

Numbers are constants matched by value. Operands of Add and Mul commute. ``x * c`` also finds ``x / (1 / c)``, ``x + c`` also
finds ``x - (-c)``, ``x ** 2`` also finds ``x * x``: roles, not one exporter's spelling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from rewright.model.errors import PassError

Number: TypeAlias = int | float

COMMUTATIVE: Final = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "Mean"})
STANDARD: Final = ("",)


class Pattern:
    """A value to look for."""

    def __add__(self, other: Pattern | Number) -> Pattern:
        if isinstance(other, Pattern):
            return NodePattern("Add", (self, other))
        return Any_((NodePattern("Add", (self, Constant(other))), NodePattern("Sub", (self, Constant(-other)))))

    __radd__ = __add__

    def __sub__(self, other: Pattern | Number) -> Pattern:
        return NodePattern("Sub", (self, other)) if isinstance(other, Pattern) else self + -other

    def __rsub__(self, other: Number) -> Pattern:
        return NodePattern("Sub", (Constant(other), self))

    def __mul__(self, other: Pattern | Number) -> Pattern:
        if isinstance(other, Pattern):
            return NodePattern("Mul", (self, other))
        scaled = NodePattern("Mul", (self, Constant(other)))
        return Any_((scaled, NodePattern("Div", (self, Constant(1.0 / other, real=True))))) if other else scaled

    __rmul__ = __mul__

    def __truediv__(self, other: Pattern | Number) -> Pattern:
        return NodePattern("Div", (self, other)) if isinstance(other, Pattern) else self * (1.0 / other)

    def __rtruediv__(self, other: Number) -> Pattern:
        divided = NodePattern("Div", (Constant(other), self))
        return Any_((NodePattern("Reciprocal", (self,)), divided)) if other == 1 else divided

    def __pow__(self, other: Number) -> Pattern:
        power = NodePattern("Pow", (self, Constant(other)))
        if other == 2:
            return Any_((power, NodePattern("Mul", (self, self))))
        if other == 3:
            return Any_((power, Product((self, self, self), 1.0)))
        return Any_((power, NodePattern("Sqrt", (self,)))) if other == 0.5 else power

    def __neg__(self) -> Pattern:
        return Any_((NodePattern("Neg", (self,)), self * -1.0))


@dataclass(frozen=True, eq=False)
class Bound(Pattern):
    """A parameter of the pattern function: any value, the same one wherever it occurs."""

    name: str


@dataclass(frozen=True, eq=False)
class Constant(Pattern):
    """A constant of one element whose value is ``value`` within ``rel_tol`` (by default 1e-5, or 4 units of its dtype).

    ``real`` excludes integers, whose division rounds: x / 2 is x * 0.5 only among reals.
    """

    value: Number
    rel_tol: float | None = None
    real: bool = False


@dataclass(frozen=True, eq=False)
class NodePattern(Pattern):
    """An op and its inputs.

    ``attributes`` are compared with the node's, or with the schema's default where absent. ``keep`` lets other nodes use the
    value; the node then stays. ``bind`` names the node for ``match.node``. ``open_inputs`` allows more inputs than these.
    """

    op: str
    inputs: tuple[Pattern | None, ...]
    domains: tuple[str, ...] = STANDARD
    attributes: dict[str, Any] = field(default_factory=dict)
    bind: str = ""
    keep: bool = False
    open_inputs: bool = False
    output: int = 0
    source: NodePattern | None = None


@dataclass(frozen=True, eq=False)
class Any_(Pattern):  # noqa: N801  (Any is taken)
    """Any one of several patterns, tried in order."""

    choices: tuple[Pattern, ...]


@dataclass(frozen=True, eq=False)
class Optional_(Pattern):  # noqa: N801  (Optional is taken)
    """An input that may be omitted; its binding is then absent."""

    inner: Pattern


@dataclass(frozen=True, eq=False)
class Through(Pattern):
    """``inner``, possibly under a run of unary ops (Cast, Identity, ...)."""

    inner: Pattern
    ops: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Product(Pattern):
    """The product of ``factors`` and of the number ``coefficient``, however it is associated, ordered, or written with Div."""

    factors: tuple[Pattern, ...]
    coefficient: float
    rel_tol: float | None = None


class Tracer:
    """``op`` in a pattern function. ``op.Name(inputs...)`` is a node of that op; the methods are the rest of the language."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *inputs, **options: self._node(name, inputs, options)

    def _node(self, op: str, inputs: Sequence[Any], options: dict[str, Any]) -> Any:
        domain = options.pop("domain", STANDARD)
        domains = (domain,) if isinstance(domain, str) else tuple(domain)
        outputs = options.pop("outputs", 1)
        known = {key: options.pop(key) for key in ("bind", "keep", "open_inputs") if key in options}
        node = NodePattern(op, tuple(map(as_pattern, inputs)), domains, options, **known)
        if outputs == 1:
            return node
        return tuple(NodePattern(op, node.inputs, domains, options, output=index, source=node) for index in range(outputs))

    def any_of(self, *choices: Pattern | Number) -> Pattern:
        """The first of the patterns that fits."""
        return Any_(tuple(_required(choice) for choice in choices))

    def optional(self, inner: Pattern | Number) -> Pattern:
        """An input that the node may omit."""
        return Optional_(_required(inner))

    def through(self, inner: Pattern | Number, *ops: str) -> Pattern:
        """``inner``, or ``inner`` under any number of these unary ops (by default Cast, Identity and Dropout)."""
        return Through(_required(inner), ops or ("Cast", "Identity", "Dropout"))

    def constant(self, value: Number, rel_tol: float | None = None) -> Pattern:
        """A one-element constant of this value."""
        return Constant(value, rel_tol)

    def product(self, *factors: Pattern | Number, rel_tol: float | None = None) -> Pattern:
        """A product in any association and order; its numbers are multiplied into one coefficient."""
        coefficient = 1.0
        for factor in factors:
            if not isinstance(factor, Pattern):
                coefficient *= factor
        return Product(tuple(factor for factor in factors if isinstance(factor, Pattern)), coefficient, rel_tol)

    def inverse_sqrt(self, x: Pattern) -> Pattern:
        """1 / sqrt(x): Reciprocal or Div over Sqrt, Sqrt of a Reciprocal, or Pow(x, -0.5)."""
        root = NodePattern("Sqrt", (x,))
        return Any_((1.0 / root, NodePattern("Sqrt", (1.0 / x,)), x**-0.5))

    def square(self, x: Pattern) -> Pattern:
        """x * x: Mul of a value with itself, or Pow(x, 2)."""
        return x**2


def as_pattern(item: Any) -> Pattern | None:
    """A pattern, a number as a Constant, or None for an omitted input."""
    if item is None or isinstance(item, Pattern):
        return item
    if isinstance(item, (int, float, np.integer, np.floating)):
        return Constant(item.item() if isinstance(item, np.generic) else item)
    raise PassError(
        f"a pattern has the operand {item!r}.",
        "Pass developer: use parameters, numbers, op.<Name>(...) or None for an omitted input.",
    )


def _required(item: Any) -> Pattern:
    found = as_pattern(item)
    if found is None:
        raise PassError(
            "an alternative of a pattern is None.", "Pass developer: use op.optional for an input that may be absent."
        )
    return found


@dataclass(frozen=True)
class Traced:
    """A traced pattern function: the root, further outputs that the rewrite replaces too, and the bindings' names.

    A further output may lie below the root, or be a root of its own that shares values with it.
    """

    root: Pattern
    exposed: tuple[Pattern, ...]
    names: tuple[str, ...]


def trace(function: Callable[..., Any], owner: str) -> Traced:
    """Calls a pattern function once with tracing arguments.

    Raises:
        PassError: the function's first parameter is not ``op``, or it returns something else than patterns.
    """
    names = list(inspect.signature(function).parameters)
    if not names or names[0] != "op":
        raise PassError(
            f"pattern of '{owner}' is defined as pattern(self, {', '.join(names)}).", "Pass developer: its first parameter is op."
        )
    result = function(Tracer(), *(Bound(name) for name in names[1:]))
    roots = result if isinstance(result, tuple) else (result,)
    if not roots or not all(isinstance(root, Pattern) for root in roots):
        raise PassError(f"pattern of '{owner}' returned {result!r}.", "Pass developer: return the value that is replaced.")
    if any(isinstance(root, (Bound, Constant, Optional_)) for root in roots):
        raise PassError(
            f"pattern of '{owner}' returns a parameter or a number, which no node of the pattern computes.",
            "Pass developer: return the results of op.<Name>(...).",
        )
    return Traced(roots[0], tuple(roots[1:]), tuple(names[1:]))


def pattern_ops(patterns: Iterable[Pattern]) -> frozenset[str]:
    """Every op type that a node of a match can have."""
    found: set[str] = set()
    for current in _walk(patterns, parts):
        if isinstance(current, NodePattern):
            found.add(current.op)
        elif isinstance(current, Product):
            found.update(("Mul", "Div"))
        elif isinstance(current, Through):
            found.update(current.ops)
    return frozenset(found)


def root_ops(pattern: Pattern) -> frozenset[str]:
    """The op types that can produce the pattern's value."""
    found: set[str] = set()
    for current in _walk([pattern], _same_value):
        if isinstance(current, NodePattern):
            found.add(current.op)
        elif isinstance(current, Product):
            found.update(("Mul", "Div"))
        elif isinstance(current, Through):
            found.update(current.ops)
    return frozenset(found)


def _walk(roots: Iterable[Pattern], below: Callable[[Pattern], tuple[Pattern, ...]]) -> Iterator[Pattern]:
    """Each pattern once: alternatives share their parts, and there are many more ways through them than parts."""
    pending, seen = list(roots), set[int]()
    while pending:
        current = pending.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            pending.extend(below(current))


def _same_value(pattern: Pattern) -> tuple[Pattern, ...]:
    """The patterns right below whose value can be the pattern's own."""
    if isinstance(pattern, Product):
        return pattern.factors if len(pattern.factors) == 1 else ()
    return parts(pattern) if isinstance(pattern, (Any_, Through)) else ()


def parts(pattern: Pattern) -> tuple[Pattern, ...]:
    """The patterns right below ``pattern``."""
    if isinstance(pattern, NodePattern):
        return tuple(item for item in pattern.inputs if item is not None)
    if isinstance(pattern, Any_):
        return pattern.choices
    if isinstance(pattern, Product):
        return pattern.factors
    return (pattern.inner,) if isinstance(pattern, (Through, Optional_)) else ()
