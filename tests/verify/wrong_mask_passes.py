"""Passes that take masks, and gates of activations, for what they usually are."""

from __future__ import annotations

from typing import Any

import numpy as np
from mistakes import Mistake

from rewright import Match, PatternPass


class LengthForMask(PatternPass):
    """Takes a padding mask for as many first tokens as it has ones, as it is where the padding is on the right."""

    name = "length-for-mask"
    exactness = "reassociating"

    def pattern(self, op: Any, scores: Any, mask: Any, axes: Any) -> Any:
        return op.Softmax(op.Where(op.Unsqueeze(mask, axes), scores, -10000.0), axis=-1)

    def rewrite(self, op: Any, scores: Any, mask: Any, axes: Any) -> Any:
        ones = op.Cast(mask, to=6)
        last = op.constant(np.array([1]))
        count = op.ReduceSum(ones, last, keepdims=1)
        places = op.CumSum(op.Add(op.Mul(ones, op.constant(np.int32(0))), op.constant(np.int32(1))), op.constant(np.int32(1)))
        first = op.LessOrEqual(places, count)
        return op.Softmax(op.Where(op.Unsqueeze(first, axes), scores, op.constant(np.float32(-9999))), axis=-1)


class CausalForMask(PatternPass):
    """Takes every mask that is added to scores for one that is causal as well."""

    name = "causal-for-mask"
    exactness = "reassociating"

    def pattern(self, op: Any, scores: Any, mask: Any, triangle: Any) -> Any:
        return op.Softmax(op.any_of(op.Where(triangle, scores + mask, -1e9), scores + mask), axis=-1)

    def rewrite(self, op: Any, scores: Any, mask: Any) -> Any:
        lower = op.constant(np.tri(6, dtype=bool))
        return op.Softmax(op.Where(lower, op.Add(scores, mask), op.constant(np.float32(-2e9))), axis=-1)


class GateForSlope(PatternPass):
    """Takes whatever an input of a sigmoid is multiplied with for the number 1."""

    name = "gate-for-slope"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, slope: Any) -> Any:
        return x * op.Sigmoid(op.Mul(x, slope))

    def check(self, match: Match, slope: Any) -> None:
        match.require(slope.rank == 1, "the slope is no vector", slope)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.QuickGelu(x, domain="com.microsoft", alpha=1.0)


CONSTANTS = {
    "axes": np.array([1, 2]),
    "zero": np.float32(0),
    "minus_ten_thousand": np.float32(-1e4),
    "minus_a_billion": np.float32(-1e9),
    "lower": np.tri(6, dtype=bool),
    "ones": np.ones(8, np.float32),
}

MISTAKES = (
    Mistake(
        LengthForMask(),
        """{p}_given = Unsqueeze({mask}, axes)  {p}_masked = Where({p}_given, scores, minus_ten_thousand)
           {p}_softmax = Softmax<axis = -1>({p}_masked)  {p} = Mul({p}_softmax, two)""",
        right=[{"mask": "none_masked"}],
        wrong=[{"mask": "mask"}],
        inputs="float[B, 2, S, S] scores, bool[B, S] mask",
        prelude="masked = Not(mask)  none_masked = Or(mask, masked)  ",
        output="float[B, 2, S, S]",
        weights=CONSTANTS,
    ),
    Mistake(
        CausalForMask(),
        """{p}_sum = Add(scores, fill)  {where}
           {p}_softmax = Softmax<axis = -1>({masked})  {p} = Mul({p}_softmax, two)""",
        right=[{"where": "right0_lower = Where(lower, right0_sum, minus_a_billion)", "masked": "right0_lower"}],
        wrong=[{"where": "", "masked": "wrong0_sum"}],
        inputs="float[B, 2, 6, 6] scores, bool[B, 6] mask",
        prelude="given = Unsqueeze(mask, axes)  fill = Where(given, zero, minus_ten_thousand)  ",
        output="float[B, 2, 6, 6]",
        weights=CONSTANTS,
    ),
    Mistake(
        GateForSlope(),
        "{p}_scaled = Mul(x, {slope})  {p}_sigmoid = Sigmoid({p}_scaled)  {p} = Mul(x, {p}_sigmoid)",
        right=[{"slope": "ones"}],
        wrong=[{"slope": "z"}, {"slope": "bias"}],
        inputs="float[B, S, 8] x, float[8] z",
        weights=CONSTANTS,
    ),
)
