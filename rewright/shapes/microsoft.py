"""Dimensions of com.microsoft ops: those that rewright emits, and those that optimized models hold."""

from __future__ import annotations

from typing import Any, Final

from rewright.model.facts import attribute, dtype_of
from rewright.shapes import dimensions
from rewright.shapes.compute import first_same, matmul, normalized, same
from rewright.shapes.items import Item
from rewright.shapes.rule import Dims, Known, Rule


def _skip_normalized(known: Known, node: Any) -> list[Dims | None] | None:
    """Output and sum as the input; mean and deviation with 1 for the last axis."""
    dims = known.dims(node.inputs[0])
    if not dims:
        return None
    statistics: Dims = [*dims[:-1], 1]
    found: list[Dims | None] = [list(dims), statistics, statistics, list(dims)]
    return found[: len(node.outputs)]


def _embed_layer_norm(known: Known, node: Any) -> list[Dims | None] | None:
    """(B, S) ids and (V, H) words: (B, S, H), a mask index (B), and the sum (B, S, H)."""
    ids, words = known.dims(node.inputs[0]), known.dims(node.inputs[2])
    if ids is None or words is None or len(ids) != 2 or len(words) != 2:
        return None
    output: Dims = [*ids, words[1]]
    found: list[Dims | None] = [output, [ids[0]], output]
    return found[: len(node.outputs)]


def _attention(known: Known, node: Any) -> list[Dims | None] | None:
    """(B, S, D) and weights (D, 3 * hidden): (B, S, hidden of V)."""
    dims, weights = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    if dims is None or weights is None or len(dims) != 3 or len(weights) != 2:
        return None
    sizes = attribute(node, "qkv_hidden_sizes")
    hidden: Item = sizes[2] if isinstance(sizes, list) and len(sizes) == 3 else dimensions.divide(weights[1], 3)
    return [[dims[0], dims[1], hidden], *([None] * (len(node.outputs) - 1))]


def _multi_head_attention(known: Known, node: Any) -> list[Dims | None] | None:
    """Query (B, S, D); value (B, T, E) or (B, N, T, H), or packed with the query: (B, S, width of the values)."""
    query = known.dims(node.inputs[0])
    unknown: list[Dims | None] = [None] * (len(node.outputs) - 1)
    if query is None:
        return None
    key, value = (known.dims(node.inputs[index]) if _given(node, index) else None for index in (1, 2))
    width: Item = None
    if len(query) == 5:
        width = dimensions.product([query[2], query[4]])
    elif len(query) == 3 and value is not None and len(value) in (3, 4):
        width = value[2] if len(value) == 3 else dimensions.multiply(value[1], value[3])
    elif len(query) == 3 and key is not None and not _given(node, 2):
        width = query[2]
    else:
        return None
    return [[query[0], query[1], width], *unknown]


def _grouped_attention(known: Known, node: Any) -> list[Dims | None] | None:
    """Query (B, S, D), or packed (B, S, (N + 2 * G) * H)."""
    query, heads, groups = known.dims(node.inputs[0]), attribute(node, "num_heads"), attribute(node, "kv_num_heads")
    if query is None or len(query) != 3 or not isinstance(heads, int) or not isinstance(groups, int):
        return None
    width: Item = query[2]
    if not _given(node, 1):
        size = dimensions.divide(query[2], heads + 2 * groups)
        width = dimensions.multiply(size, heads) if size is not None else None
    return [[query[0], query[1], width], *([None] * (len(node.outputs) - 1))]


def _matmul_n_bits(known: Known, node: Any) -> list[Dims | None] | None:
    """A (..., K): (..., N)."""
    dims, columns = known.dims(node.inputs[0]), attribute(node, "N")
    return [[*dims[:-1], columns]] if dims and isinstance(columns, int) else None


def _gather_block_quantized(known: Known, node: Any) -> list[Dims | None] | None:
    """Rows of a table (V, bytes) of uint8, whose bytes hold 8 / bits elements each, or of another type (V, H): ids + (H,)."""
    table, ids = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    dtype = dtype_of(node.inputs[0])
    if table is None or ids is None or dtype is None or len(table) != 2 or not isinstance(table[1], int):
        return None
    if attribute(node, "gather_axis", 0) or attribute(node, "quantize_axis", 1) not in (1, -1):
        return None
    each = 8 // int(attribute(node, "bits", 4)) if dtype.name == "uint8" else 1
    return [[*ids, table[1] * each]]


def _given(node: Any, index: int) -> bool:
    return len(node.inputs) > index and bool(node.inputs[index].name)


MICROSOFT: Final[dict[str, Rule]] = {
    **dict.fromkeys(("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "RotaryEmbedding", "BiasSoftmax", "BiasDropout"), same),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_normalized),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), normalized),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), same),
    "GroupNorm": first_same,
    "MatMulNBits": _matmul_n_bits,
    "GatherBlockQuantized": _gather_block_quantized,
    **dict.fromkeys(("GemmFastGelu", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"), matmul),
    "EmbedLayerNormalization": _embed_layer_norm,
    **dict.fromkeys(("Attention", "QAttention"), _attention),
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_attention,
}
