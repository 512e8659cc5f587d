"""The weight behind an operand: a constant, also where it is reached through steps that only move or convert it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, dtype_of, is_constant, producer

Array = np.ndarray[Any, Any]

_MOST_STEPS: Final = 16


@dataclass(frozen=True)
class Weight:
    """A constant, and the steps between it and the operand that it is.

    Attributes:
        source: the tensor that holds the constant; the same for all operands that share it, so that tied weights are recognised.
        steps: the nodes from the operand back to the source, the nearest first: Identity, Transpose, Reshape, Squeeze, Unsqueeze,
            Flatten, Cast.
    """

    source: Any
    steps: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Of the source."""
        return str(self.source.name)

    def values(self) -> Array:
        """What the operand holds; computed, and for a source in a file mapped, never kept here."""
        array = constant_of(self.source)
        if array is None:
            raise TypeError(f"'{self.name}' is no constant")
        for node in reversed(self.steps):
            array = _STEPS[node.op](node, array)
        return array

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the operand; the values of a source in a file are not read for it."""
        for node in self.steps:
            if node.op == "Cast":
                return onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to"))
        held = dtype_of(self.source)
        return np.asarray(constant_of(self.source)).dtype if held is None else held

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for operands that hold the same: the source, and what each step does."""
        return (id(self.source), *(_signature(node) for node in self.steps if node.op != "Identity"))


def weight_of(tensor: Any) -> Weight | None:
    """The weight behind an operand, or None where it is not known before run time. Nothing is read for the question."""
    steps: list[Any] = []
    while len(steps) < _MOST_STEPS:
        if is_constant(tensor):
            return Weight(tensor, tuple(steps))
        node = producer(tensor)
        if node is None or domain_of(node) or node.op not in _STEPS:
            return None
        if any(not is_constant(operand) for operand in node.inputs[1:] if operand.name):
            return None
        steps.append(node)
        tensor = node.inputs[0]
    return None


def _transpose(node: Any, array: Array) -> Array:
    perm = attribute(node, "perm")
    return array.transpose(perm) if perm is not None else array.transpose()


def _reshape(node: Any, array: Array) -> Array:
    target = [int(size) for size in np.asarray(constant_of(node.inputs[1])).reshape(-1)]
    if not attribute(node, "allowzero", 0):
        target = [array.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return array.reshape(target)


def _axes(node: Any) -> tuple[int, ...] | None:
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1].name:
        axes = np.asarray(constant_of(node.inputs[1])).reshape(-1).tolist()
    return None if axes is None else tuple(int(axis) for axis in axes)


def _squeeze(node: Any, array: Array) -> Array:
    return np.squeeze(array, _axes(node))


def _unsqueeze(node: Any, array: Array) -> Array:
    return np.expand_dims(array, _axes(node) or ())


def _flatten(node: Any, array: Array) -> Array:
    axis = attribute(node, "axis", 1)
    axis += array.ndim if axis < 0 else 0
    return array.reshape(int(np.prod(array.shape[:axis], dtype=np.int64)), -1)


def _cast(node: Any, array: Array) -> Array:
    return array.astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


_STEPS: Final[dict[str, Callable[[Any, Array], Array]]] = {
    "Identity": lambda node, array: array,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Cast": _cast,
}


def _signature(node: Any) -> tuple[Any, ...]:
    attributes = tuple(sorted((name, repr(value)) for name, value in node.attrs.items()))
    operands = tuple(np.asarray(constant_of(operand)).tobytes() for operand in node.inputs[1:] if operand.name)
    return node.op, attributes, operands
