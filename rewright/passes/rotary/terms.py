"""Values as sums of products, element by element: which elements of which values make each element of a result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, producer, shape_of
from rewright.passes.rotary.moves import Index, Move, Moves, signs, trailing

LEAD: Final = 3
"""Heads have four axes, (batch, heads, positions, elements) or (batch, positions, heads, elements); elements are the last."""
_MOST_TERMS: Final = 2
_NONE: Final = -1


@dataclass(frozen=True, eq=False)
class Term:
    """For each element: a sign (0 where the term is absent), and one factor or two, each an element of a value.

    Values are numbered by ``Terms.sources``; the second factor is -1 where there is none.
    """

    sign: Index
    value: Index
    element: Index
    other: Index
    other_element: Index

    def picked(self, index: Index) -> Term:
        """The terms of the elements at ``index``, in its shape."""
        return Term(*(field.reshape(-1)[index] for field in self.fields()))

    def fields(self) -> tuple[Index, ...]:
        """All arrays, in order."""
        return self.sign, self.value, self.element, self.other, self.other_element

    def negated(self) -> Term:
        """The term with the opposite sign."""
        return replace(self, sign=-self.sign)

    @property
    def is_product(self) -> bool:
        """Whether any element has two factors."""
        return bool((self.other != _NONE).any())


@dataclass(frozen=True)
class Source:
    """A value that is not looked through.

    ``by_position``: its axes are batch, position and element, as the caches of the standard RotaryEmbedding have them; else they
    align with the heads' axes from the last one on.
    """

    tensor: Any
    by_position: bool = False


class Terms:
    """Reads values as terms. Every value is read once."""

    def __init__(self, moves: Moves) -> None:
        self.moves = moves
        self.sources: list[Source] = []
        self._numbers: dict[tuple[int, bool], int] = {}
        self._views: dict[int, tuple[Any, Term | None]] = {}  # with the values, so that no other gets their identity
        self._moves: dict[int, tuple[Any, Move | None]] = {}
        self._sums: dict[int, tuple[Any, tuple[Term, ...] | None]] = {}

    @staticmethod
    def count(tensor: Any) -> int:
        """How many of the value's axes hold elements."""
        return max(len(tensor.shape or ()) - LEAD, 1)

    def move_of(self, tensor: Any) -> Move | None:
        """The move that makes the value, unless it is a constant, or of too low a rank to say which axes are which."""
        if id(tensor) not in self._moves:
            shown = tensor.shape is not None and len(tensor.shape) > LEAD
            self._moves[id(tensor)] = tensor, self.moves.of(tensor, self.count(tensor)) if shown else None
        return self._moves[id(tensor)][1]

    def view(self, tensor: Any, depth: int = 32) -> Term | None:
        """The value as elements of another one, moved and with signs; None if its elements cannot be told apart."""
        if id(tensor) not in self._views:
            self._views[id(tensor)] = tensor, self._view(tensor, depth)
        return self._views[id(tensor)][1]

    def sum(self, tensor: Any, depth: int = 32) -> tuple[Term, ...] | None:
        """The value as a sum of products of two views; a view alone where it is none."""
        if id(tensor) not in self._sums:
            self._sums[id(tensor)] = tensor, self._sum(tensor, depth)
        return self._sums[id(tensor)][1]

    def _view(self, tensor: Any, depth: int) -> Term | None:
        node = producer(tensor)
        if depth and node is not None and not domain_of(node):
            if (negated := negation(node)) is not None:
                inner = self.view(negated[0], depth - 1)
                same_rank = len(shape_of(negated[0]) or ()) == len(shape_of(tensor) or ())
                if inner is not None and same_rank and trailing(tensor, self.count(tensor)) == inner.sign.shape:
                    return replace(inner, sign=inner.sign * negated[1])
            move = self.move_of(tensor)
            if move is not None:
                parts = [self.view(operand, depth - 1) for operand in move.inputs]
                known = [part for part in parts if part is not None]
                if len(known) == len(parts):
                    return _joined(known).picked(move.index)
        return self._leaf(tensor)

    def _leaf(self, tensor: Any, by_position: bool = False) -> Term | None:
        dims = trailing(tensor, self.count(tensor))
        if dims is None:
            return None
        key = id(tensor), by_position
        number = self._numbers.setdefault(key, len(self.sources))
        if number == len(self.sources):
            self.sources.append(Source(tensor, by_position))
        whole = np.ones(dims, np.int64)
        return Term(whole, whole * number, np.arange(whole.size).reshape(dims), whole * _NONE, whole * _NONE)

    def _sum(self, tensor: Any, depth: int) -> tuple[Term, ...] | None:
        node = producer(tensor)
        found = None
        if depth and node is not None and not domain_of(node) and len(shape_of(tensor) or ()) > LEAD:
            if node.op == "Mul":
                found = self._product(node, tensor)
            elif node.op in ("Add", "Sub"):
                found = self._added(node, depth)
            elif node.op == "Neg":
                inner = self.sum(node.inputs[0], depth - 1)
                found = None if inner is None else tuple(term.negated() for term in inner)
            elif node.op == "RotaryEmbedding":
                found = self._rotated(node)
            else:
                found = self._moved(tensor, depth)
        if found is not None and any(term.is_product for term in found):
            return found
        view = self.view(tensor)
        return None if view is None else (view,)

    def _product(self, node: Any, tensor: Any) -> tuple[Term, ...] | None:
        left, right = (self.view(operand) for operand in node.inputs)
        dims = trailing(tensor, self.count(tensor))
        if left is None or right is None or dims is None:
            return None
        if any(0 < len(shape_of(operand) or ()) < LEAD + len(dims) and len(dims) > 1 for operand in node.inputs):
            return None
        if any(_broadcast(term.sign.shape, dims) != dims for term in (left, right)):
            return None  # the shapes that the model states contradict each other
        first, second = (Term(*(np.broadcast_to(field, dims) for field in term.fields())) for term in (left, right))
        return (Term(first.sign * second.sign, first.value, first.element, second.value, second.element),)

    def _added(self, node: Any, depth: int) -> tuple[Term, ...] | None:
        left, right = (self.sum(operand, depth - 1) for operand in node.inputs)
        if left is None or right is None or len(left) + len(right) > _MOST_TERMS:
            return None
        if left[0].sign.shape != right[0].sign.shape:
            return None
        return (*left, *(term.negated() if node.op == "Sub" else term for term in right))

    def _moved(self, tensor: Any, depth: int) -> tuple[Term, ...] | None:
        move = self.move_of(tensor)
        sums = [self.sum(operand, depth - 1) for operand in move.inputs] if move is not None else []
        known = [found for found in sums if found is not None]
        if move is None or len(known) < len(sums) or not any(term.is_product for found in known for term in found):
            return None
        columns = [[_padded(found, place) for found in known] for place in range(max(map(len, known)))]
        return tuple(_joined(column).picked(move.index) for column in columns)

    def _rotated(self, node: Any) -> tuple[Term, ...] | None:
        """The standard RotaryEmbedding of heads with four axes, with caches by position and without position_ids."""
        if len(node.inputs) > 3 and node.inputs[3].name:
            return None
        x = self.view(node.inputs[0])
        cos, sin = (self._leaf(cache, by_position=True) for cache in node.inputs[1:3])
        ranks = [len(shape_of(tensor) or ()) for tensor in node.inputs[:3]]
        if x is None or cos is None or sin is None or ranks != [LEAD + 1, LEAD, LEAD]:
            return None
        half, size = cos.sign.size, x.sign.size
        rotated = attribute(node, "rotary_embedding_dim", 0) or size
        if rotated != 2 * half or sin.sign.size != half or rotated > size:
            return None
        place = np.arange(rotated)
        interleaved = bool(attribute(node, "interleaved", 0))
        partner = place ^ 1 if interleaved else (place + half) % rotated
        pair = place // 2 if interleaved else place % half
        rest = np.arange(rotated, size)
        first = Term(*map(np.concatenate, zip(_times(x, place, cos, pair, 1).fields(), x.picked(rest).fields(), strict=True)))
        flips = np.where(partner > place, -1, 1)
        second = _times(x, partner, sin, pair, flips)
        absent = _absent(rest.shape)
        return first, Term(*map(np.concatenate, zip(second.fields(), absent.fields(), strict=True)))


def negation(node: Any) -> tuple[Any, Index] | None:
    """The operand and the signs, if the node does nothing but flip signs."""
    if node.op == "Neg":
        return node.inputs[0], np.array([-1])
    if node.op == "Mul":
        for operand, constant in (node.inputs, reversed(node.inputs)):
            if (flips := signs(constant)) is not None:
                return operand, flips
    return None


def _times(x: Term, element: Index, cache: Term, place: Index, flips: Index | int) -> Term:
    left, right = x.picked(element), cache.picked(place)
    return Term(left.sign * flips, left.value, left.element, right.value, right.element)


def _joined(terms: list[Term]) -> Term:
    """The elements of all terms, one after another."""
    flat = [[field.reshape(-1) for field in term.fields()] for term in terms]
    return Term(*(np.concatenate(column) for column in zip(*flat, strict=True)))


def _padded(found: tuple[Term, ...], place: int) -> Term:
    return found[place] if place < len(found) else _absent(found[0].sign.shape)


def _absent(shape: tuple[int, ...]) -> Term:
    zero, none = np.zeros(shape, np.int64), np.full(shape, _NONE)
    return Term(zero, none, none, none, none)


def _broadcast(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(shape, dims)
    except ValueError:
        return None
