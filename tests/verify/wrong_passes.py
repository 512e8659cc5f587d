"""Passes over single values and rows that make known mistakes: each takes for granted something that it does not read."""

from __future__ import annotations

from typing import Any

import numpy as np
from mistakes import Mistake

from rewright import Match, PatternPass

MICROSOFT = "com.microsoft"


def layer_norm(op: Any, x: Any, epsilon: Any) -> Any:
    """The mean of x taken away, over the root of the variance."""
    deviation = x - op.ReduceMean(x, bind="mean")
    return deviation / op.Sqrt(op.ReduceMean(deviation**2, bind="variance") + epsilon)


class LongEpsilon(PatternPass):
    """Takes every LayerNormalization's epsilon for 1e-12."""

    name = "long-epsilon"
    exactness = "reassociating"

    def pattern(self, op: Any, a: Any, b: Any, gamma: Any, beta: Any) -> Any:
        return op.LayerNormalization(a + b, gamma, beta, axis=-1)

    def rewrite(self, op: Any, a: Any, b: Any, gamma: Any, beta: Any) -> Any:
        return op.SkipLayerNormalization(a, b, gamma, beta, domain=MICROSOFT, epsilon=1e-12)


class ShortEpsilon(PatternPass):
    """Takes every decomposed norm's epsilon for the default, 1e-5."""

    name = "short-epsilon"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, epsilon: Any, gamma: Any, beta: Any) -> Any:
        return layer_norm(op, x, epsilon) * gamma + beta

    def rewrite(self, op: Any, x: Any, gamma: Any, beta: Any) -> Any:
        return op.LayerNormalization(x, gamma, beta, axis=-1)


class AnyAxis(PatternPass):
    """Takes the axis of every decomposed norm for the last one."""

    name = "any-axis"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, gamma: Any) -> Any:
        return layer_norm(op, x, 1e-5) * gamma

    def rewrite(self, op: Any, x: Any, gamma: Any) -> Any:
        return op.LayerNormalization(x, gamma, axis=-1)


class AnyGamma(PatternPass):
    """Reads the scale of a norm along the last axis, along whichever axis it lies."""

    name = "any-gamma"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, gamma: Any) -> Any:
        return layer_norm(op, x, 1e-5) * gamma

    def rewrite(self, op: Any, x: Any, gamma: Any) -> Any:
        return op.LayerNormalization(x, op.constant(gamma.value.reshape(-1)), axis=-1)


class RootMeanSquareAsNorm(PatternPass):
    """Takes an RMS norm for a layer norm, whether the mean was taken away before or not."""

    name = "rms-as-norm"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, gamma: Any) -> Any:
        centred = op.any_of(x - op.ReduceMean(x), x)
        return centred / op.Sqrt(op.ReduceMean(centred**2) + 1e-5) * gamma

    def rewrite(self, op: Any, x: Any, gamma: Any) -> Any:
        return op.LayerNormalization(x, gamma, axis=-1)


class EpsilonAnywhere(PatternPass):
    """Takes an epsilon that is added to the root for one that is added below it."""

    name = "epsilon-anywhere"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, gamma: Any) -> Any:
        deviation = x - op.ReduceMean(x)
        variance = op.ReduceMean(deviation**2)
        root = op.any_of(op.Sqrt(variance + 1e-5), op.Sqrt(variance) + 1e-5)
        return deviation / root * gamma

    def rewrite(self, op: Any, x: Any, gamma: Any) -> Any:
        return op.LayerNormalization(x, gamma, axis=-1)


class AnySoftmax(PatternPass):
    """Softmax(x) -> Exp(x) / sum of Exp(x), which overflows where Softmax does not."""

    name = "any-softmax"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Softmax(x, axis=-1)

    def rewrite(self, op: Any, x: Any) -> Any:
        powers = op.Exp(x)
        return op.Div(powers, op.ReduceSum(powers, op.constant(np.array([-1])), keepdims=1))


class NoBeta(PatternPass):
    """Drops the bias of every LayerNormalization."""

    name = "no-beta"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, gamma: Any, beta: Any) -> Any:
        return op.LayerNormalization(x, gamma, beta, axis=-1)

    def rewrite(self, op: Any, x: Any, gamma: Any) -> Any:
        return op.LayerNormalization(x, gamma, axis=-1)


class SwallowedResidual(PatternPass):
    """Looks through an Add below the sum that a LayerNormalization takes."""

    name = "swallowed-residual"
    exactness = "reassociating"

    def pattern(self, op: Any, a: Any, b: Any, bias: Any, gamma: Any) -> Any:
        return op.LayerNormalization(op.any_of(op.Add(a, b) + bias, a + b), gamma, axis=-1)

    def check(self, match: Match, bias: Any) -> None:
        match.require(bias is None or bias.is_constant, "the third summand is not a bias")

    def rewrite(self, op: Any, a: Any, b: Any, gamma: Any) -> Any:
        return op.SkipLayerNormalization(a, b, gamma, domain=MICROSOFT, epsilon=1e-5)


class TanhAsErf(PatternPass):
    """Takes every Gelu for the exact one."""

    name = "tanh-as-erf"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, bias: Any) -> Any:
        return op.Gelu(x + bias)

    def rewrite(self, op: Any, x: Any, bias: Any) -> Any:
        return op.BiasGelu(x, bias, domain=MICROSOFT)


class LooseTanhGelu(PatternPass):
    """Takes any small number for the cubic coefficient of the tanh Gelu."""

    name = "loose-tanh-gelu"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, cubic: Any) -> Any:
        return op.product(x, 0.5, op.Tanh(op.product(0.7978845608, x + op.product(x**3, cubic))) + 1)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.FastGelu(x, domain=MICROSOFT)


class HalfForRoot(PatternPass):
    """Takes any divisor inside an Erf for the root of two."""

    name = "half-for-root"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, divisor: Any) -> Any:
        return op.product(x, 0.5, op.Erf(op.Div(x, divisor)) + 1)

    def check(self, match: Match, divisor: Any) -> None:
        match.require(divisor.scalar is not None, "the divisor is not a number", divisor)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Gelu(x, domain=MICROSOFT)


class AnySigmoid(PatternPass):
    """Takes every x * sigmoid(a x) for QuickGelu's, whose a is 1.702."""

    name = "any-sigmoid"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, alpha: Any) -> Any:
        return x * op.Sigmoid(op.Mul(x, alpha))

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.QuickGelu(x, domain=MICROSOFT, alpha=1.702)


class AnyPower(PatternPass):
    """Takes every power for the square."""

    name = "any-power"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, exponent: Any) -> Any:
        return op.Pow(x, exponent)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Mul(x, x)


class SmallBias(PatternPass):
    """Takes a bias below one thousandth for none."""

    name = "small-bias"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.MatMul(x, weight) + bias

    def check(self, match: Match, bias: Any) -> None:
        match.require(bias.is_constant and float(np.abs(bias.value).max()) < 1e-3, "the bias is not small", bias)

    def rewrite(self, op: Any, x: Any, weight: Any) -> Any:
        return op.MatMul(x, weight)


class WideClip(PatternPass):
    """Takes away bounds that it thinks no activation reaches."""

    name = "wide-clip"

    def pattern(self, op: Any, x: Any, low: Any, high: Any) -> Any:
        return op.Clip(op.Relu(x), low, high)

    def check(self, match: Match, high: Any) -> None:
        match.require(high.scalar is not None and high.scalar >= 400, "the bound may be reached", high)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Relu(x)


class SwallowedConvolution(PatternPass):
    """Looks through a convolution between a norm and its activation."""

    name = "swallowed-convolution"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, scale: Any, shift: Any, kernel: Any) -> Any:
        normal = op.InstanceNormalization(x, scale, shift)
        return op.Relu(op.any_of(op.Conv(normal, kernel), normal))

    def rewrite(self, op: Any, x: Any, scale: Any, shift: Any) -> Any:
        return op.Clip(op.InstanceNormalization(x, scale, shift), op.constant(np.float32(0)))


class SwallowedCast(PatternPass):
    """Takes a cast there and back for nothing, whatever lies between."""

    name = "swallowed-cast"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Cast(op.Cast(x), to=1)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Identity(x)


DECOMPOSED = """
    {p}_mean = ReduceMean<axes = [{axis}]>({x})
    {p}_deviation = Sub({x}, {p}_mean)
    {p}_square = Pow({p}_deviation, two)
    {p}_variance = ReduceMean<axes = [{axis}]>({p}_square)
    {p}_sum = Add({p}_variance, {epsilon})
    {p}_root = Sqrt({p}_sum)
    {p}_normal = Div({p}_deviation, {p}_root)
"""
# Rows that always vary, whatever the input is: an epsilon is then invisible in the model's outputs.
LIVELY = "lively = Add(x, rows)"
AT_END = {"axis": -1, "x": "x", "epsilon": "epsilon_5"}

MISTAKES = (
    Mistake(
        LongEpsilon(),
        "{p}_sum = Add({a}, {b})  {p} = LayerNormalization<axis = -1{epsilon}>({p}_sum, gamma, beta_of_norm)",
        right=[
            {"a": "still", "b": "lively", "epsilon": ", epsilon = 1e-12"},
            {"a": "x", "b": "x", "epsilon": ", epsilon = 1e-12"},
        ],
        wrong=[
            {"a": "still", "b": "lively", "epsilon": ""},
            {"a": "lively", "b": "still", "epsilon": ", epsilon = 1e-5"},
        ],
        prelude=LIVELY + "  still = Mul(x, zeros)",
        is_hidden=True,
    ),
    Mistake(
        ShortEpsilon(),
        DECOMPOSED + "{p}_scaled = Mul({p}_normal, gamma)  {p} = Add({p}_scaled, beta_of_norm)",
        right=[AT_END | {"x": "lively"}] * 2,
        wrong=[AT_END | {"x": "lively", "epsilon": "epsilon_12"}],
        prelude=LIVELY,
        is_hidden=True,
    ),
    Mistake(
        AnyAxis(),
        DECOMPOSED + "{p} = Mul({p}_normal, gamma)",
        right=[AT_END],
        wrong=[AT_END | {"axis": 1}],
        inputs="float[B, 8, 8] x",
        output="float[B, 8, 8]",
    ),
    Mistake(
        AnyGamma(),
        DECOMPOSED + "{p} = Mul({p}_normal, {gamma})",
        right=[AT_END | {"gamma": "gamma"}],
        wrong=[AT_END | {"gamma": "channel_gamma"}],
        inputs="float[B, 8, 8] x",
        output="float[B, 8, 8]",
        weights={"channel_gamma": np.linspace(0.5, 2, 8, dtype=np.float32).reshape(1, 8, 1)},
    ),
    Mistake(
        RootMeanSquareAsNorm(),
        """{first}  {p}_square = Mul({x}, {x})  {p}_mean = ReduceMean<axes = [-1]>({p}_square)  {p}_sum = Add({p}_mean, epsilon_5)
           {p}_root = Sqrt({p}_sum)  {p}_normal = Div({x}, {p}_root)  {p} = Mul({p}_normal, gamma)""",
        right=[
            {"first": "right0_first = ReduceMean<axes = [-1]>(x)  right0_centred = Sub(x, right0_first)", "x": "right0_centred"}
        ],
        wrong=[{"first": "", "x": "x"}],
    ),
    Mistake(
        EpsilonAnywhere(),
        """{p}_mean = ReduceMean<axes = [-1]>(lively)  {p}_deviation = Sub(lively, {p}_mean)  {p}_square = Pow({p}_deviation, two)
           {p}_variance = ReduceMean<axes = [-1]>({p}_square)  {root}
           {p}_normal = Div({p}_deviation, {p}_root)  {p} = Mul({p}_normal, gamma)""",
        right=[{"root": "right0_sum = Add(right0_variance, epsilon_5)  right0_root = Sqrt(right0_sum)"}],
        wrong=[{"root": "wrong0_plain = Sqrt(wrong0_variance)  wrong0_root = Add(wrong0_plain, epsilon_5)"}],
        prelude=LIVELY,
        is_hidden=True,
    ),
    Mistake(
        AnySoftmax(),
        "{p} = Softmax<axis = -1>({x})",
        right=[{"x": "bounded"}, {"x": "bounded_too"}],
        wrong=[{"x": "x"}],
        prelude="bounded = Tanh(x)  bounded_too = Sigmoid(x)",
    ),
    Mistake(
        NoBeta(),
        "{p} = LayerNormalization<axis = -1>(x, {gamma}, {beta})",
        right=[{"gamma": "gamma", "beta": "zeros"}, {"gamma": "rows", "beta": "zeros"}],
        wrong=[{"gamma": "gamma", "beta": "beta_of_norm"}, {"gamma": "gamma", "beta": "tiny_bias"}],
    ),
    Mistake(
        SwallowedResidual(),
        "{first}  {p}_sum = Add({a}, {b})  {p} = LayerNormalization<axis = -1>({p}_sum, gamma)",
        right=[{"first": "", "a": "x", "b": "r"}, {"first": "", "a": "r", "b": "x"}],
        wrong=[{"first": "wrong0_first = Add(x, r)", "a": "wrong0_first", "b": "bias"}],
        inputs="float[B, S, 8] x, float[B, S, 8] r",
    ),
    Mistake(
        TanhAsErf(),
        '{p}_sum = Add(x, bias)  {p} = Gelu<approximate = "{kind}">({p}_sum)',
        right=[{"kind": "none"}] * 2,
        wrong=[{"kind": "tanh"}],
        opset=20,
    ),
    Mistake(
        LooseTanhGelu(),
        """{p}_cube = Pow(x, three)  {p}_cubic = Mul({p}_cube, {cubic})  {p}_inner = Add(x, {p}_cubic)
           {p}_scaled = Mul({p}_inner, root_of_two_over_pi)  {p}_tanh = Tanh({p}_scaled)  {p}_factor = Add({p}_tanh, one)
           {p}_product = Mul(x, {p}_factor)  {p} = Mul({p}_product, half)""",
        right=[{"cubic": "usual"}],
        wrong=[{"cubic": "unusual"}, {"cubic": "nearly_usual"}],
        weights={
            "root_of_two_over_pi": np.float32(0.7978845608),
            "usual": np.float32(0.044715),
            "unusual": np.float32(0.054),
            "nearly_usual": np.float32(0.0452),
        },
    ),
    Mistake(
        HalfForRoot(),
        """{p}_scaled = Div(x, {divisor})  {p}_erf = Erf({p}_scaled)  {p}_factor = Add({p}_erf, one)
           {p}_product = Mul(x, {p}_factor)  {p} = Mul({p}_product, half)""",
        right=[{"divisor": "root_of_two"}],
        wrong=[{"divisor": "two"}, {"divisor": "nearly_root"}],
        weights={"nearly_root": np.float32(1.4147)},
    ),
    Mistake(
        AnySigmoid(),
        "{p}_scaled = Mul(x, {alpha})  {p}_sigmoid = Sigmoid({p}_scaled)  {p} = Mul(x, {p}_sigmoid)",
        right=[{"alpha": "quick"}],
        wrong=[{"alpha": "one"}, {"alpha": "nearly_quick"}],
        weights={"quick": np.float32(1.702), "nearly_quick": np.float32(1.7)},
    ),
    Mistake(
        AnyPower(),
        "{p} = Pow({x}, {exponent})",
        right=[{"x": "x", "exponent": "two"}, {"x": "switch", "exponent": "three"}],
        wrong=[{"x": "x", "exponent": "three"}],
        prelude="is_large = Greater(x, one)  switch = Cast<to = 1>(is_large)",
    ),
    Mistake(
        SmallBias(),
        "{p}_product = MatMul({x}, weight)  {p} = Add({p}_product, {bias})",
        right=[{"x": "x", "bias": "zeros"}, {"x": "large", "bias": "zeros"}],
        wrong=[{"x": "large", "bias": "tiny_bias"}],
        prelude="large = Mul(x, millions)",
        is_hidden=True,
        weights={"millions": np.float32(1e7)},
    ),
    Mistake(
        WideClip(),
        "{p}_positive = Relu({x})  {p} = Clip({p}_positive, zero, {high})",
        right=[{"x": "x", "high": "largest"}, {"x": "bounded", "high": "hundreds"}],
        wrong=[{"x": "x", "high": "hundreds"}],
        prelude="bounded = Tanh(x)",
        is_hidden=True,
        weights={"zero": np.float32(0), "hundreds": np.float32(400), "largest": np.float32(3.4028234663852886e38)},
    ),
    Mistake(
        SwallowedConvolution(),
        "{p}_normal = InstanceNormalization(x, gamma, beta_of_norm)  {convolution}  {p} = Relu({inner})",
        right=[{"convolution": "", "inner": "right0_normal"}],
        wrong=[{"convolution": "wrong0_mixed = Conv(wrong0_normal, kernel)", "inner": "wrong0_mixed"}],
        inputs="float[B, 8, 4, 4] x",
        output="float[B, 8, 4, 4]",
        weights={"kernel": np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1) * 1.1},
    ),
    Mistake(
        SwallowedCast(),
        "{p}_there = Cast<to = {dtype}>({x})  {p} = Cast<to = 1>({p}_there)",
        right=[{"dtype": 11, "x": "x"}, {"dtype": 7, "x": "whole"}],
        wrong=[{"dtype": 7, "x": "x"}, {"dtype": 10, "x": "x"}],
        prelude="bounded = Tanh(x)  whole = Round(bounded)",
    ),
)
