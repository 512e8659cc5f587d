"""The values that an attribute of a fused op may be given by mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from rewright.ops.attention import MASK_FILTER_VALUE
from rewright.ops.normalization import LAYER_NORMALIZATION_EPSILON, SKIP_LAYER_NORMALIZATION_EPSILON
from rewright.testing.mutants.spots import Spot

Values = Iterable[tuple[str, Any]]
"""(what is done, the new value); None takes the attribute away."""

_STANDARD_NORMS: Final = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


def wrong_values(spot: Spot) -> Iterable[tuple[str, str, Any]]:
    """(attribute, what is done, the new value) for every attribute that decides what the op computes; never the value it has."""
    for name in FUSED.get(spot.op, ()):
        given: list[Any] = []
        for what, value in _VALUES[name](spot, spot.attribute(name)):
            if value not in given:
                given.append(value)
                yield name, what, value


def _epsilon(spot: Spot, held: Any) -> Values:
    default = LAYER_NORMALIZATION_EPSILON if spot.op in _STANDARD_NORMS else SKIP_LAYER_NORMALIZATION_EPSILON
    value = default if held is None else held
    yield "x 10", value * 10
    if not math.isclose(value, default, rel_tol=1e-6):
        yield "left out", None
    other = 1e-5 if value < 1e-8 else 1e-12
    if held is None or other != default:
        yield "taken for another op's", other


def _scale(spot: Spot, held: Any) -> Values:
    size = _head_size(spot)
    usual = None if not size else 1 / math.sqrt(size)
    value = held or usual
    if value is None:
        return
    yield "x 1.1", value * 1.1
    if not math.isclose(value, 1.0, rel_tol=1e-6):
        yield "1", 1.0
    if usual is not None and not math.isclose(value, usual, rel_tol=1e-5):
        yield "left out", None
    elif size:
        yield "1 / size", 1 / size


def _head_count(spot: Spot, held: Any) -> Values:
    if held and held % 2 == 0:
        yield "halved", held // 2
    if held:
        yield "doubled", held * 2


def _flag(spot: Spot, held: Any) -> Values:
    yield "flipped", 0 if held else 1


def _causal(spot: Spot, held: Any) -> Values:
    """A bias may be causal itself, so that the flag on top of it would change nothing."""
    if held or not any(spot.index(name) for name in ("attention_bias", "attn_mask")):
        yield "flipped", 0 if held else 1


def _group_causal(spot: Spot, held: Any) -> Values:
    return _causal(spot, 1 if held is None else held)


def _filter_value(spot: Spot, held: Any) -> Values:
    if spot.index("mask_index") is None and spot.index("key_padding_mask") is None:
        return
    yield "-1", -1.0
    if held is not None and not math.isclose(held, MASK_FILTER_VALUE, rel_tol=1e-6):
        yield "left out", None


def _axis(spot: Spot, held: Any) -> Values:
    value = -1 if held is None else held
    yield "one too far left", value - 1
    if value < -1:
        yield "one too far right", value + 1


def _approximate(spot: Spot, held: Any) -> Values:
    yield ("tanh to none", "none") if held == b"tanh" else ("none to tanh", "tanh")


def _alpha(spot: Spot, held: Any) -> Values:
    value = 1.702 if held is None else held
    yield "x 1.1", value * 1.1
    if not math.isclose(value, 1.0, rel_tol=1e-6):
        yield "1", 1.0
    if not math.isclose(value, 1.702, rel_tol=1e-6):
        yield "left out", None


def _softcap(spot: Spot, held: Any) -> Values:
    if held:
        yield "x 1.1", held * 1.1
        yield "left out", None
    else:
        yield "5", 5.0


def _window(spot: Spot, held: Any) -> Values:
    if held is not None and held > 0:
        yield "one wider", held + 1
        yield "left out", None
        if held > 1:
            yield "one narrower", held - 1
    elif spot.attribute("causal", 1):
        yield "2", 2


def _rotated(spot: Spot, held: Any) -> Values:
    if held:
        yield "halved", held // 2
        yield "left out", None


def _head_size(spot: Spot) -> int | None:
    """Elements of a query's head, where the shapes tell."""
    heads = spot.attribute("num_heads") or spot.attribute("q_num_heads") or 0
    if spot.op == "com.microsoft::Attention":
        weights, sizes = spot.constant("weights"), spot.attribute("qkv_hidden_sizes")
        width = sizes[0] if sizes else weights.shape[1] // 3 if weights is not None else None
        return width // heads if width else None
    shape = spot.shape("query") or spot.shape("Q")
    width = shape[-1] if shape else None
    return width // heads if isinstance(width, int) and heads else None


_VALUES: Final[Mapping[str, Callable[[Spot, Any], Values]]] = {
    "epsilon": _epsilon,
    "scale": _scale,
    "num_heads": _head_count,
    "q_num_heads": _head_count,
    "kv_num_heads": _head_count,
    "unidirectional": _causal,
    "is_causal": _causal,
    "causal": _group_causal,
    "mask_filter_value": _filter_value,
    "axis": _axis,
    "approximate": _approximate,
    "alpha": _alpha,
    "softcap": _softcap,
    "local_window_size": _window,
    "interleaved": _flag,
    "rotary_embedding_dim": _rotated,
}

_NORM: Final = ("epsilon",)
_HEADS: Final = ("num_heads", "scale", "unidirectional", "mask_filter_value")
_ROTARY: Final = ("interleaved", "num_heads", "rotary_embedding_dim")
FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(_STANDARD_NORMS, ("epsilon", "axis")),
    "com.microsoft::SkipLayerNormalization": _NORM,
    "com.microsoft::SkipSimplifiedLayerNormalization": _NORM,
    "com.microsoft::EmbedLayerNormalization": _NORM,
    "Gelu": ("approximate",),
    "com.microsoft::Gelu": (),
    "com.microsoft::FastGelu": (),
    "com.microsoft::BiasGelu": (),
    "com.microsoft::QuickGelu": ("alpha",),
    "com.microsoft::GemmFastGelu": (),
    "com.microsoft::Attention": _HEADS,
    "com.microsoft::MultiHeadAttention": _HEADS,
    "com.microsoft::GroupQueryAttention": ("num_heads", "kv_num_heads", "scale", "causal", "softcap", "local_window_size"),
    "Attention": ("q_num_heads", "kv_num_heads", "scale", "is_causal", "softcap"),
    "com.microsoft::RotaryEmbedding": _ROTARY,
    "RotaryEmbedding": _ROTARY,
}
"""The ops that fusions emit, with the attributes that decide what they compute.

Left out are those whose other values have no kernel (``stash_type``), or change nothing (``scale`` of RotaryEmbedding).
"""
