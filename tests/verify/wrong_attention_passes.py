"""Passes over attention and its surroundings that make known mistakes: scale, mask, causality, heads, order, offsets."""

from __future__ import annotations

from typing import Any

import numpy as np
from mistakes import RARE, Mistake

from rewright import Match, PatternPass

MICROSOFT = "com.microsoft"


def products(op: Any, q: Any, k: Any, split: Any) -> Any:
    """Queries times keys, by head."""
    queries = op.Transpose(op.Reshape(q, split), perm=[0, 2, 1, 3])
    return op.MatMul(queries, op.Transpose(op.Reshape(k, split), perm=[0, 2, 3, 1]))


def means(op: Any, probabilities: Any, v: Any, split: Any) -> Any:
    """The values' means by those probabilities, by head."""
    return op.MatMul(probabilities, op.Transpose(op.Reshape(v, split), perm=[0, 2, 1, 3]))


def merged(op: Any, by_head: Any, merge: Any) -> Any:
    """The heads side by side."""
    return op.Reshape(op.Transpose(by_head, perm=[0, 2, 1, 3]), merge)


def fused(op: Any, q: Any, k: Any, v: Any, mask: Any = None, **attributes: Any) -> Any:
    """One op for two heads."""
    return op.MultiHeadAttention(q, k, v, None, None, mask, domain=MICROSOFT, **({"num_heads": 2} | attributes))


class AnyScale(PatternPass):
    """Takes every divisor of the scores for the root of the head size."""

    name = "any-scale"
    exactness = "reassociating"

    def pattern(self, op: Any, q: Any, k: Any, v: Any, split: Any, merge: Any, divisor: Any) -> Any:
        scores = op.Div(products(op, q, k, split), divisor)
        return merged(op, means(op, op.Softmax(scores, axis=-1), v, split), merge)

    def check(self, match: Match, divisor: Any) -> None:
        match.require(divisor.scalar is not None, "the divisor is not a number", divisor)

    def rewrite(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        return fused(op, q, k, v)


class DroppedMask(PatternPass):
    """Looks through the addition of a mask."""

    name = "dropped-mask"
    exactness = "reassociating"

    def pattern(self, op: Any, q: Any, k: Any, v: Any, split: Any, merge: Any, mask: Any) -> Any:
        scores = products(op, q, k, split) / 2
        return merged(op, means(op, op.Softmax(op.any_of(scores + mask, scores), axis=-1), v, split), merge)

    def rewrite(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        return fused(op, q, k, v)


class InvertedMask(PatternPass):
    """Takes every mask for one that is 1 where a token is valid, also those that are 1 where it is padding."""

    name = "inverted-mask"
    exactness = "reassociating"

    def pattern(self, op: Any, scores: Any, mask: Any, axes: Any) -> Any:
        given = op.Cast(op.Unsqueeze(mask, axes), bind="cast")
        return op.Softmax(scores + op.any_of(1 - given, op.Identity(given)) * -10000.0, axis=-1)

    def rewrite(self, op: Any, match: Match, scores: Any) -> Any:
        valid = match.the_node("cast").inputs[0]
        fill = op.Where(valid, op.constant(np.float32(0)), op.constant(np.float32(-10000)))
        return op.Softmax(op.Add(scores, fill), axis=-1)


class NeverMasked(PatternPass):
    """Takes every mask for one that masks nothing."""

    name = "never-masked"
    exactness = "reassociating"

    def pattern(self, op: Any, scores: Any, mask: Any) -> Any:
        return op.Softmax(scores + mask * -10000.0, axis=-1)

    def rewrite(self, op: Any, scores: Any) -> Any:
        return op.Softmax(scores, axis=-1)


class AnyConstantMask(PatternPass):
    """Takes every constant mask for the causal one."""

    name = "any-constant-mask"
    exactness = "reassociating"

    def pattern(self, op: Any, q: Any, k: Any, v: Any, split: Any, merge: Any, mask: Any) -> Any:
        scores = op.Where(mask, products(op, q, k, split) / 2, -1e9)
        return merged(op, means(op, op.Softmax(scores, axis=-1), v, split), merge)

    def check(self, match: Match, mask: Any) -> None:
        match.require(mask.is_constant, "the mask is not constant", mask)

    def rewrite(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        return fused(op, q, k, v, unidirectional=1)


class LostCausality(PatternPass):
    """Drops every constant mask."""

    name = "lost-causality"
    exactness = "reassociating"

    def pattern(self, op: Any, scores: Any, mask: Any) -> Any:
        return op.Softmax(op.Where(mask, scores, -1e9), axis=-1)

    def check(self, match: Match, mask: Any) -> None:
        match.require(mask.is_constant, "the mask is not constant", mask)

    def rewrite(self, op: Any, scores: Any) -> Any:
        return op.Softmax(scores, axis=-1)


class ValueForKey(PatternPass):
    """Gives the keys where values belong, and the values where keys belong."""

    name = "value-for-key"
    exactness = "reassociating"

    def pattern(self, op: Any, q: Any, k: Any, v: Any, split: Any, merge: Any) -> Any:
        return merged(op, means(op, op.Softmax(products(op, q, k, split) / 2, axis=-1), v, split), merge)

    def rewrite(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        return fused(op, q, v, k)


class TwoHeads(PatternPass):
    """Takes every attention for one of two heads; the scale it reads."""

    name = "two-heads"
    exactness = "reassociating"

    def pattern(self, op: Any, q: Any, k: Any, v: Any, split: Any, merge: Any, divisor: Any) -> Any:
        scores = op.Div(products(op, q, k, split), divisor)
        return merged(op, means(op, op.Softmax(scores, axis=-1), v, split), merge)

    def rewrite(self, op: Any, q: Any, k: Any, v: Any, divisor: Any) -> Any:
        return fused(op, q, k, v, scale=1 / divisor.scalar)


class AnySoftmaxAxis(PatternPass):
    """Takes every softmax over the scores for one over the keys."""

    name = "any-softmax-axis"
    exactness = "reassociating"

    def pattern(self, op: Any, q: Any, k: Any, v: Any, split: Any, merge: Any) -> Any:
        return merged(op, means(op, op.Softmax(products(op, q, k, split) / 2), v, split), merge)

    def rewrite(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        return fused(op, q, k, v)


class HeadsInAnyOrder(PatternPass):
    """Takes heads for merged whether they were transposed back before or not."""

    name = "heads-in-any-order"
    exactness = "reassociating"

    def pattern(self, op: Any, q: Any, k: Any, v: Any, split: Any, merge: Any) -> Any:
        values = means(op, op.Softmax(products(op, q, k, split) / 2, axis=-1), v, split)
        return op.any_of(merged(op, values, merge), op.Reshape(values, merge))

    def rewrite(self, op: Any, q: Any, k: Any, v: Any) -> Any:
        return fused(op, q, k, v)


class AnyRotation(PatternPass):
    """Takes every swap of two halves, one of them negated, for the same rotation."""

    name = "any-rotation"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any) -> Any:
        first, second = op.Split(x, outputs=2, axis=-1)
        return op.any_of(op.Concat(-second, first, axis=-1), op.Concat(second, -first, axis=-1))

    def rewrite(self, op: Any, x: Any) -> Any:
        rotation = np.zeros((8, 8), np.float32)
        rotation[range(4), range(4, 8)], rotation[range(4, 8), range(4)] = 1, -1
        return op.MatMul(x, op.constant(rotation))


class NoOffset(PatternPass):
    """Drops the number that is added to positions."""

    name = "no-offset"

    def pattern(self, op: Any, table: Any, positions: Any, offset: Any) -> Any:
        return op.Gather(table, positions + offset)

    def check(self, match: Match, offset: Any) -> None:
        match.require(offset.scalar is not None, "the offset is not a number", offset)

    def rewrite(self, op: Any, table: Any, positions: Any) -> Any:
        return op.Gather(table, positions)


class FirstPositions(PatternPass):
    """Takes the rows that positions pick for the first ones of the table."""

    name = "first-positions"

    def pattern(self, op: Any, x: Any, table: Any, positions: Any) -> Any:
        return x + op.Gather(table, positions)

    def rewrite(self, op: Any, x: Any, table: Any) -> Any:
        length = op.Slice(op.Shape(x), op.constant(np.array([1])), op.constant(np.array([2])))
        return op.Add(x, op.Slice(table, op.constant(np.array([0])), length, op.constant(np.array([0]))))


class FirstRow(PatternPass):
    """Takes the row that is picked for the first one of the table."""

    name = "first-row"

    def pattern(self, op: Any, x: Any, table: Any, rows: Any) -> Any:
        return x + op.Gather(table, rows)

    def rewrite(self, op: Any, x: Any, table: Any) -> Any:
        return op.Add(x, op.constant(table.value[0]))


ATTENTION = """
    {p}_q = Reshape(q, {split})  {p}_queries = Transpose<perm = [0, 2, 1, 3]>({p}_q)
    {p}_k = Reshape({k}, {split})  {p}_keys = Transpose<perm = [0, 2, 3, 1]>({p}_k)
    {p}_v = Reshape({v}, {split})  {p}_values = Transpose<perm = [0, 2, 1, 3]>({p}_v)
    {p}_products = MatMul({p}_queries, {p}_keys)  {p}_scores = Div({p}_products, {divisor})
    {masking}
    {p}_softmax = Softmax<axis = {axis}>({masked})
    {p}_means = MatMul({p}_softmax, {p}_values)  {merging}
    {p} = Reshape({merged}, merge)
"""
PROJECTIONS = "q = MatMul(x, weight)  k = MatMul(x, other_weight)  v = MatMul(x, third_weight)  "
SHAPES = {
    "third_weight": np.random.default_rng(33).standard_normal((8, 8)).astype(np.float32),
    "split": np.array([0, 0, 2, 4]),
    "split_in_four": np.array([0, 0, 4, 2]),
    "whole": np.array([0, 0, 1, 8]),
    "merge": np.array([0, -1, 8]),
    "axes": np.array([1, 2]),
    "padding_id": np.array(RARE),
    "zero": np.float32(0),
    "minus_ten_thousand": np.float32(-1e4),
    "minus_a_billion": np.float32(-1e9),
    "causal": np.tri(6, dtype=bool),
    "window": np.tri(6, dtype=bool) & ~np.tri(6, k=-3, dtype=bool),
    "everything": np.ones((6, 6), bool),
    "no_offset": np.array(0),
    "offset": np.array(2),
}
PADDING = """
    is_padding = Equal(ids, padding_id)  by_row = Where(is_padding, minus_ten_thousand, zero)  mask = Unsqueeze(by_row, axes)
"""


def block(site: str, **fields: Any) -> dict[str, Any]:
    """The fields of one attention; ``{p}`` in them is the site's name."""
    usual = {
        "split": "split",
        "k": "k",
        "v": "v",
        "divisor": "two",
        "axis": -1,
        "masking": "",
        "masked": "{p}_scores",
        "merging": "{p}_back = Transpose<perm = [0, 2, 1, 3]>({p}_means)",
        "merged": "{p}_back",
    }
    made = usual | fields
    return {key: value.replace("{p}", site) if isinstance(value, str) else value for key, value in made.items()}


ADDED = {"masking": "{p}_masked = Add({p}_scores, mask)", "masked": "{p}_masked"}


def selected(mask: str) -> dict[str, str]:
    """Scores of which a constant mask selects some."""
    return {"masking": f"{{p}}_masked = Where({mask}, {{p}}_scores, minus_a_billion)", "masked": "{p}_masked"}


MISTAKES = (
    Mistake(
        AnyScale(),
        ATTENTION,
        right=[block("right0"), block("right1", k="q")],
        wrong=[block("wrong0", divisor="three"), block("wrong1", divisor="nearly_two")],
        prelude=PROJECTIONS,
        weights=SHAPES | {"nearly_two": np.float32(2.02)},
    ),
    Mistake(
        DroppedMask(),
        ATTENTION,
        right=[block("right0"), block("right1", v="k")],
        wrong=[block("wrong0", **ADDED), block("wrong1", k="v", **ADDED)],
        inputs="float[B, S, 8] x, int64[B, S] ids",
        prelude=PROJECTIONS + PADDING,
        is_hidden=True,
        weights=SHAPES,
    ),
    Mistake(
        InvertedMask(),
        """{p}_given = Unsqueeze(mask, axes)  {p}_float = Cast<to = 1>({p}_given)  {sense}
           {p}_fill = Mul({p}_mask, minus_ten_thousand)  {p}_masked = Add(scores, {p}_fill)
           {p}_softmax = Softmax<axis = -1>({p}_masked)  {p} = Mul({p}_softmax, two)""",
        right=[{"sense": f"right{index}_mask = Sub(one, right{index}_float)"} for index in range(2)],
        wrong=[{"sense": "wrong0_mask = Identity(wrong0_float)"}],
        inputs="float[B, 2, S, S] scores, bool[B, S] mask",
        output="float[B, 2, S, S]",
        weights=SHAPES,
    ),
    Mistake(
        AnyConstantMask(),
        ATTENTION,
        right=[block("right0", **selected("causal")), block("right1", v="k", **selected("causal"))],
        wrong=[block("wrong0", **selected("window"))],
        inputs="float[B, 6, 8] x",
        output="float[B, 6, 8]",
        prelude=PROJECTIONS,
        weights=SHAPES,
    ),
    Mistake(
        LostCausality(),
        """{p}_masked = Where({mask}, scores, minus_a_billion)
           {p}_softmax = Softmax<axis = -1>({p}_masked)  {p} = Mul({p}_softmax, two)""",
        right=[{"mask": "everything"}],
        wrong=[{"mask": "causal"}, {"mask": "window"}],
        inputs="float[B, 2, 6, 6] scores",
        output="float[B, 2, 6, 6]",
        weights=SHAPES,
    ),
    Mistake(
        ValueForKey(),
        ATTENTION,
        right=[block("right0", v="k"), block("right1", k="v")],
        wrong=[block("wrong0")],
        prelude=PROJECTIONS,
        weights=SHAPES,
    ),
    Mistake(
        TwoHeads(),
        ATTENTION,
        right=[block("right0"), block("right1", divisor="three")],
        wrong=[block("wrong0", split="split_in_four"), block("wrong1", split="whole")],
        prelude=PROJECTIONS,
        weights=SHAPES,
    ),
    Mistake(
        AnySoftmaxAxis(),
        ATTENTION,
        right=[block("right0"), block("right1", axis=3)],
        wrong=[block("wrong0", axis=2), block("wrong1", axis=1)],
        prelude=PROJECTIONS,
        weights=SHAPES,
    ),
    Mistake(
        HeadsInAnyOrder(),
        ATTENTION,
        right=[block("right0"), block("right1", v="k")],
        wrong=[block("wrong0", merging="", merged="{p}_means")],
        prelude=PROJECTIONS,
        weights=SHAPES,
    ),
    Mistake(
        AnyRotation(),
        "{p}_first, {p}_second = Split<axis = -1>(x)  {p}_minus = Neg({negated})  {p} = Concat<axis = -1>({order})",
        right=[{"negated": "right0_second", "order": "right0_minus, right0_first"}],
        wrong=[{"negated": "wrong0_first", "order": "wrong0_second, wrong0_minus"}],
    ),
    Mistake(
        NoOffset(),
        "{p}_positions = Add(positions, {offset})  {p} = Gather(table, {p}_positions)",
        right=[{"offset": "no_offset"}],
        wrong=[{"offset": "offset"}],
        inputs="int64[B, S] positions",
        weights=SHAPES,
    ),
)
