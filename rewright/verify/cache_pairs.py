"""Which outputs of a model with a cache are the next step's inputs: past_key_values.0.key <- present.0.key, and the like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from onnx import ValueInfoProto

from rewright.model.carrier import Model

_WORDS: Final = re.compile(r"[a-z]+|\d+")
_OLD: Final = frozenset(("past", "prev", "previous", "old", "in", "input"))
_NEW: Final = frozenset(("present", "presents", "new", "next", "updated", "out", "output"))
_MARKS: Final = ("past", "prev", "cache", "state")
"""One of these is part of the input's name, or the pair is taken for no cache."""

_CACHE_RANK: Final = 4


@dataclass(frozen=True)
class CachePair:
    """An input and the output that is fed back to it."""

    past: str
    present: str


def cache_pairs(model: Model) -> list[CachePair]:
    """The pairs, in the order of the inputs: by their names, or, where no name tells, by shape and order.

    Shape and order decide only if all inputs of rank four, (batch, heads, length, size), have the same type and dimensions
    but one, and there are as many such outputs.
    """
    initialized = {tensor.name for tensor in model.proto.graph.initializer}
    inputs = [value for value in model.proto.graph.input if value.name not in initialized]
    named = list(_named_pairs(inputs, model.proto.graph.output))
    return named or _ordered_pairs(inputs, model.proto.graph.output)


def _named_pairs(inputs: Iterable[ValueInfoProto], outputs: Iterable[ValueInfoProto]) -> Iterable[CachePair]:
    presents: dict[tuple[str, ...], list[ValueInfoProto]] = {}
    for value in outputs:
        presents.setdefault(_key(value.name, _NEW), []).append(value)
    for value in inputs:
        if not any(mark in value.name.lower() for mark in _MARKS):
            continue
        found = presents.get(_key(value.name, _OLD), [])
        if len(found) == 1 and found[0].name != value.name and _fits(value, found[0]):
            yield CachePair(value.name, found[0].name)


def _key(name: str, dropped: frozenset[str]) -> tuple[str, ...]:
    """The words and numbers of a name, without those that tell the old from the new."""
    words = _WORDS.findall(re.sub(r"(past|presents?)[._]?key[._]?values?(?![._]?(cache|state))", r"\1", name.lower()))
    return tuple(word for word in words if word not in dropped)


def _fits(past: ValueInfoProto, present: ValueInfoProto) -> bool:
    first, second = past.type.tensor_type, present.type.tensor_type
    if first.elem_type != second.elem_type:
        return False
    known = first.HasField("shape") and second.HasField("shape")
    return not known or len(first.shape.dim) == len(second.shape.dim)


def _ordered_pairs(inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> list[CachePair]:
    pasts, presents = _of_rank(inputs), _of_rank(outputs)
    if len(pasts) < 2 or len(pasts) % 2 or len(pasts) != len(presents):
        return []
    growing = {_growing_axis(past, present) for past, present in zip(pasts, presents, strict=True)}
    if len(growing) != 1 or None in growing:
        return []
    return [CachePair(past.name, present.name) for past, present in zip(pasts, presents, strict=True)]


def _of_rank(values: Iterable[ValueInfoProto]) -> list[ValueInfoProto]:
    return [value for value in values if len(value.type.tensor_type.shape.dim) == _CACHE_RANK]


def _growing_axis(past: ValueInfoProto, present: ValueInfoProto) -> int | None:
    """The one axis along which the dimensions differ; None if there are more, or fewer, or the length is fixed."""
    if not _fits(past, present):
        return None
    pairs = list(zip(past.type.tensor_type.shape.dim, present.type.tensor_type.shape.dim, strict=True))
    differing = [axis for axis, (old, new) in enumerate(pairs) if old != new]
    is_open = len(differing) == 1 and not any(dim.HasField("dim_value") for dim in pairs[differing[0]])
    return differing[0] if is_open else None
