"""Rows of an output that belong to padding, and what is left without them.

At a padded position of a causal model with left padding every key is masked, so that the softmax runs over nothing but
masked scores. What it yields depends on how the mask was spelled (an added -1e4, -3.4e38, or -inf) and means nothing; no
caller reads it. A fusion may therefore change these rows, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ValueInfoProto

from rewright.verify.inputs import InputSet


@dataclass(frozen=True)
class Excused:
    """Both outputs at the valid positions only, as (positions, rest), and a note for the evidence."""

    reference: np.ndarray
    candidate: np.ndarray
    note: str


def without_padding(
    graph: GraphProto, input_set: InputSet, output: str, reference: np.ndarray, candidate: np.ndarray
) -> Excused | None:
    """The outputs at the valid positions; None when the output has no padded ones.

    An output has them if it shares batch and length with a padding mask: by the names of its dimensions, or, where
    these have no names, by the sizes of its first two.
    """
    output_dims = _named_dims(graph.output, output)
    for mask_name in input_set.padding_masks:
        valid = np.asarray(input_set.arrays[mask_name]).astype(np.bool_)
        axis = _length_axis(_named_dims(graph.input, mask_name), output_dims, valid.shape, reference.shape)
        if axis is None or valid.all():
            continue
        padded = int(valid.size - valid.sum())
        return Excused(
            np.moveaxis(reference, axis, 1)[valid],
            np.moveaxis(candidate, axis, 1)[valid],
            f"{padded} padded positions were not compared",
        )
    return None


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
