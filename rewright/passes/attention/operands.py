"""From a factor of a product up to where it comes from: through layouts, scales, biases and rotary embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, dtype_of, is_constant, is_small_constant, producer, shape_of
from rewright.ops.microsoft import DOMAIN
from rewright.passes.attention.axes import Axes, Layout, Unproven
from rewright.passes.attention.scores import scalar
from rewright.passes.attention.steps import broadcast, upwards

_LONGEST: Final = 24
_MOST_ELEMENTS: Final = 1 << 16


@dataclass(frozen=True)
class Step:
    """What happens to a factor after the place where it is taken up: a constant added or multiplied, or a rotary embedding.

    Attributes:
        kind: of the step.
        node: that computes it.
        value, layout: the constant and its layout; for a rotary embedding, the layout of its input.
    """

    kind: Literal["add", "multiply", "rotary"]
    node: Any
    value: Any = None
    layout: Layout = ()


@dataclass(frozen=True)
class Place:
    """A value on the way, from which the factor follows by its layout, a scale and the ``steps``, the first one applied first."""

    tensor: Any
    layout: Layout
    scale: float = 1.0
    steps: tuple[Step, ...] = ()


def places(axes: Axes, tensor: Any, layout: Layout) -> Iterator[Place]:
    """The values from which the factor ``tensor`` follows, itself first. Each step upwards may cut atoms in pieces."""
    here: Place | None = Place(tensor, layout)
    for _ in range(_LONGEST):
        if here is None:
            return
        yield here
        node = producer(here.tensor)
        try:
            here = _above(axes, node, here) if node is not None else None
        except Unproven:
            return


def _above(axes: Axes, node: Any, here: Place) -> Place | None:
    if domain_of(node) == DOMAIN:
        return _rotated(node, here) if node.op == "RotaryEmbedding" else None
    moved = upwards(axes, node, here.tensor, here.layout)
    if moved is not None:
        return Place(moved[0], moved[1], here.scale, here.steps)
    if node.op in ("Mul", "Div", "Add", "Sub") and not domain_of(node):
        return _arithmetic(node, here)
    if node.op == "Cast" and not domain_of(node) and not here.steps and _widens(node):
        return replace(here, tensor=node.inputs[0])
    return None


def _widens(cast: Any) -> bool:
    """Whether the Cast turns a float into a longer one."""
    before, after = dtype_of(cast.inputs[0]), dtype_of(cast.outputs[0])
    return before is not None and after is not None and before.kind == after.kind == "f" and before.itemsize < after.itemsize


def _arithmetic(node: Any, here: Place) -> Place | None:
    commutes = node.op in ("Mul", "Add")
    for index in (0, 1) if commutes else (0,):
        operand, other = node.inputs[index], node.inputs[1 - index]
        if not is_constant(other) or is_constant(operand):
            continue
        factor = scalar(other)
        if node.op in ("Mul", "Div") and factor is not None and factor > 0 and np.isfinite(factor):
            if any(step.kind == "add" for step in here.steps):
                return None
            factor = factor if node.op == "Mul" else 1.0 / factor
            return Place(operand, broadcast(here.layout, operand), here.scale * factor, here.steps)
        if commutes and is_small_constant(other, _MOST_ELEMENTS):
            step = Step("add" if node.op == "Add" else "multiply", node, other, broadcast(here.layout, other))
            return Place(operand, broadcast(here.layout, operand), here.scale, (step, *here.steps))
    return None


def _rotated(node: Any, here: Place) -> Place | None:
    """Above a rotary embedding of (batch, heads, sequence, head size)."""
    data = node.inputs[0]
    if len(shape_of(data) or ()) != 4 or attribute(node, "is_packed_batching", 0) or any(s.kind == "add" for s in here.steps):
        return None
    return Place(data, here.layout, here.scale, (Step("rotary", node, layout=here.layout), *here.steps))
