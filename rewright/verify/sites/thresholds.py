"""The constants of a part of a model that its made-up values have to meet: what it clips to, compares with, and adds."""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import AttributeProto, NodeProto, numpy_helper

from rewright.model.elements import normal_domain
from rewright.model.regions import GraphIndex
from rewright.verify.inputs import LARGE

_BOUNDED: Final = frozenset({"Clip", "Min", "Max", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "ThresholdedRelu"})
_ATTRIBUTES: Final = frozenset({"min", "max", "alpha"})
_LARGEST: Final = 1e5
"""Larger bounds are there for infinities and for the range of float16."""

_MOST: Final = 2

_SCORES: Final = 500.0
"""Around it, products of two values go into the millions, and a finite number that masks scores shows if it is too small."""

_WEAK: Final = -1e3
_STRONG: Final = -1e9
_LARGEST_MASK: Final = 2**22


def thresholds(index: GraphIndex, nodes: list[NodeProto]) -> list[float]:
    """The bounds among the constants of the nodes that other made-up values would not reach, smallest first."""
    found: set[float] = set()
    for node in nodes:
        if node.op_type in _BOUNDED and not normal_domain(node.domain):
            found.update(abs(number) for name in node.input if (number := _number(index, name)) is not None)
            found.update(abs(attribute.f) for attribute in node.attribute if attribute.name in _ATTRIBUTES)
        elif node.op_type == "Softmax" and not normal_domain(node.domain):
            found.add(_SCORES)
    if _SCORES in found and any(_masks_weakly(index, name) for node in nodes for name in node.input):
        found.remove(_SCORES)  # the old part itself lets such scores through its mask
    return sorted(number for number in found if LARGE < number <= _LARGEST)[:_MOST]


def added_vectors(index: GraphIndex, nodes: list[NodeProto]) -> dict[str, np.ndarray]:
    """The constant vectors that the nodes add to values, by the names of these."""
    found: dict[str, np.ndarray] = {}
    for node in nodes:
        if node.op_type != "Add" or normal_domain(node.domain):
            continue
        for value, vector in (node.input, tuple(node.input)[::-1]):
            tensor = index.constants.get(vector)
            if tensor is not None and len(tensor.dims) == 1 and value not in index.constants:
                found.setdefault(value, index.model.tensor(tensor))
    return found


def _masks_weakly(index: GraphIndex, name: str) -> bool:
    """Whether a constant holds numbers that mask ordinary scores and not those in the millions."""
    tensor = index.constants.get(name)
    if tensor is not None and np.prod(tensor.dims, dtype=np.int64) <= _LARGEST_MASK:
        array = index.model.tensor(tensor)
    else:
        number = _number(index, name) if tensor is None else None
        array = np.asarray(0.0 if number is None else number)
    return bool(array.size and array.dtype.kind == "f" and _STRONG < float(array.min()) <= _WEAK)


def _number(index: GraphIndex, name: str) -> float | None:
    """The only element of a floating-point constant."""
    tensor = index.constants.get(name)
    if tensor is not None:
        array = index.model.tensor(tensor) if np.prod(tensor.dims, dtype=np.int64) == 1 else None
    else:
        node = index.node_of(name)
        array = _constant(node) if node is not None and node.op_type == "Constant" else None
    if array is None or array.size != 1 or array.dtype not in (np.float32, np.float64, np.float16):
        return None
    return float(array.reshape(-1)[0])


def _constant(node: NodeProto) -> np.ndarray | None:
    for attribute in node.attribute:
        if attribute.name == "value_float":
            return np.asarray(attribute.f, np.float32)
        if attribute.type == AttributeProto.TENSOR and not attribute.t.external_data:
            return numpy_helper.to_array(attribute.t)
    return None
