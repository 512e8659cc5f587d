"""Rows of an output that belong to padding, and what is left without them.

At a padded position of a causal model with left padding every key is masked, so that the softmax runs over nothing but
masked scores. What it yields depends on how the mask was spelled (an added -1e4, -3.4e38, or -inf) and means nothing; no
caller reads it. A fusion may therefore change these rows, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ValueInfoProto

from rewright.verify.inputs import InputSet


@dataclass(frozen=True)
class Excused:
    """What of an output remains, and a note for the evidence. `select` gives the valid positions, as (positions, rest)."""

    select: Callable[[np.ndarray], np.ndarray]
    note: str


def without_padding(graph: GraphProto, input_set: InputSet, output: str, shape: tuple[int, ...]) -> Excused | None:
    """How to leave the padded positions of an output out; None when it has none.

    An output has them if it shares batch and length with a padding mask: by the names of its dimensions, or, where
    these have no names, by the sizes of its first two.
    """
    for mask_name in input_set.padding_masks:
        valid = np.asarray(input_set.arrays[mask_name]).astype(np.bool_)
        axis = length_axis(graph, mask_name, valid.shape, output, shape)
        if axis is None or valid.all():
            continue
        return Excused(_selection(axis, valid), f"{int(valid.size - valid.sum())} padded positions were not compared")
    return None


def length_axis(
    graph: GraphProto, source: str, source_shape: tuple[int, ...], output: str, output_shape: tuple[int, ...]
) -> int | None:
    """The axis of an output along which it has the length of an input of shape (batch, length, ...); None without one.

    Names of an output's dimensions that no input has (exporters number them) count as no names.
    """
    known = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim}
    output_dims = [dim if dim in known else "" for dim in _named_dims(graph.output, output)]
    return _length_axis(_named_dims(graph.input, source)[:2], output_dims, source_shape[:2], output_shape)


def _selection(axis: int, valid: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.moveaxis(array, axis, 1)[valid]


def _length_axis(
    mask_dims: Sequence[str], output_dims: Sequence[str], mask_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> int | None:
    if len(output_shape) < 2 or output_shape[0] != mask_shape[0]:
        return None
    if len(output_dims) == len(output_shape) and all(mask_dims) and mask_dims[0] == output_dims[0]:
        axes = [axis for axis in range(1, len(output_dims)) if output_dims[axis] == mask_dims[1]]
        matching = [axis for axis in axes if output_shape[axis] == mask_shape[1]]
        return matching[0] if matching else None
    is_unnamed = not any(output_dims[:2])
    return 1 if is_unnamed and output_shape[:2] == mask_shape else None


def _named_dims(values: Sequence[ValueInfoProto], name: str) -> list[str]:
    for value in values:
        if value.name == name:
            return [dim.dim_param for dim in value.type.tensor_type.shape.dim]
    return []
