"""A model for each fusion pass, written as exporters write it, so that ONNX Runtime's fusions know it where they know any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto

from rewright.testing.builder import GraphBuilder
from rewright.testing.handles import Value
from rewright.testing.mutants.models import (
    WIDTH,
    AttentionLayers,
    activations,
    gelu,
    hidden_states,
    layer_norm,
    linear,
    mean,
    norms,
    quick_gelu,
    rotary,
    tanh_gelu,
)

_HEADS: Final = 4
_SIZE: Final = WIDTH // _HEADS
_EPSILON: Final = 1e-5
_WIDE: Final = 8 * WIDTH


def _rms_norms(opset: int) -> ModelProto:
    """Two layers of a linear map of the normalised value, added to it, and a last normalisation."""

    def norm(x: Value) -> Any:
        return x / g.Sqrt(mean(g, g.Pow(x, 2.0)) + _EPSILON) * g.weight(WIDTH)

    g = GraphBuilder(opset)
    x = hidden_states(g)
    for _ in range(2):
        x = x + linear(g, norm(x))
    g.output(norm(x), "y")
    return g.model()


def _mask(g: GraphBuilder) -> Any:
    """0 or -10000 by key, from a mask of ones and zeros."""
    mask = g.input("attention_mask", "int64", ["batch", "sequence"])
    wide = g.Unsqueeze(g.Unsqueeze(mask, [1]), [2])
    return g.Sub(1.0, g.Cast(wide, to=TensorProto.FLOAT)) * -10000.0


def _attention(g: GraphBuilder, x: Value, mask: Value) -> Any:
    """Of x to itself, and the normalised sum of both."""

    def heads(perm: list[int]) -> Any:
        return g.Transpose(g.Reshape(linear(g, x), [0, 0, _HEADS, _SIZE]), perm=perm)

    query, key, value = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    weights = g.Softmax(query @ key / _SIZE**0.5 + mask, axis=-1)
    context = g.Reshape(g.Transpose(weights @ value, perm=[0, 2, 1, 3]), [0, 0, WIDTH])
    return layer_norm(g, linear(g, context) + x, _EPSILON)


def _encoder(opset: int) -> ModelProto:
    """Two layers of attention."""
    g = GraphBuilder(opset)
    mask, x = _mask(g), layer_norm(g, hidden_states(g), _EPSILON)
    for _ in range(2):
        x = _attention(g, x, mask)
    g.output(x, "y")
    return g.model()


def _embeddings(opset: int) -> ModelProto:
    """Embeddings of words, token types and positions, normalised, and a layer of attention over them."""
    g = GraphBuilder(opset)
    ids, types = (g.input(name, "int64", ["batch", "sequence"]) for name in ("input_ids", "token_type_ids"))
    words = g.Gather(g.weight(20, WIDTH), ids, axis=0) + g.Gather(g.weight(2, WIDTH), types, axis=0)
    length = g.Gather(g.Shape(ids), [1], axis=0)
    positions = g.Slice(g.constant(np.arange(24, dtype=np.int64)[None]), [0], length, [1], [1])
    total = words + g.Gather(g.weight(24, WIDTH), positions, axis=0)
    g.output(_attention(g, layer_norm(g, total, _EPSILON), _mask(g)), "y")
    return g.model()


def _activations(function: Callable[[GraphBuilder, Value], Value], opset: int) -> ModelProto:
    return activations(opset, function, biased=True)


def _norms(opset: int) -> ModelProto:
    return norms(opset, _EPSILON)


def _grouped(opset: int) -> ModelProto:
    return AttentionLayers(opset=opset, groups=2, size=8, mask="causal")()


_gelu: Final = partial(_activations, gelu)
_tanh_gelu: Final = partial(_activations, tanh_gelu)


def _products(opset: int) -> ModelProto:
    """A wide linear map, and one back."""
    g = GraphBuilder(opset)
    wide = linear(g, hidden_states(g), _WIDE)
    g.output(linear(g, wide, rows=_WIDE), "y")
    return g.model()


EXAMPLES: Final[Mapping[str, Callable[[int], ModelProto]]] = {
    "layer-norm": _norms,
    "skip-layer-norm": _norms,
    "bias-skip-layer-norm": _norms,
    "rms-norm": _rms_norms,
    "skip-rms-norm": _rms_norms,
    "embed-layer-norm": _embeddings,
    "rotary-embedding": partial(rotary, "halves", 8, False),
    "gelu": _gelu,
    "fast-gelu": _tanh_gelu,
    "quick-gelu": partial(_activations, quick_gelu(1.702)),
    "gelu-approximation": _gelu,
    "bias-gelu": _gelu,
    "gemm-fast-gelu": _tanh_gelu,
    "attention": _encoder,
    "multi-head-attention": _encoder,
    "group-query-attention": _grouped,
    "quantize-dynamic": _products,
    "quantize-weights": _products,
}
"""By pass: (opset) -> model."""
