"""RotaryEmbedding nodes that run for a batch of 1 only: caches or positions have one row, and kernels do not broadcast."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import shape_of
from rewright.ops.microsoft import DOMAIN
from rewright.passes.rotary.emission import Emission
from rewright.passes.rotary.moves import Moves

_CACHES_BY_POSITION = 3


def narrow_operands(node: Any, moves: Moves) -> list[int]:
    """The inputs that have one row where x has several, or may have."""
    dims = moves.dims(node.inputs[0]) if node.inputs else None
    if dims is None or dims[0] == 1:
        return []
    standard = domain_of(node) != DOMAIN
    positions = 3 if standard else 1
    if len(node.inputs) > positions and node.inputs[positions].name:
        wanted, rank = [positions], 2
    else:
        wanted, rank = [1, 2], _CACHES_BY_POSITION
    return [index for index in wanted if (shape := shape_of(node.inputs[index])) and len(shape) == rank and shape[0] == 1]


def widened(node: Any, narrow: list[int], emission: Emission) -> Any:
    """The output of the same op, whose operands have as many rows as x."""
    inputs = list(node.inputs)
    x = inputs[0]
    batch = emission.make("Gather", [emission.make("Shape", [x], {}), emission.constant(np.array([0]))], {"axis": 0})
    for index in narrow:
        ones = emission.constant(np.ones(len(shape_of(inputs[index]) or ()) - 1, np.int64))
        shape = emission.make("Concat", [batch, ones], {"axis": 0})
        inputs[index] = emission.make("Expand", [inputs[index], shape], {})
    return emission.make_another(node.op, inputs, dict(node.attrs), node.domain or "")
