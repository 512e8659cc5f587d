"""What a convolution over an input says of it: how many channels it has, and how large the images are.

Exporters often leave all dimensions of images open, although the weights of the first convolution fix the number of channels, and
the position embeddings of a vision transformer the number of its patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from onnx import NodeProto

from rewright.verify.uses import Uses, attribute_of

_EXTRA_TOKENS: Final = (1, 0, 2)
"""Positions that are no patches: the class token, none, or the class token and that of a teacher (DeiT)."""

_UNCHANGED: Final = ("Cast", "Identity")

Dim = TypeVar("Dim")


@dataclass(frozen=True)
class Convolution:
    """The first one over an input.

    Attributes:
        node: the Conv.
        weight: the dimensions of its weight: (filters, channels / group, sizes of the kernel...).
    """

    node: NodeProto
    weight: tuple[int, ...]

    def with_channels(self, dims: tuple[Dim, ...]) -> tuple[Dim | int, ...]:
        """The dimensions of the input, with the number of channels where that is open."""
        if len(dims) != len(self.weight) or isinstance(dims[1], int):
            return dims
        return dims[0], self.weight[1] * attribute_of(self.node, "group", 1), *dims[2:]


def first_convolution(name: str, uses: Uses) -> Convolution | None:
    """The convolution that reads an input of the main graph as it is; None where there is none, or its weight is not known."""
    pending, seen = [name], {name}
    while pending:
        for use in uses.readers(("", pending.pop())):
            if use.node.op_type == "Conv" and use.index == 0 and use.scope == "":
                weight = uses.dims(("", use.node.input[1]))
                if weight and None not in weight:
                    return Convolution(use.node, tuple(size for size in weight if size is not None))
            elif use.node.op_type in _UNCHANGED and use.node.output[0] not in seen:
                seen.add(use.node.output[0])
                pending.append(use.node.output[0])
    return None


def sides_of_image(convolution: Convolution, uses: Uses) -> tuple[int, ...]:
    """The lengths of the side of a square image that position embeddings of (positions, filters) may be for.

    Empty if the convolution does not cut the image into square patches.
    """
    size = _patch_size(convolution)
    if size is None:
        return ()
    found = (
        math.isqrt(patches) * size
        for rank in (3, 2)  # (1, positions, filters), or a table of them; of rank 2 there are many other weights
        for extra in _EXTRA_TOKENS
        for positions in _positions(rank, convolution.weight[0], uses)
        if (patches := positions - extra) > 1 and math.isqrt(patches) ** 2 == patches
    )
    return tuple(dict.fromkeys(found))


def _patch_size(convolution: Convolution) -> int | None:
    if len(convolution.weight) != 4:
        return None
    strides = next((list(each.ints) for each in convolution.node.attribute if each.name == "strides"), [])
    height, width = convolution.weight[2:]
    return height if height == width and height > 1 and strides == [height, width] else None


def _positions(rank: int, filters: int, uses: Uses) -> Iterator[int]:
    """How many rows each constant has that is added as it is, or of which rows are."""
    for value, dims in uses.weights():
        is_fitting = len(dims) == rank and dims[-1] == filters and math.prod(dims[:-2]) == 1
        if is_fitting and any(use.node.op_type in ("Add", "Gather") for use in uses.readers(value)):
            yield dims[-2]
