"""Small models that show what no one export does: each kind of mask, causal windows, soft caps, partial rotations, ...

Each has float inputs where a real model has token ids, so that an input can be of any scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto

from rewright.testing.builder import GraphBuilder
from rewright.testing.handles import Value

WIDTH: Final = 16
"""Features of each model here."""

_LOWEST: Final = float(np.finfo(np.float32).min)
_INFINITE: Final = -math.inf


@dataclass(frozen=True)
class Example:
    """A model, and the passes that it is for, each with the options that it takes to fire.

    Attributes:
        build: makes the model.
        passes: names of passes, with options.
    """

    build: Callable[[], ModelProto]
    passes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------------- pieces


def mean(g: GraphBuilder, x: Value) -> Any:
    """Over the last axis, which is kept."""
    return g.ReduceMean(x, [-1], keepdims=1) if g.opset >= 18 else g.ReduceMean(x, axes=[-1], keepdims=1)


def layer_norm(g: GraphBuilder, x: Value, epsilon: float, biased: bool = True) -> Any:
    """Decomposed, with a scale, and with a bias if asked for."""
    centred = x - mean(g, x)
    scaled = centred / g.Sqrt(mean(g, g.Pow(centred, 2.0)) + epsilon) * (g.weight(WIDTH) * 0.2 + 1.0)
    return scaled + g.weight(WIDTH) if biased else scaled


def rms_norm(g: GraphBuilder, x: Value, epsilon: float) -> Any:
    """Decomposed, with a scale."""
    return x / g.Sqrt(mean(g, x * x) + epsilon) * g.weight(WIDTH)


def linear(g: GraphBuilder, x: Value, columns: int = WIDTH, biased: bool = True, rows: int = WIDTH) -> Any:
    """x @ weight, and a bias if asked for."""
    product = x @ g.weight(rows, columns)
    return product + g.weight(columns) if biased else product


def gelu(g: GraphBuilder, x: Value) -> Any:
    """x * 0.5 * (1 + erf(x / sqrt(2)))"""
    return x * 0.5 * (g.Erf(x / math.sqrt(2.0)) + 1.0)


def tanh_gelu(g: GraphBuilder, x: Value) -> Any:
    """Its approximation by a tanh."""
    return x * 0.5 * (g.Tanh((x + g.Pow(x, 3.0) * 0.044715) * math.sqrt(2.0 / math.pi)) + 1.0)


def hidden_states(g: GraphBuilder, name: str = "x", length: str = "sequence") -> Any:
    """An input (batch, length, WIDTH) of floats."""
    return g.input(name, "float32", ["batch", length, WIDTH])


def _heads(g: GraphBuilder, x: Value, count: int, size: int) -> Any:
    return g.Transpose(g.Reshape(x, [0, 0, count, size]), perm=[0, 2, 1, 3])


def _merged(g: GraphBuilder, x: Value, width: int = WIDTH) -> Any:
    return g.Reshape(g.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, width])


def _repeated(g: GraphBuilder, x: Value, groups: int, times: int, size: int) -> Any:
    """(B, G, S, H) with each head ``times`` times in a row."""
    length = g.Gather(g.Shape(x), [2], axis=0)
    batch = g.Gather(g.Shape(x), [0], axis=0)
    shape = g.Concat(batch, [groups], [times], length, [size], axis=0)
    return g.Reshape(g.Expand(g.Unsqueeze(x, [2]), shape), g.Concat(batch, [groups * times], length, [size], axis=0))


def _positions(g: GraphBuilder, x: Value) -> Any:
    length = g.Squeeze(g.Gather(g.Shape(x), [1], axis=0), [0])
    return g.Range(0, length, 1)


def _allowed(g: GraphBuilder, x: Value, window: int | None = None) -> Any:
    """(S, S): keys up to the query, the last ``window`` of them."""
    positions = _positions(g, x)
    rows, columns = g.Unsqueeze(positions, [1]), g.Unsqueeze(positions, [0])
    seen = g.LessOrEqual(columns, rows)
    return seen if window is None else g.And(seen, g.Greater(columns, g.Sub(rows, window)))


def _key_mask(g: GraphBuilder, length: str = "sequence") -> Any:
    """(B, 1, 1, T) booleans."""
    mask = g.input("attention_mask", "int64", ["batch", length])
    return g.Cast(g.Unsqueeze(mask, [1, 2]), to=TensorProto.BOOL)


def _numbers(g: GraphBuilder, *numbers: float) -> list[Value]:
    return [g.constant(np.float32(number)) for number in numbers]


# --------------------------------------------------------------------------------------------------------- norms, activations


def norms(opset: int, epsilon: float) -> ModelProto:
    """Two layers of linear, residual and normalisation."""
    g = GraphBuilder(opset)
    x = hidden_states(g)
    for _ in range(2):
        x = layer_norm(g, linear(g, x) + x, epsilon)
    g.output(x, "y")
    return g.model()


def pre_norms(opset: int) -> ModelProto:
    """The sums go on beside their normalisations, which have no bias."""
    g = GraphBuilder(opset)
    x = hidden_states(g)
    for _ in range(2):
        x = x + linear(g, layer_norm(g, x, 1e-6, biased=False))
    g.output(layer_norm(g, x, 1e-6, biased=False), "y")
    return g.model()


def rms_norms(opset: int) -> ModelProto:
    """Two layers of a linear map of the normalised value, added to it, and a last normalisation."""
    g = GraphBuilder(opset)
    x = hidden_states(g)
    for _ in range(2):
        x = x + linear(g, rms_norm(g, x, 1e-6))
    g.output(rms_norm(g, x, 1e-6), "y")
    return g.model()


def residual(opset: int, norm: Callable[[GraphBuilder, Value], Value]) -> ModelProto:
    """The normalised sum of two inputs, which may be as small as any, and the sum itself."""
    g = GraphBuilder(opset)
    total = hidden_states(g) + hidden_states(g, "residual")
    g.output(norm(g, total), "y")
    g.output(total, "total")
    return g.model()


def activations(opset: int, function: Callable[[GraphBuilder, Value], Value], biased: bool) -> ModelProto:
    """Two linear maps, each with the activation after it."""
    g = GraphBuilder(opset)
    x = hidden_states(g)
    for _ in range(2):
        x = function(g, linear(g, x, biased=biased))
    g.output(x, "y")
    return g.model()


def quick_gelu(alpha: float) -> Callable[[GraphBuilder, Value], Value]:
    """x * sigmoid(alpha * x)"""
    return lambda g, x: x * g.Sigmoid(x * alpha if alpha != 1 else x)


# ------------------------------------------------------------------------------------------------------------------ attention


@dataclass(frozen=True)
class AttentionLayers:
    """softmax(scale * Q K^T + mask) V, once or twice.

    mask: "none", "added" (0 or -10000), "selected" (the lowest number where a key is masked), "infinite" (with a guard against
    rows of NaN), "bias" (an input of (batch, heads, queries, keys)), "causal", "window", "causal and keys".
    """

    opset: int = 17
    mask: str = "none"
    heads: int = 4
    groups: int | None = None
    size: int = 4
    scale: float | None = None
    biased: bool = True
    cross: bool = False
    softcap: float | None = None
    layers: int = 1

    def __call__(self) -> ModelProto:
        g = GraphBuilder(self.opset)
        x = hidden_states(g)
        memory = hidden_states(g, "memory", "keys") if self.cross else None
        mask = self._mask(g, x)
        for _ in range(self.layers):
            x = self._layer(g, x, memory or x, mask)
        g.output(x, "y")
        return g.model()

    def _mask(self, g: GraphBuilder, x: Value) -> Any:
        length = "keys" if self.cross else "sequence"
        if self.mask == "none":
            return None
        if self.mask == "bias":
            return g.input("position_bias", "float32", ["batch", self.heads, "sequence", length])
        if self.mask == "added":
            mask = g.input("attention_mask", "int64", ["batch", length])
            return g.Sub(1.0, g.Cast(g.Unsqueeze(mask, [1, 2]), to=TensorProto.FLOAT)) * -10000.0
        if self.mask in ("selected", "infinite"):
            return _key_mask(g, length)
        if self.mask == "causal and keys":
            both = g.And(_allowed(g, x), _key_mask(g))
            return g.Where(both, *_numbers(g, 0.0, _LOWEST))
        return g.Where(_allowed(g, x, 3 if self.mask == "window" else None), *_numbers(g, 0.0, _INFINITE))

    def _layer(self, g: GraphBuilder, x: Value, memory: Value, mask: Value | None) -> Any:
        groups, width = self.groups or self.heads, self.heads * self.size
        query = _heads(g, linear(g, x, width, self.biased), self.heads, self.size)
        key, value = (_heads(g, linear(g, memory, groups * self.size, self.biased), groups, self.size) for _ in range(2))
        if groups != self.heads:
            key, value = (_repeated(g, item, groups, self.heads // groups, self.size) for item in (key, value))
        scores = query @ g.Transpose(key, perm=[0, 1, 3, 2]) * (self.scale or 1 / math.sqrt(self.size))
        if self.softcap is not None:
            scores = g.Tanh(scores / self.softcap) * self.softcap
        context = self._probabilities(g, scores, mask) @ value
        return linear(g, _merged(g, context, width), rows=width)

    def _probabilities(self, g: GraphBuilder, scores: Value, mask: Value | None) -> Any:
        if mask is None:
            return g.Softmax(scores, axis=-1)
        if self.mask in ("selected", "infinite"):
            scores = g.Where(mask, scores, *_numbers(g, _LOWEST if self.mask == "selected" else _INFINITE))
        else:
            scores = scores + mask
        found = g.Softmax(scores, axis=-1)
        return g.Where(g.IsNaN(found), *_numbers(g, 0.0), found) if self.mask == "infinite" else found


# --------------------------------------------------------------------------------------------------------- rotary, embeddings


def rotary(pairs: str, rotated: int, per_batch: bool, opset: int = 17) -> ModelProto:
    """x (B, 2, S, 8) turned by angles that are computed from positions."""
    g = GraphBuilder(opset)
    x = g.input("x", "float32", ["batch", 2, "sequence", 8])
    if per_batch:
        positions: Value = g.Unsqueeze(g.input("position_ids", "int64", ["batch", "sequence"]), [2])
    else:
        length = g.Squeeze(g.Gather(g.Shape(x), [2], axis=0), [0])
        positions = g.Unsqueeze(g.Range(0, length, 1), [0, 2])
    half = rotated // 2
    angles = g.Cast(positions, to=TensorProto.FLOAT) * g.constant(np.linspace(1, 0.01, half)[None, None].astype(np.float32))
    end = 2**62
    turned = x if rotated == 8 else g.Slice(x, [0], [rotated], [3])
    if pairs == "halves":
        angles = g.Concat(angles, angles, axis=-1)
        first, second = g.Slice(turned, [0], [half], [3]), g.Slice(turned, [half], [end], [3])
        crossed = g.Concat(g.Neg(second), first, axis=-1)
    else:
        twice = g.Unsqueeze(angles, [3])
        angles = g.Reshape(g.Concat(twice, twice, axis=-1), [0, 0, rotated])
        first, second = g.Slice(turned, [0], [end], [3], [2]), g.Slice(turned, [1], [end], [3], [2])
        pair = g.Concat(g.Unsqueeze(g.Neg(second), [4]), g.Unsqueeze(first, [4]), axis=-1)
        crossed = g.Reshape(pair, [0, 0, 0, rotated])
    cos, sin = (g.Unsqueeze(item, [1]) for item in (g.Cos(angles), g.Sin(angles)))
    result = turned * cos + crossed * sin
    if rotated < 8:
        result = g.Concat(result, g.Slice(x, [rotated], [end], [3]), axis=-1)
    g.output(result, "y")
    return g.model()


def embeddings(types: bool, positions: str, opset: int = 17) -> ModelProto:
    """Embeddings of words, positions (from a Range, or given) and token types, normalised."""
    g = GraphBuilder(opset)
    ids = g.input("input_ids", "int64", ["batch", "sequence"])
    total = g.Gather(g.weight(20, WIDTH), ids, axis=0)
    if types:
        total = total + g.Gather(g.weight(2, WIDTH), g.input("token_type_ids", "int64", ["batch", "sequence"]), axis=0)
    where = (
        g.Unsqueeze(_positions(g, ids), [0])
        if positions == "counted"
        else g.input("position_ids", "int64", ["batch", "sequence"])
    )
    total = total + g.Gather(g.weight(24, WIDTH), where, axis=0)
    g.output(linear(g, layer_norm(g, total, 1e-5)), "y")
    return g.model()


def _untidy() -> Any:
    """What exporters leave: constants that are computed, nodes without effect or use, values and lengths computed twice."""
    g = GraphBuilder(17)
    x = hidden_states(g)
    weight = g.weight(WIDTH)
    scale = g.Sqrt(weight * weight)
    g.Exp(x)
    total = g.Identity(linear(g, x)) * scale
    first, second = g.Tanh(total), g.Tanh(total)
    batch, length = (g.Gather(g.Shape(value), [axis], axis=0) for axis, value in ((0, first), (1, second)))
    heads = g.Reshape(g.Transpose(first + second, perm=[0, 1, 2]), g.Concat(batch, length, [4], [4], axis=0))
    g.output(g.Relu(g.Cast(heads, to=TensorProto.FLOAT)) * (g.constant(2.0) * 1.5), "y")
    return g.model()


_ATTENTION: Final[Mapping[str, Mapping[str, Any]]] = {"attention": {}, "multi-head-attention": {}}
_MULTI_HEAD: Final[Mapping[str, Mapping[str, Any]]] = {"multi-head-attention": {}}
_GROUPED: Final[Mapping[str, Mapping[str, Any]]] = {"group-query-attention": {}}
_CAPPED: Final[Mapping[str, Mapping[str, Any]]] = {"group-query-attention": {"softcap": True}}
_NORMS: Final[Mapping[str, Mapping[str, Any]]] = {"layer-norm": {}, "skip-layer-norm": {}, "bias-skip-layer-norm": {}}
_RMS: Final[Mapping[str, Mapping[str, Any]]] = {"rms-norm": {}, "skip-rms-norm": {}}
_ROTARY: Final[Mapping[str, Mapping[str, Any]]] = {"rotary-embedding": {}}
_CLEANUP: Final[Mapping[str, Mapping[str, Any]]] = {
    "constant-folding": {},
    "identity-elimination": {},
    "shape-simplification": {},
    "common-subexpression": {},
    "dead-code": {},
}
_EMBEDDING: Final[Mapping[str, Mapping[str, Any]]] = {"embed-layer-norm": {}}
_GELU: Final[Mapping[str, Mapping[str, Any]]] = {"gelu": {}, "bias-gelu": {}, "gelu-approximation": {}}
_TANH: Final[Mapping[str, Mapping[str, Any]]] = {"fast-gelu": {}, "bias-gelu": {}, "gemm-fast-gelu": {}}

EXAMPLES: Final[Mapping[str, Example]] = {
    "norms": Example(lambda: norms(17, 1e-5), _NORMS),
    "norms-1e-12": Example(lambda: norms(17, 1e-12), _NORMS),
    "pre-norms": Example(lambda: pre_norms(18), _NORMS),
    "rms-norms": Example(lambda: rms_norms(18), _RMS),
    "rms-norms-23": Example(lambda: rms_norms(23), _RMS),
    "residual": Example(lambda: residual(17, lambda g, x: layer_norm(g, x, 1e-5)), {"skip-layer-norm": {}}),
    "residual-rms": Example(lambda: residual(18, lambda g, x: rms_norm(g, x, 1e-6)), {"skip-rms-norm": {}}),
    "residual-rms-23": Example(lambda: residual(23, lambda g, x: rms_norm(g, x, 1e-5)), {"skip-rms-norm": {}}),
    "gelu": Example(lambda: activations(17, gelu, biased=True), _GELU),
    "gelu-20": Example(lambda: activations(20, gelu, biased=False), {"gelu": {}, "gelu-approximation": {}}),
    "tanh-gelu": Example(lambda: activations(17, tanh_gelu, biased=True), _TANH),
    "tanh-gelu-20": Example(lambda: activations(20, tanh_gelu, biased=False), {"fast-gelu": {}, "gemm-fast-gelu": {}}),
    "quick-gelu": Example(lambda: activations(17, quick_gelu(1.702), biased=True), {"quick-gelu": {}}),
    "silu": Example(lambda: activations(17, quick_gelu(1.0), biased=True), {"quick-gelu": {}}),
    "attention": Example(AttentionLayers(layers=2), _ATTENTION),
    "attention-scale": Example(AttentionLayers(scale=0.37, biased=False), _ATTENTION),
    "attention-mask": Example(AttentionLayers(mask="added", layers=2), _ATTENTION),
    "attention-selected": Example(AttentionLayers(mask="selected"), _ATTENTION),
    "attention-infinite": Example(AttentionLayers(mask="infinite"), _ATTENTION),
    "attention-bias": Example(AttentionLayers(mask="bias"), _ATTENTION),
    "attention-causal": Example(AttentionLayers(mask="causal"), _ATTENTION),
    "attention-causal-keys": Example(AttentionLayers(mask="causal and keys"), _ATTENTION),
    "attention-23": Example(AttentionLayers(opset=23, layers=2), _MULTI_HEAD),
    "attention-23-causal": Example(AttentionLayers(opset=23, mask="causal"), _MULTI_HEAD),
    "attention-23-bias": Example(AttentionLayers(opset=23, mask="bias", groups=2), _MULTI_HEAD),
    "attention-23-softcap": Example(AttentionLayers(opset=23, softcap=5.0), {"multi-head-attention": {"softcap": True}}),
    "cross-attention": Example(AttentionLayers(mask="added", cross=True), _MULTI_HEAD),
    "grouped": Example(AttentionLayers(opset=18, groups=2, size=8), _GROUPED),
    "grouped-causal": Example(AttentionLayers(opset=18, groups=2, size=8, mask="causal"), _GROUPED),
    "grouped-window": Example(AttentionLayers(opset=18, groups=2, size=8, mask="window"), _GROUPED),
    "grouped-bias": Example(AttentionLayers(opset=18, groups=2, size=8, mask="causal and keys"), _GROUPED),
    "grouped-softcap": Example(AttentionLayers(opset=18, size=4, softcap=5.0), _CAPPED),
    "rotary": Example(lambda: rotary("halves", 8, per_batch=False), _ROTARY),
    "rotary-neighbours": Example(lambda: rotary("neighbours", 8, per_batch=False), _ROTARY),
    "rotary-partial": Example(lambda: rotary("halves", 4, per_batch=False), _ROTARY),
    "rotary-positions": Example(lambda: rotary("halves", 8, per_batch=True), _ROTARY),
    "untidy": Example(_untidy, _CLEANUP),
    "embeddings": Example(lambda: embeddings(types=True, positions="counted"), _EMBEDDING),
    "embeddings-positions": Example(lambda: embeddings(types=False, positions="given"), _EMBEDDING),
}
"""By name."""
