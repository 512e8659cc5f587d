"""The ``skip-layer-norm`` pass."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rewright.ops.microsoft import DOMAIN
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import NodeRef, Value

_LAYER_NORMALIZATION_EPSILON = 1e-5
_RANKS = (2, 3)


class SkipLayerNorm(PatternPass):
    """LayerNormalization(x + skip) -> com.microsoft.SkipLayerNormalization, which also gives the sum.

    output = (s - mean(s)) / sqrt(var(s) + epsilon) * gamma + beta, with s = x + skip + bias over the last axis.

    1. Both operands must have the same shape, of rank 2 or 3, wholly known by number or symbol; beside an operand of rank 3
       the other may be (1, S, H) or (S, H), and becomes the skip (not for the target dml).
    2. The normalised axis must be the last, epsilon is written out (the op's own default is 1e-12, not 1e-5), a missing bias of
       the LayerNormalization stays missing.
    3. Where the sum is used elsewhere too, it becomes the fourth output.
    4. Where an operand is a MatMul with a constant bias added, that bias becomes the fifth input, unless ``bias`` is off.
    5. Refused: an operand that is a constant (that is a bias or a position table, not a residual), gamma or beta that is
       not of shape (H) or depends on the sum, a mean or deviation output that is used, a dtype without kernel.

    The CPU kernel agrees with float64 to a few units in the last place; where a row's mean is a hundred times its spread, its
    error is up to ten times that of LayerNormalization (about 1.5e-7 times the ratio).
    Source: ONNX LayerNormalization-17; ONNX Runtime contrib operator SkipLayerNormalization.
    """

    name = "skip-layer-norm"
    exactness = "reassociating"
    emits = ("com.microsoft.SkipLayerNormalization",)
    after = ("layer-norm",)
    anchors = ("LayerNormalization",)

    bias: bool = Field(default=True, description="Take the bias of a preceding MatMul into the op.")

    def pattern(self, op: Any, x: Any, skip: Any, bias: Any, gamma: Any, beta: Any) -> Any:
        biased = op.Add(op.Add(x, bias), skip, bind="sum")
        plain = op.Add(x, skip, bind="sum")
        total = op.any_of(biased, plain) if self.bias else plain
        return op.LayerNormalization(total, gamma, op.optional(beta)), total

    def check(
        self, match: Match, x: Value, skip: Value, gamma: Value, bias: Value | None = None, beta: Value | None = None
    ) -> None:
        if bias is not None:  # first, for then the plain sum is tried as well and has the better reason
            match.require(bias.is_constant and _is_matmul(x.producer), "not a MatMul with a constant bias", x)
        total = match.the_node("sum").outputs[0]
        for operand in (x, skip):
            match.require(not operand.is_constant, "an operand of the sum is a constant, not a residual", operand)
        match.require(total.rank in _RANKS, f"the sum has rank {total.rank}, and the op takes 2 or 3", total)
        axis = match.root.attribute("axis", -1)
        match.require(axis in (-1, (total.rank or 0) - 1), f"the normalised axes begin at {axis}, not at the last", match.root)
        match.require(match.root.attribute("stash_type", 1) == 1, "stash_type is not float", match.root)
        size = total.dim(-1)
        for name, value in (("gamma", gamma), ("beta", beta), ("bias", bias)):
            if value is not None:
                _check_vector(match, name, value, size)
        match.require(_operands(x, skip) is not None, f"the operands have the shapes {x.shape} and {skip.shape}", total)
        same = x.same_shape(skip) or match.target != "dml"
        match.require(same, "the operands' shapes differ, and the kernel of the target 'dml' takes only equal ones", total)

    def rewrite(
        self,
        op: Any,
        match: Match,
        x: Value,
        skip: Value,
        gamma: Value,
        bias: Value | None = None,
        beta: Value | None = None,
    ) -> Any:
        full, other = _operands(x, skip) or (x, skip)
        inputs = [full, other, gamma, beta, bias]
        while inputs[-1] is None:
            inputs.pop()
        epsilon = match.root.attribute("epsilon", _LAYER_NORMALIZATION_EPSILON)
        if not match.used_elsewhere("sum"):
            return op.SkipLayerNormalization(*inputs, domain=DOMAIN, epsilon=epsilon)
        output, _, _, total = op.SkipLayerNormalization(
            *inputs, domain=DOMAIN, epsilon=epsilon, outputs=(True, False, False, True)
        )
        return output, total


def _check_vector(match: Match, name: str, value: Value, size: Any) -> None:
    match.require(size is not None and value.shape == (size,), f"{name} has the shape {value.shape}, not ({size},)", value)


def _operands(x: Value, skip: Value) -> tuple[Value, Value] | None:
    """(input, skip) as the kernels take them: the same shape, or skip (1, S, H) or (S, H) beside an input of rank 3."""
    if x.same_shape(skip):
        return x, skip
    for full, other in ((x, skip), (skip, x)):
        if full.shape is None or other.shape is None or full.rank != 3 or other.rank not in _RANKS:
            continue
        known = None not in full.shape[1:]
        if known and other.shape[-2:] == full.shape[1:] and other.shape[:-2] in ((), (1,)):
            return full, other
    return None


def _is_matmul(node: NodeRef | None) -> bool:
    return node is not None and node.op == "MatMul" and not node.domain
