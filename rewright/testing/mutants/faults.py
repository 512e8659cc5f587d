"""The faults that a fusion can have: every attribute, input, constant and the op itself, broken one at a time.

A fault is made for one emitted node. `equivalent` is the reason why it cannot show, where a rule says so: such mutants are run
as well, and are counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from zlib import crc32

import numpy as np

from rewright.testing.mutants import blocks
from rewright.testing.mutants.attributes import FUSED, wrong_values
from rewright.testing.mutants.embeddings import unmoved
from rewright.testing.mutants.siblings import beside, siblings_of
from rewright.testing.mutants.spots import Array, Spot

Kind = Literal["attribute", "input order", "input left out", "constant", "op", "output", "beside"]


@dataclass(frozen=True)
class Fault:
    """One way to be wrong.

    Attributes:
        kind: what is broken.
        name: what it is broken into; the same for all nodes where it is the same fault.
        change: breaks the node.
        equivalent: why it computes the same all the same, or empty.
    """

    kind: Kind
    name: str
    change: Callable[[Spot], None]
    equivalent: str = ""


def faults_of(spot: Spot) -> list[Fault]:
    """Every fault that the node offers; none if it is not an op that a fusion is about."""
    if spot.op not in FUSED:
        return [Fault("beside", name, change) for name, change in beside(spot).items()]
    siblings = [Fault("op", f"taken for {name}", change) for name, change in siblings_of(spot).items()]
    return [*_attributes(spot), *_orders(spot), *_left_out(spot), *_constants(spot), *siblings, *_outputs(spot)]


def _attributes(spot: Spot) -> Iterator[Fault]:
    for name, what, value in wrong_values(spot):
        yield Fault("attribute", f"{name} {what}", _setter(name, value), _unread(spot, name) or unmoved(spot, name, value))


def _setter(name: str, value: Any) -> Callable[[Spot], None]:
    return lambda spot: spot.set_attribute(name, value)


def _unread(spot: Spot, name: str) -> str:
    if name != "num_heads" or spot.node.op_type != "RotaryEmbedding":
        return ""
    shape = spot.shape("input") or spot.shape("X")
    if shape is not None and len(shape) == 4:
        return "an input of four axes has an axis of heads, and num_heads is not read"
    return ""


_SWAPS: Final = (
    *(("query", "key"), ("key", "value"), ("query", "value"), ("Q", "K"), ("K", "V"), ("Q", "V")),
    *(("gamma", "beta"), ("gamma", "bias"), ("beta", "bias"), ("Scale", "B"), ("cos_cache", "sin_cache")),
    *(("input", "skip"), ("word_embedding", "position_embedding"), ("position_embedding", "segment_embedding")),
    *(("input_ids", "segment_ids"), ("input_ids", "position_ids")),
)


def _orders(spot: Spot) -> Iterator[Fault]:
    for first, second in _SWAPS:
        one, other = spot.index(first), spot.index(second)
        if one is None or other is None or spot.node.input[one] == spot.node.input[other]:
            continue
        yield Fault("input order", f"{first} and {second} exchanged", _swapper(first, second), _commutes(spot, first, second))


def _swapper(first: str, second: str) -> Callable[[Spot], None]:
    return lambda spot: spot.swap(first, second)


def _commutes(spot: Spot, first: str, second: str) -> str:
    one, other = spot.shape(first), spot.shape(second)
    if (first, second) == ("input", "skip") and one is not None and None not in one and one == other:
        return "input + skip commutes, and both have one shape"
    return ""


def _left_out(spot: Spot) -> Iterator[Fault]:
    for name in spot.formal_inputs:
        if name in spot.optional_inputs and spot.index(name) is not None:
            array = spot.constant(name)
            if array is None or array.any():  # without a vector of zeros nothing changes
                yield Fault("input left out", f"{name} left out", _dropper(name))


def _dropper(name: str) -> Callable[[Spot], None]:
    return lambda spot: spot.drop(name)


_TABLES: Final = frozenset({"word_embedding", "position_embedding", "segment_embedding", "cos_cache", "sin_cache"})
_REACHED: Final = 2
"""Rows of a table that any input of two positions reaches, and any set of the first row numbers."""

_BLOCKS: Final[Mapping[tuple[str, str], Callable[[Spot], Iterable[blocks.Block]]]] = {
    ("com.microsoft::Attention", "weights"): blocks.of_weights,
    ("com.microsoft::Attention", "bias"): blocks.of_bias,
    ("com.microsoft::MultiHeadAttention", "bias"): blocks.of_bias,
}


def _constants(spot: Spot) -> Iterator[Fault]:
    for name in spot.formal_inputs:
        array = spot.constant(name)
        if array is None or not array.size:
            continue
        parts = _BLOCKS.get((spot.op, name))
        if parts is None:
            yield from _broken(name, name, array, (slice(None),) * array.ndim)
            continue
        found = list(parts(spot))
        for part in found:
            yield from _broken(name, f"{part.name} of {name}", array, part.where, part.equivalent)
        yield from _misplaced(spot, name, array, found)


def _broken(name: str, label: str, array: Array, where: tuple[slice, ...], equivalent: str = "") -> Iterator[Fault]:
    """The ways in which one constant, or a part of it, can be wrong."""

    def fault(what: str, part: Array) -> Fault:
        return Fault("constant", f"{label} {what}", _replacer(name, where, part), equivalent)

    part = array[where]
    if part.dtype.kind in "iu":
        yield fault("one too large", part + part.dtype.type(1))
        return
    largest = np.abs(part).max(initial=0)
    element = part.copy().reshape(-1)
    # a row of a table that no input looks up shows nowhere
    reached = element.size if name not in _TABLES else element.size // len(part) * min(_REACHED, len(part))
    element[crc32(label.encode()) % reached] += part.dtype.type(0.1) * (largest or part.dtype.type(1))
    yield fault("off in one element", element.reshape(part.shape))
    if not largest:
        return
    yield fault("x 1.01", part * part.dtype.type(1.01))
    yield fault("zeros", np.zeros_like(part))
    if part.ndim == 1 and not np.array_equal(part, np.roll(part, 1)):
        yield fault("one place further", np.roll(part, 1))
    if part.ndim == 2 and part.shape[0] == part.shape[1] and not np.array_equal(part, part.T):
        yield fault("transposed", part.T)


def _misplaced(spot: Spot, name: str, array: Array, parts: list[blocks.Block]) -> Iterator[Fault]:
    """Parts of a packed constant in each other's place, and heads in the place of their elements."""
    for first, second in ((0, 1), (1, 2)):
        one, other = (array[parts[number].where] for number in (first, second))
        if one.shape == other.shape and not np.array_equal(one, other):
            changed = np.array(array)
            changed[parts[first].where], changed[parts[second].where] = other, one
            label = f"{parts[first].name} and {parts[second].name} of {name} exchanged"
            yield Fault("constant", label, _replacer(name, (slice(None),) * array.ndim, changed))
    heads, value = spot.attribute("num_heads", 1), array[parts[2].where]
    if 1 < heads < value.shape[-1]:
        turned = value.reshape(*value.shape[:-1], heads, -1).swapaxes(-1, -2).reshape(value.shape)
        if not np.array_equal(turned, value):
            yield Fault("constant", f"{parts[2].name} of {name} by element and head", _replacer(name, parts[2].where, turned))


def _replacer(name: str, where: tuple[slice, ...], part: Array) -> Callable[[Spot], None]:
    def replace(spot: Spot) -> None:
        whole = spot.constant(name)
        assert whole is not None
        changed = np.array(whole)
        changed[where] = part
        spot.set_constant(name, changed)

    return replace


def _outputs(spot: Spot) -> Iterator[Fault]:
    """A reader of one output gets another, or, where they have one shape, the first input."""
    if sum(map(bool, spot.node.output)) > 1:
        yield Fault("output", "its outputs exchanged", _exchange_outputs)
    elif spot.op in _KEEPS_SHAPE:
        yield Fault("output", "its first input in its place", Spot.become_identity)


def _exchange_outputs(spot: Spot) -> None:
    given = [position for position, name in enumerate(spot.node.output) if name]
    first, last = given[0], given[-1]
    spot.node.output[first], spot.node.output[last] = spot.node.output[last], spot.node.output[first]


_KEEPS_SHAPE: Final = frozenset(FUSED) - {
    "com.microsoft::GemmFastGelu",
    "com.microsoft::EmbedLayerNormalization",
    "com.microsoft::GroupQueryAttention",
    "com.microsoft::MultiHeadAttention",
}
