"""Projections: queries, keys and values as columns of products of one value with constant weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, dtype_of, is_constant, producer, shape_of
from rewright.passes.attention.axes import Atom, Axis, Layout, Unproven, sizes_of
from rewright.passes.attention.operands import Place, places
from rewright.passes.attention.scores import scalar
from rewright.passes.attention.writing import Writer, numbers, positions

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Projection:
    """``source @ weight[:, columns] * factor + bias``, times ``scale``.

    Attributes:
        source: (batch, sequence, width).
        weight: the constant (width, columns) or, with ``transposed``, (columns, width).
        columns: which columns of the weight, in the order heads x head size.
        factor: what each column is multiplied by; None for 1.
        bias: for each column; None for 0.
        scale: a number that is left to the caller.
    """

    source: Any
    weight: Any
    transposed: bool
    columns: Array
    factor: Array | None
    bias: Array | None
    scale: float

    def weights(self) -> Array:
        """The weights of these columns, (width, number of columns)."""
        array = np.asarray(constant_of(self.weight))
        array = (array.T if self.transposed else array)[:, self.columns]
        return array if self.factor is None else array * self.factor.astype(array.dtype)


def projection(writer: Writer, found: list[Place], rows: tuple[Axis, Axis], columns: Axis, name: str) -> Projection:
    """The projection that gives queries, keys or values.

    Args:
        found: the places where they can be taken up.
        rows: batch and positions.
        columns: heads and head size.
        name: "queries", "keys" or "values", for the reason.

    Raises:
        Unproven: they are no columns of a product with a constant.
    """
    for place in reversed(found):
        node = producer(place.tensor)
        if node is not None and not domain_of(node) and node.op in ("MatMul", "Gemm"):
            made = _at(writer, place, node, rows, columns)
            if made is not None:
                return made
    raise Unproven(f"the {name} are not projected by constant weights", producer(found[0].tensor))


def _at(writer: Writer, place: Place, node: Any, rows: tuple[Axis, Axis], columns: Axis) -> Projection | None:
    weight = node.inputs[1]
    layout = writer.axes.resolve(place.layout)
    if not is_constant(weight) or len(shape_of(weight) or ()) != 2 or len(layout) not in (2, 3):
        return None
    if writer.axes.used(atom for axis in layout[:-1] for atom in axis) != rows[0] + rows[1]:
        return None
    if any(step.kind == "rotary" for step in place.steps):
        return None
    source = _source(writer, node.inputs[0], layout, rows)
    index = _columns(writer, layout[-1], columns)
    if source is None or index is None:
        return None
    transposed, factor, bias = False, None, None
    if node.op == "Gemm":
        if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1:
            return None
        transposed = bool(attribute(node, "transB", 0))
        if len(node.inputs) > 2 and node.inputs[2].name:
            held = _row(node.inputs[2], shape_of(weight))
            if held is None or attribute(node, "beta", 1.0) != 1:
                return None
            bias = held[index]
    for step in place.steps:
        vector = writer.vector(step, columns)
        if step.kind == "add":
            bias = vector if bias is None else bias + vector
        else:
            factor = vector if factor is None else factor * vector
            bias = None if bias is None else bias * vector
    return Projection(source, weight, transposed, index, factor, bias, place.scale)


def _row(tensor: Any, weight: Any) -> Array | None:
    """The bias of a Gemm as one row."""
    value = constant_of(tensor) if is_constant(tensor) else None
    if value is None or (value.ndim == 2 and value.shape[0] != 1) or value.ndim > 2:
        return None
    width = max(value.size, 1) if scalar(tensor) is None else max(int(size) for size in weight)
    return np.broadcast_to(value.reshape(-1), (width,)) if value.size in (1, width) else None


def _source(writer: Writer, tensor: Any, layout: Layout, rows: tuple[Axis, Axis]) -> Any | None:
    """What is projected, as (batch, sequence, width)."""
    width = sizes_of(tensor)[-1]
    depth: Axis = (Atom(width),) if width != 1 else ()
    wanted: Layout = (rows[0], rows[1], depth)
    for place in places(writer.axes, tensor, (*layout[:-1], depth)):
        held = writer.axes.resolve(place.layout)
        if held[:2] == wanted[:2] and len(held) == 3 and held[2] == writer.axes.atoms(depth) and not place.steps:
            return place.tensor if place.scale == 1 and dtype_of(place.tensor) == dtype_of(tensor) else None
    return None


def _columns(writer: Writer, axis: Axis, wanted: Axis) -> Array | None:
    """The positions along ``axis`` of the elements of ``wanted``, in order."""
    index, used = positions(writer.axes, axis)
    if set(used) != set(wanted) or len(used) != len(wanted):
        return None
    order = [used.index(atom) for atom in wanted]
    return np.ascontiguousarray(index.reshape(numbers(used)).transpose(order)).reshape(-1)
