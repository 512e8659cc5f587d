"""Rotations among sums of products: out = x * cos + partner(x) * sin, where pairs of elements are each other's partners."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import producer, shape_of
from rewright.passes.rotary.caches import Caches
from rewright.passes.rotary.moves import Index
from rewright.passes.rotary.terms import LEAD, Source, Term, Terms, negation


class NoRotation(Exception):  # noqa: N818  (control flow, never seen by a user)
    """Why something that turns elements by products is not a rotation that the op computes."""


@dataclass(frozen=True, eq=False)
class Cache:
    """The cosines or the sines: the ``elements`` of ``source``, one for each pair."""

    source: Source
    elements: Index


@dataclass(frozen=True, eq=False)
class Rotation:
    """What rotates.

    Attributes:
        x: the value with the heads; elements ``first`` to ``first + size`` of it take part.
        size: elements of a head in the result; the first ``rotated`` of them are rotated, the others are copied.
        interleaved: pairs are neighbours, else elements of the two halves.
        cos, sin: the caches.
        nodes: the nodes that sum and multiply, that of the result first. Nothing outside may need the others.
    """

    x: Any
    first: int
    size: int
    rotated: int
    interleaved: bool
    cos: Cache
    sin: Cache
    nodes: tuple[Any, ...]


def find(tensor: Any, terms: Terms, caches: Caches) -> Rotation | None:
    """The rotation that the value is, or None if it has nothing of one.

    Raises:
        NoRotation: pairs of elements are turned, but not in the way that the op does it.
    """
    if len(shape_of(tensor) or ()) != LEAD + 1:
        return None
    found = terms.sum(tensor)
    if found is None or len(found) != 2:
        return None
    first, second = found
    turned = (first.other >= 0) & (second.other >= 0)
    if not turned.any() or bool(((first.sign == 0) & (second.sign == 0)).any()):
        return None
    nodes = _Interior(tensor, terms)
    refusal: NoRotation | None = None
    for x in _common_factors(first, second, turned):
        try:
            rotation = _Reader(x, first, second, turned, nodes).read(terms, caches)
        except NoRotation as reason:
            refusal = refusal or reason
            continue
        if rotation is not None:
            return rotation
    if refusal is not None:
        raise refusal
    return None


def summing_nodes(tensor: Any, terms: Terms) -> tuple[Any, ...]:
    """The nodes that make the sums and products of a value."""
    return _Interior(tensor, terms).sums()


def _common_factors(first: Term, second: Term, turned: Index) -> list[int]:
    """The numbers of the values that are a factor of every product."""
    common: set[int] | None = None
    for term in (first, second):
        for left, right in set(zip(term.value[turned].tolist(), term.other[turned].tolist(), strict=True)):
            common = {left, right} if common is None else common & {left, right}
    return sorted(common or ())


class _Reader:
    """One reading of two terms: with the value number ``x`` as what is rotated."""

    def __init__(self, x: int, first: Term, second: Term, turned: Index, nodes: _Interior) -> None:
        self._x = x
        self._turned = turned
        self._nodes = nodes
        self._first, self._second = self._x_first(first), self._x_first(second)
        self._plain = np.where(first.sign != 0, first.element, second.element)
        copied = ~turned
        values = np.where(first.sign != 0, first.value, second.value)[copied]
        others = np.where(first.sign != 0, first.other, second.other)[copied]
        signs = (first.sign + second.sign)[copied]
        self._copies = bool((values == x).all() and (others < 0).all() and (signs == 1).all())

    def _x_first(self, term: Term) -> Term:
        swap = self._turned & (term.value != self._x)
        pairs = ((term.value, term.other), (term.element, term.other_element))
        (value, other), (element, other_element) = (
            (np.where(swap, right, left), np.where(swap, left, right)) for left, right in pairs
        )
        return Term(term.sign, value, element, other, other_element)

    def read(self, terms: Terms, caches: Caches) -> Rotation | None:
        refusal: NoRotation | None = None
        for candidate, places in self._nodes.views_of(self._x, terms):
            try:
                found = self._of(candidate, places, terms, caches)
            except NoRotation as reason:
                refusal = refusal or reason
                continue
            if found is not None:
                return found
        if refusal is not None:
            raise refusal
        return None

    def _of(self, x: Any, places: dict[int, int], terms: Terms, caches: Caches) -> Rotation | None:
        """The rotation, read as one of the elements of ``x``; ``places`` says where it has those of the source."""
        turned, size = self._turned, self._turned.size
        needed = np.concatenate([self._first.element[turned], self._second.element[turned], self._plain[~turned]])
        if not all(int(element) in places for element in needed):
            return None
        at = np.vectorize(lambda element: places.get(int(element), -1), otypes=[np.int64])
        first, second, copied = at(self._first.element), at(self._second.element), at(self._plain)
        base = int(copied[~turned][0] - np.flatnonzero(~turned)[0]) if not turned.all() else int(min(first.min(), second.min()))
        order = np.arange(size) + base
        straight = turned & ((first == order) | (second == order))
        if not (turned & (first != second)).any() or not straight.any():
            return None  # a sum of products, but nothing changes places
        if base < 0 or base + size > len(places) or not straight[turned].all():
            raise NoRotation("an element of the result does not contain the element of x at its own place")
        count = int(turned.sum())
        if not turned[:count].all() or not self._copies or (copied[~turned] != order[~turned]).any():
            raise NoRotation("the elements that are not rotated are not the last ones of x, unchanged")
        rows = np.arange(count)
        crossed = first[:count] != order[:count]
        partner = np.where(crossed, first[:count], second[:count]) - base
        interleaved = _pairing(partner, rows)
        cross_signs = np.where(crossed, self._first.sign[:count], self._second.sign[:count])
        straight_signs = np.where(crossed, self._second.sign[:count], self._first.sign[:count])
        if (straight_signs != 1).any():
            raise NoRotation("the product with the element at the same place is subtracted")
        if (cross_signs != np.where(partner > rows, -1, 1)).any():
            raise NoRotation("another element of the pair is negated than the first one's partner")
        cos = self._cache("cosine", ~crossed, partner, terms, caches)
        sin = self._cache("sine", crossed, partner, terms, caches)
        return Rotation(x, base, size, count, interleaved, cos, sin, self._nodes.sums())

    def _cache(self, name: str, from_first: Index, partner: Index, terms: Terms, caches: Caches) -> Cache:
        count = partner.size
        value = np.where(from_first, self._first.other[:count], self._second.other[:count])
        element = np.where(from_first, self._first.other_element[:count], self._second.other_element[:count])
        lower = np.flatnonzero(partner > np.arange(count))
        if len(set(value[lower].tolist())) != 1:
            raise NoRotation(f"the {name}s of the pairs come from several values")
        for one, two in zip(lower, partner[lower], strict=True):
            if not caches.equal(terms.sources[value[one]].tensor, element[one], terms.sources[value[two]].tensor, element[two]):
                raise NoRotation(
                    f"the two elements of a pair are not known to have the same {name}"
                    f" ('{terms.sources[value[one]].tensor.name}')"
                )
        return Cache(terms.sources[value[lower[0]]], element[lower])


def _pairing(partner: Index, rows: Index) -> bool:
    """Whether pairs are neighbours; else they are elements of two halves."""
    count = rows.size
    if count % 2 == 0 and (partner == (rows + count // 2) % count).all():
        return False
    if count % 2 == 0 and (partner == rows ^ 1).all():
        return True
    raise NoRotation("elements are paired neither by halves nor as neighbours")


class _Interior:
    """The nodes between a result and what it is read from."""

    def __init__(self, tensor: Any, terms: Terms) -> None:
        self._terms = terms
        self._sums: dict[int, Any] = {}
        self._views: dict[int, Any] = {}
        pending = [(tensor, True)]
        while pending:
            current, summed = pending.pop()
            seen = self._sums if summed else self._views
            if id(current) in seen:
                continue
            seen[id(current)] = current
            pending.extend(self._behind(current, summed))

    def _behind(self, tensor: Any, summed: bool) -> Iterator[tuple[Any, bool]]:
        """The values that the terms of ``tensor`` were read from, and whether as sums."""
        node = producer(tensor)
        if node is None or domain_of(node):
            return
        products = summed and any(term.is_product for term in self._terms.sum(tensor) or ())
        if not products:
            flipped = negation(node)
            move = self._terms.move_of(tensor)
            operands = (flipped[0],) if flipped is not None else move.inputs if move is not None else ()
            yield from ((operand, False) for operand in operands)
        elif node.op == "RotaryEmbedding":
            yield node.inputs[0], False
        else:
            yield from ((operand, node.op != "Mul") for operand in node.inputs)

    def views_of(self, number: int, terms: Terms) -> Iterator[tuple[Any, dict[int, int]]]:
        """The values that are elements of the source in some order, the one nearest to the result first, and the places of
        the source's elements in each."""
        for tensor in (*self._sums.values(), *self._views.values()):
            if len(shape_of(tensor) or ()) != LEAD + 1:
                continue
            view = terms.view(tensor)
            if view is None or (view.value != number).any() or (view.sign != 1).any():
                continue
            places = {int(element): place for place, element in enumerate(view.element)}
            if len(places) == view.element.size:
                yield tensor, places

    def sums(self) -> tuple[Any, ...]:
        """The nodes that make sums and products, the one that makes the result first."""
        sums = [tensor for tensor in self._sums.values() if any(term.is_product for term in self._terms.sum(tensor) or ())]
        return tuple({id(producer(tensor)): producer(tensor) for tensor in sums}.values())
