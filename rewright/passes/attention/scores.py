"""From a softmax up to the product of queries and keys: what scales the scores, and what is added to or selected in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, dtype_of, is_constant, is_small_constant, producer
from rewright.passes.attention.axes import Axes, Layout, Unproven
from rewright.passes.attention.products import Product, is_product, product_above
from rewright.passes.attention.steps import broadcast, over, upwards
from rewright.pattern.values import NodeRef

_LONGEST: Final = 16
_MOST_FACTORS: Final = 1 << 12
_MOST_MASKED: Final = 1 << 24
ABSORBING: Final = -1e9
"""A score that is replaced by less than this is masked: no other score comes near it. -10000 is within the reach of scores."""
REACHABLE: Final = -1e4
"""Scores hardly come near this either: it masks where each row is proven to keep a key."""

Kind = Literal["add", "subtract", "keep-where", "mask-where", "multiply", "at-least"]


@dataclass(frozen=True)
class Term:
    """One step of the way from the product to the softmax.

    Attributes:
        kind: "add", "subtract": of ``value``. "keep-where": scores where ``value`` holds, ``number`` elsewhere; "mask-where": the
            reverse. "multiply": of everything so far by ``number``. "at-least": no less than ``number``.
        value: the tensor, if any; layout: its layout where it meets the scores.
        loose: whether an axis that the layout has may be of length 1; the layout of the scores is then ``level``.
    """

    kind: Kind
    node: Any
    value: Any = None
    layout: Layout = ()
    number: float = 0.0
    loose: bool = False
    level: Layout = ()


@dataclass(frozen=True)
class Scores:
    """The input of a softmax, explained: ``scale * product``, times the constants ``factors``, then ``terms`` in order.

    With a ``softcap`` c, ``c * tanh(scale * product / c)`` takes the place of ``scale * product``. ``shifts`` are nodes that take
    the highest score of each row, which is then subtracted: no softmax notices.
    """

    product: Product
    scale: float = 1.0
    terms: tuple[Term, ...] = ()
    interior: tuple[tuple[Any, Layout], ...] = ()
    factors: tuple[Term, ...] = ()
    shifts: tuple[Any, ...] = ()
    softcap: float | None = None


def unexpanded(term: Term) -> Term:
    """The term with what was expanded to the shape of the scores taken before that: it is repeated anyway."""
    node = producer(term.value) if term.value is not None else None
    while node is not None and node.op == "Expand" and not domain_of(node):
        try:
            layout, loose = over(term.level or term.layout, node.inputs[0])
        except Unproven:
            break
        if loose > term.loose:
            break
        term = replace(term, value=node.inputs[0], layout=layout, loose=loose)
        node = producer(term.value)
    return term


def explained(axes: Axes, tensor: Any, layout: Layout) -> Iterator[Scores]:
    """Every way to read ``tensor`` as scores, most likely first.

    Raises:
        Unproven: there is none; the reason is that of the way that came furthest.
    """
    walk = _Walk(axes, layout)
    found = False
    for scores in walk.above(tensor, layout, 0):
        found = True
        yield scores
    if not found:
        raise walk.obstacle or Unproven("the scores are not a product of queries and keys", producer(tensor))


class _Walk:
    def __init__(self, axes: Axes, layout: Layout) -> None:
        self.axes = axes
        self.layout = layout
        self.obstacle: Unproven | None = None
        self._depth = -1

    def above(self, tensor: Any, layout: Layout, depth: int) -> Iterator[Scores]:
        node = producer(tensor)
        if node is None or domain_of(node) or depth > _LONGEST:
            return
        try:
            yield from self._node(node, tensor, layout, depth)
        except Unproven as unproven:
            self._failed(unproven, depth)

    def _failed(self, unproven: Unproven, depth: int) -> None:
        if depth > self._depth:
            self.obstacle, self._depth = unproven, depth

    def _node(self, node: Any, tensor: Any, layout: Layout, depth: int) -> Iterator[Scores]:
        if is_product(node):
            yield Scores(product_above(node, layout))
            return
        moved = upwards(self.axes, node, tensor, layout)
        if moved is not None:
            for scores in self.above(moved[0], moved[1], depth + 1):
                yield replace(scores, interior=(*scores.interior, moved))
        elif node.op in ("Add", "Sub"):
            yield from self._added(node, layout, depth)
        elif node.op in ("Mul", "Div"):
            yield from self._scaled(node, layout, depth)
        elif node.op == "Where":
            yield from self._selected(node, layout, depth)
        elif node.op == "Max":
            yield from self._at_least(node, layout, depth)
        elif node.op == "Cast" and _is_float(node.inputs[0]) and _is_float(tensor):
            yield from self._through(node.inputs[0], layout, depth, ())
        elif node.op == "Tanh":
            yield from self._capped(node, layout, depth)

    def _capped(self, node: Any, layout: Layout, depth: int) -> Iterator[Scores]:
        """tanh(a x) is the soft cap 1 of a x; what it is multiplied by afterwards makes it the cap of a times that."""
        for scores in self._through(node.inputs[0], layout, depth, ()):
            if scores.terms or scores.softcap is not None or scores.shifts:
                self._failed(Unproven("something is added to the scores before their soft cap", node), depth + _LONGEST)
                continue
            yield replace(scores, softcap=1.0)

    def _through(self, operand: Any, layout: Layout, depth: int, terms: tuple[Term, ...]) -> Iterator[Scores]:
        held = broadcast(layout, operand)
        for scores in self.above(operand, held, depth + 1):
            yield replace(scores, terms=scores.terms + terms, interior=(*scores.interior, (operand, held)))

    def _added(self, node: Any, layout: Layout, depth: int) -> Iterator[Scores]:
        highest = _highest(node.inputs[1], node.inputs[0], len(layout)) if node.op == "Sub" else None
        # No softmax notices what is subtracted along its own axis.
        if highest is not None and self.axes.atoms(layout[-1]) == self.axes.atoms(self.layout[-1]):
            for scores in self._through(node.inputs[0], layout, depth, ()):
                yield replace(scores, shifts=(*scores.shifts, highest))
            return
        for index in (0, 1) if node.op == "Add" else (0,):
            operand, other = node.inputs[index], node.inputs[1 - index]
            kind: Kind = "add" if node.op == "Add" else "subtract"
            try:
                binary = _masked_product(operand, other) if kind == "add" else None
                if binary is not None:
                    scores, mask, masked = binary
                    term = Term("keep-where", node, mask, broadcast(layout, mask), masked)
                    for found in self._through(scores, layout, depth + 1, (term,)):
                        yield replace(found, interior=(*found.interior, (operand, layout)))
                    continue
                held, loose = over(layout, other)
                term = Term(kind, node, other, held, loose=loose, level=layout)
                yield from self._through(operand, layout, depth, (term,))
            except Unproven as unproven:
                self._failed(unproven, depth)

    def _scaled(self, node: Any, layout: Layout, depth: int) -> Iterator[Scores]:
        for index in (0, 1) if node.op == "Mul" else (0,):
            operand, other = node.inputs[index], node.inputs[1 - index]
            factor = scalar(other)
            if factor is None and node.op == "Mul" and is_constant(other) and is_small_constant(other, _MOST_FACTORS):
                for scores in self._through(operand, layout, depth, ()):
                    if not scores.terms and scores.softcap is None:
                        held = Term("multiply", node, other, broadcast(layout, other))
                        yield replace(scores, factors=(*scores.factors, held))
                continue
            if factor is None:
                word = "multiplied" if node.op == "Mul" else "divided"
                for _ in self._through(operand, layout, depth, ()):
                    reason = f"the scores are {word} by the value '{other.name}', which is not a constant number"
                    self._failed(Unproven(reason, node), depth + _LONGEST)
                    break
                continue
            if node.op == "Div":
                factor = 1.0 / factor if factor else 0.0
            if not np.isfinite(factor) or factor <= 0:
                self._failed(Unproven(f"the scores are scaled by {factor}, which is not positive", node), depth)
                continue
            for scores in self._through(operand, layout, depth, ()):
                terms = _multiplied(scores.terms, Term("multiply", node, number=factor))
                softcap = None if scores.softcap is None else scores.softcap * factor
                yield replace(scores, scale=scores.scale * factor, terms=terms, softcap=softcap)

    def _selected(self, node: Any, layout: Layout, depth: int) -> Iterator[Scores]:
        condition, chosen, otherwise = node.inputs
        for operand, other, kind in ((chosen, otherwise, "keep-where"), (otherwise, chosen, "mask-where")):
            if producer(operand) is None:
                continue
            masked = scalar(other)
            if masked is None or not masked <= REACHABLE:
                for _ in self._through(operand, layout, depth, ()):
                    what = f"{masked}" if masked is not None else f"'{other.name}', which is not a constant number"
                    reason = f"masked scores become {what}, and only a large negative constant is sure to mask"
                    self._failed(Unproven(reason, node), depth + _LONGEST)
                    break
                continue
            held, loose = over(layout, condition)
            term = Term(kind, node, condition, held, masked, loose, layout)  # type: ignore[arg-type]
            yield from self._through(operand, layout, depth, (term,))

    def _at_least(self, node: Any, layout: Layout, depth: int) -> Iterator[Scores]:
        if len(node.inputs) != 2:
            return
        for index in (0, 1):
            least = scalar(node.inputs[1 - index])
            dtype = dtype_of(node.inputs[index])
            if least is None or dtype is None or not least <= lowest(dtype):
                continue
            yield from self._through(node.inputs[index], layout, depth, (Term("at-least", node, number=least),))


def absorbing(tensor: Any) -> float:
    """From where on, downwards, a number in the place of a score masks it: in half precision, the lowest number does."""
    dtype = dtype_of(tensor)
    return lowest(dtype) if dtype is not None and dtype == np.float16 else ABSORBING


def lowest(dtype: np.dtype[Any]) -> float:
    """The lowest finite number of a type of floats."""
    return float(ml_dtypes.finfo(dtype).min)  # type: ignore[no-untyped-call]


def _multiplied(terms: tuple[Term, ...], term: Term) -> tuple[Term, ...]:
    if terms and terms[-1].kind == "multiply":
        number = terms[-1].number * term.number
        return terms[:-1] if number == 1 else (*terms[:-1], replace(term, number=number))
    return (*terms, term) if terms else ()


def _highest(tensor: Any, scores: Any, rank: int) -> Any | None:
    """The node that takes the highest value of each row of ``scores``, if ``tensor`` holds those."""
    node = producer(tensor)
    kept = 1
    if node is not None and node.op == "Unsqueeze" and NodeRef(node).ints("axes", 1) in ([-1], [rank - 1]):
        node, kept = producer(node.inputs[0]), 0
    if node is None or node.op != "ReduceMax" or domain_of(node) or node.inputs[0] is not scores:
        return None
    last = NodeRef(node).ints("axes", 1) in ([-1], [rank - 1])
    return node if last and attribute(node, "keepdims", 1) == kept else None


def _masked_product(product: Any, added: Any) -> tuple[Any, Any, float] | None:
    """(scores, mask, c) where the sum is ``scores * mask + c * (1 - mask)``."""
    times, other = producer(product), producer(added)
    if times is None or other is None or times.op != "Mul" or other.op != "Mul":
        return None
    for index in (0, 1):
        masked, complement = scalar(other.inputs[index]), producer(other.inputs[1 - index])
        if masked is None or not -np.inf < masked <= REACHABLE or complement is None or complement.op != "Sub":
            continue
        if scalar(complement.inputs[0]) != 1:
            continue
        for place in (0, 1):
            if times.inputs[place] is complement.inputs[1] and _is_binary(times.inputs[place]):
                return times.inputs[1 - place], times.inputs[place], masked
    return None


def _is_binary(tensor: Any, depth: int = 0) -> bool:
    """Whether the value is proven to hold zeros and ones only."""
    kind = dtype_of(tensor)
    if kind is not None and kind.kind == "b":
        return True
    if is_constant(tensor):
        value = constant_of(tensor) if is_small_constant(tensor, _MOST_MASKED) else None
        return value is not None and bool(np.isin(value, (0, 1)).all())
    node = producer(tensor)
    moving = ("Cast", "Slice", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Gather", "Identity")
    return node is not None and depth < 8 and not domain_of(node) and node.op in moving and _is_binary(node.inputs[0], depth + 1)


def scalar(tensor: Any) -> float | None:
    """The number that a constant of one element holds."""
    if not tensor.name or not is_small_constant(tensor, 1):
        return None
    value = constant_of(tensor)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _is_float(tensor: Any) -> bool:
    dtype = dtype_of(tensor)
    return dtype is not None and (dtype.kind == "f" or dtype.name == "bfloat16")
