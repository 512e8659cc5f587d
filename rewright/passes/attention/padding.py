"""A bias that is a function of a (batch, columns) mask of zeros and ones alone: it can be given as that mask."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import constant_of, dtype_of, is_small_constant, producer
from rewright.passes.attention.axes import Layout, Unproven
from rewright.passes.attention.scores import unexpanded
from rewright.passes.attention.steps import broadcast, upwards
from rewright.passes.attention.writing import Writer

_LONGEST: Final = 24
_MASKED_AND_KEPT: Final = (0, 1)
_UNARY: Final = {"Not": np.logical_not, "Neg": np.negative}
_BINARY: Final = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum,
    "Equal": np.equal, "Greater": np.greater, "Less": np.less,
    "GreaterOrEqual": np.greater_equal, "LessOrEqual": np.less_equal,
    "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
}  # fmt: skip
_COMPARING: Final = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")


class Use(Enum):
    """How a value depends on the mask."""

    NONE = 0
    TRUTH = 1
    """Only through whether the mask is 0."""
    MASK = 2
    """It is the mask, in this or another type."""
    NUMBER = 3
    """In another way: what it is for other numbers than 0 and 1 is not known."""


@dataclass(frozen=True)
class Padding:
    """A key of which ``mask`` (batch, columns) is 1 is kept; where it is 0, ``filtered`` is added to its scores.

    Attributes:
        truth: whether any number but 0 keeps the key; else nothing but custom says that the mask holds only zeros and ones.
    """

    mask: Any
    filtered: float
    truth: bool


def padding(writer: Writer) -> Padding | None:
    """The mask that says the same as the bias for every mask of zeros and ones, or None if there is none.

    Whether it does is computed: the nodes between are evaluated on 0 and on 1. A mask that is used as a number, as in
    ``(1 - mask) * c``, is taken to hold nothing else; ids are not.
    """
    attention = writer.attention
    terms = [term for term in attention.scores.terms if term.kind != "at-least"]
    if len(terms) != 1 or terms[0].kind not in ("add", "keep-where", "mask-where") or attention.guard:
        return None
    term = unexpanded(terms[0])
    if term.loose:
        return None
    walk = _Pointwise(writer)
    try:
        values = walk.values(term.value, term.layout, 0)
    except Unproven:
        return None
    if values is None or walk.source is None:
        return None
    array, use = values
    truth = use is Use.TRUTH or dtype_of(walk.source) == np.bool_
    if not truth and _is_index(walk.source):
        return None
    if term.kind == "add":
        bias = array.astype(np.float64)
    else:
        masked = np.finfo(np.float32).min if np.isfinite(term.number) else -np.inf
        chosen = array.astype(bool)
        bias = np.where(chosen if term.kind == "keep-where" else ~chosen, 0.0, masked)
        truth = truth or (use is Use.MASK)
    masked, kept = bias
    if kept != 0 or not masked < 0 or not np.isfinite(masked):
        return None
    return Padding(walk.source, float(masked), truth)


def _is_index(tensor: Any) -> bool:
    """Whether the value looks something up: then it does not hold zeros and ones only."""
    return any(node.op == "Gather" and len(node.inputs) > 1 and node.inputs[1] is tensor for node in tensor.outputs)


class _Pointwise:
    """Evaluates a chain of elementwise nodes over one mask, for 0 and 1, and notes how they use it."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.source: Any = None
        self._known: dict[tuple[int, Layout], tuple[Any, Use] | None] = {}

    def values(self, tensor: Any, layout: Layout, depth: int) -> tuple[Any, Use] | None:
        """The value for a mask of 0 and of 1; None if it is no such function."""
        if is_small_constant(tensor, 1):
            value = constant_of(tensor)
            return None if value is None or value.size != 1 else (np.repeat(value.reshape(-1), 2), Use.NONE)
        roles = self.writer.attention.roles
        held = self.writer.axes.resolve(layout)
        kind = dtype_of(tensor)
        if held == (roles.batch, roles.columns) and kind is not None and kind.kind in "iub" and not tensor.inputs:
            if self.source is not None and self.source is not tensor:
                return None
            self.source = tensor
            return np.array(_MASKED_AND_KEPT).astype(kind), Use.MASK
        node = producer(tensor)
        if node is None or domain_of(node) or depth > _LONGEST:
            return None
        key = (id(tensor), held)  # a mask of keys that also masks queries comes here twice, along different axes
        if key not in self._known:
            self._known[key] = self._computed(node, tensor, layout, depth)
        return self._known[key]

    def _computed(self, node: Any, tensor: Any, layout: Layout, depth: int) -> tuple[Any, Use] | None:
        moved = upwards(self.writer.axes, node, tensor, layout)
        if moved is not None:
            return self.values(*moved, depth + 1)
        inputs = []
        for operand in node.inputs:
            if not is_small_constant(operand, 1):
                found = self.values(operand, broadcast(layout, operand), depth + 1)
            else:
                found = self.values(operand, layout, depth + 1)
            if found is None:
                return None
            inputs.append(found)
        use = _use(node, tensor, inputs)
        with np.errstate(over="ignore", invalid="ignore"):
            made = applied(node, tensor, [array for array, _ in inputs])
        return None if made is None or use is None else (made, use)


def _use(node: Any, tensor: Any, inputs: list[tuple[Any, Use]]) -> Use | None:
    """How the output uses the mask; None where it tells numbers apart that no mask has."""
    uses = [use for _, use in inputs]
    if not {Use.MASK, Use.NUMBER} & set(uses):
        return Use.TRUTH if Use.TRUTH in uses else Use.NONE
    if node.op == "Cast" and uses == [Use.MASK]:
        before, after = dtype_of(node.inputs[0]), dtype_of(tensor)
        if after is None or before is None:
            return None
        if after.kind == "b":
            return Use.TRUTH
        return Use.NUMBER if after.kind in "iu" and after.itemsize < before.itemsize else Use.MASK
    if node.op in _COMPARING:
        constants = [array[0] for array, use in inputs if use is Use.NONE]
        if any(constant not in _MASKED_AND_KEPT for constant in constants):
            return None
        if node.op == "Equal" and Use.MASK in uses and 0 in constants:
            return Use.TRUTH
    return Use.NUMBER


def applied(node: Any, tensor: Any, inputs: list[Any]) -> Any | None:
    """What an elementwise node makes of arrays; None for a node that is none, or whose dtype is not known."""
    kind = dtype_of(tensor)
    if kind is None:
        return None
    if node.op == "Cast":
        return inputs[0].astype(kind)
    if node.op == "Where":
        return np.where(*inputs).astype(kind)
    if node.op in _UNARY:
        return _UNARY[node.op](inputs[0]).astype(kind)
    if node.op in _BINARY and len(inputs) == 2:
        return _BINARY[node.op](*inputs).astype(kind)
    return None
