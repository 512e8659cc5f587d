"""What the tables of an EmbedLayerNormalization say about the sums that it can meet."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from rewright.ops.embedding import EPSILON
from rewright.testing.mutants.spots import Array, Spot
from rewright.verify.tolerance import tolerance_for

_MOST_SUMS: Final = 2**22
"""Numbers in all sums of rows; beyond, nothing is said."""


def unmoved(spot: Spot, name: str, value: Any) -> str:
    """Why another epsilon moves no output by more than the tolerance of float32, or empty.

    All inputs of the op but row numbers are constants, so that the sums that it can meet are known, and with them their least
    variance v: an epsilon of e in place of f changes every output by the factor sqrt((v + f) / (v + e)).
    """
    if name != "epsilon" or spot.op != "com.microsoft::EmbedLayerNormalization":
        return ""
    least = _least_variance(spot)
    if least is None:
        return ""
    held, other = spot.attribute("epsilon", EPSILON), EPSILON if value is None else value
    moved = abs(math.sqrt((least + held) / (least + other)) - 1) if least + other > 0 else math.inf
    tolerance = tolerance_for(np.dtype(np.float32), "reassociating")
    if moved > tolerance.rtol + tolerance.atol:  # what is allowed to an element as large as the others
        return ""
    return "no sum of rows of the tables has so little variance that the epsilon moves an output by the tolerance of float32"


def _least_variance(spot: Spot) -> float | None:
    tables: list[Array] = []
    for name in ("word_embedding", "position_embedding", "segment_embedding"):
        table = spot.constant(name)
        if table is not None:
            tables.append(table.astype(np.float64))
        elif spot.index(name) is not None:
            return None
    if not tables or math.prod(len(table) for table in tables) * tables[0].shape[-1] > _MOST_SUMS:
        return None
    sums = tables[0]
    for table in tables[1:]:
        sums = (sums[:, None] + table[None]).reshape(-1, table.shape[-1])
    return float(sums.var(axis=-1).min())
