"""Contracts of com.microsoft's attention ops.

What ONNX Runtime's CPU kernels do, measured (1.31 and 1.32; tests hold it):

* ``attention_bias`` is (B or 1, N or 1, S, T), rank 4; S and T do not broadcast. It is added to the scaled scores. A row that is
  masked as a whole gives what Softmax gives: NaN with -inf, uniform with the lowest finite value.
* A mask is int32, positive where a key is kept; elsewhere ``mask_filter_value`` (-10000) is added to the score. It adds up with
  ``attention_bias``. A 2-D mask is (B, T): B does not broadcast.
* ``unidirectional`` puts the lowest finite value where t > past + s, but leaves the last query of a call unmasked. This is causal
  attention where T = past + S, and for other lengths nothing that an exporter means.
* ``scale`` 0 or absent means 1 / sqrt(H).
* Attention without ``bias`` ends the process in 1.31: always give one. It needs the Q and K sizes equal; V's may differ.
* MultiHeadAttention takes key and value as (B, T, D), V's head size free, or both (B, N, T, H), V's head size that of K; then
  ``bias`` is applied to the query alone. Packed forms and do_rotary have no CPU kernel. With a past, the present outputs must be
  asked for: without them the result is wrong.
* GroupQueryAttention needs int32 ``seqlens_k`` (B) = T - 1 and ``total_sequence_length`` = T, T = S without a past, and H a
  multiple of 8, of 16 with do_rotary. ``causal`` is 1 by default; with it, ``attention_bias`` masks within the causal part only:
  a row that the bias masks wholly is uniform over the keys up to its own. ``softcap`` comes before the bias. With do_rotary
  *all* sequences count their positions up from the first element of ``position_ids`` (0 without): other positions are for
  RotaryEmbedding; the caches have at least T rows, and a width that is a multiple of 8 and at most H / 2. A batch of 0 ends the
  process.

The standard Attention (opset 23) aligns query 0 with key 0 when it is causal, takes masks of rank 2 to 4 in which S and T do not
broadcast, refuses an empty batch, and gives *zeros* for a row that -inf or the lowest value masks wholly: a rewrite between it
and the others is equal only where no row is.

ONNX Runtime runs the float16 form of an op without float16 kernel between Casts; the tables list kernels.
Kernels of cuda and dml: ONNX Runtime, docs/OperatorKernels.md.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import FunctionProto, NodeProto

from rewright.ops.attention_body import AttentionBuilder
from rewright.ops.contract import Attribute, OpContract, register
from rewright.ops.microsoft import DOMAIN

MASK_FILTER_VALUE: Final = -10000.0
"""What a masked score gets where the node has no ``mask_filter_value``."""

_LOWEST: Final = float(np.finfo(np.float32).min)
_ALL: Final = ("float32", "float16", "bfloat16")


def _attention_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    body = AttentionBuilder(node, ATTENTION.inputs, ATTENTION.outputs, opset, elem_type)
    if body.attribute("do_rotary", 0) or body.attribute("past_present_share_buffer", 0):
        return None
    projected = body("MatMul", body.widened("input"), body.widened("weights"))
    if body.given("bias"):
        projected = body("Add", projected, body.widened("bias"))
    return attended(body, projected, "input", body.attribute("qkv_hidden_sizes", None))


def attended(body: AttentionBuilder, projected: str, operand: str, sizes: list[int] | None) -> FunctionProto:
    """What follows the projection, (B, S, N*H + N*H + N*Hv): heads, past, mask, attention; B and S are those of ``operand``."""
    heads = body.attribute("num_heads", 0)
    parts = body.split(projected, sizes)
    query, key, value = (body.heads_first(part, heads) for part in parts)
    if body.given("past"):
        earlier = (body("Gather", body.widened("past"), body.scalar(part), axis=0) for part in (0, 1))
        key, value = (body("Concat", old, new, axis=2) for old, new in zip(earlier, (key, value), strict=True))
    bias = _score_bias(body, query, key, "mask_index", starts=True)
    result = body.attend(query, key, value, body.attribute("scale", 0.0), bias)
    output = body.merged(result, operand, body.dim(parts[2], -1))
    present = body("Concat", *(body.with_axis(part, 0) for part in (key, value)), axis=0)
    return body.function({"output": body.narrowed(output), "present": body.narrowed(present)})


def _multi_head_attention_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    body = AttentionBuilder(node, MULTI_HEAD_ATTENTION.inputs, MULTI_HEAD_ATTENTION.outputs, opset, elem_type)
    if "qk" in body.outputs or not (body.given("key") and body.given("value")):
        return None  # packed operands; their ranks tell them apart, and no CPU kernel runs them
    heads = body.attribute("num_heads", 0)
    query, key, value = (body.heads_first(body.widened(name), heads) for name in ("query", "key", "value"))
    if body.given("bias"):
        query, key, value = _with_projection_bias(body, query, key, value, heads)
    for name in ("past_key", "past_value"):
        if body.given(name):
            new = key if name == "past_key" else value
            joined = body("Concat", body.widened(name), new, axis=2)
            key, value = (joined, value) if name == "past_key" else (key, joined)
    bias = _score_bias(body, query, key, "key_padding_mask", starts=False)
    attended = body.attend(query, key, value, body.attribute("scale", 0.0), bias)
    output = body.merged(attended, "query", body.hidden("value"))
    results = {"output": output, "present_key": key, "present_value": value}
    return body.function({name: body.narrowed(result) for name, result in results.items()})


def _with_projection_bias(body: AttentionBuilder, query: str, key: str, value: str, heads: int) -> list[str]:
    """Q, K and V with their parts of the bias; K and V without where they come as (B, N, T, H), as the kernels have it."""
    width = body.dim("query", -1)
    stops = [body.ints(0), width, body("Mul", width, body.ints(2)), body.ints(2**31 - 1)]
    separate = body("Equal", body("Size", body("Shape", "key")), body.scalar(4))
    vector = body.widened("bias")
    results = []
    for part, operand in enumerate((query, key, value)):
        piece = body("Reshape", body.cut(vector, stops[part], stops[part + 1]), body.ints(heads, 1, -1))
        if part:
            piece = body("Where", separate, body.constant(0.0), piece)
        results.append(body("Add", operand, piece))
    return results


def _score_bias(body: AttentionBuilder, query: str, key: str, mask: str, starts: bool) -> str | None:
    """What is added to the scaled scores: attention_bias, the mask's filter value and the causal mask."""
    total, queries = body.dim(key, 2), body.dim(query, 2)
    added = None
    if body.given(mask):
        filtered = body.constant(body.attribute("mask_filter_value", MASK_FILTER_VALUE))
        kept = body.lengths_or_mask(mask, body.dim(query, 0), total, starts)
        added = body("Where", kept, body.constant(0.0), filtered)
    if body.attribute("unidirectional", 0):
        seen = body.causal(queries, total, body("Sub", total, body.dim(_new_keys(body, query), -2)))
        added = body("Where", seen, body.constant(0.0) if added is None else added, body.constant(_LOWEST))
    if body.given("attention_bias"):
        bias = body.widened("attention_bias")
        added = bias if added is None else body("Add", bias, added)
    return added


def _new_keys(body: AttentionBuilder, query: str) -> str:
    """A value with as many positions as there are keys without the past."""
    return "key" if body.given("key") else query


def _group_query_attention_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    body = AttentionBuilder(node, GROUP_QUERY_ATTENTION.inputs, GROUP_QUERY_ATTENTION.outputs, opset, elem_type)
    beyond = ("past_key", "past_value", "head_sink", "k_scale", "v_scale", "q_norm_weight", "k_norm_weight")
    options = ("sliding_window_cache", "kv_cache_bit_width", "qk_output")
    if (
        any(map(body.given, beyond))
        or any(body.attribute(name, 0) for name in options)
        or body.attribute("smooth_softmax", -1) > 0
    ):
        return None
    heads, groups = body.attribute("num_heads", 0), body.attribute("kv_num_heads", 0)
    parts = [body.widened(name) for name in ("query", "key", "value") if body.given(name)]
    if len(parts) == 1:
        size = body("Div", body.dim(parts[0], -1), body.ints(heads + 2 * groups))
        stops = [body("Mul", size, body.ints(number)) for number in (0, heads, heads + groups, heads + 2 * groups)]
        parts = [body.cut(parts[0], stops[number], stops[number + 1], -1) for number in range(3)]
    queries = body.dim("query", 1)
    query, key, value = (body.heads_first(part, count) for part, count in zip(parts, (heads, groups, groups), strict=True))
    if body.attribute("do_rotary", 0):
        first = body.scalar(0)
        if body.given("position_ids"):
            first = body("Gather", body("Reshape", "position_ids", body.ints(-1)), first)
        angles = [body.angles(cache, first, queries) for cache in ("cos_cache", "sin_cache")]
        interleaved = bool(body.attribute("rotary_interleaved", 0))
        query, key = (_rotated(body, part, angles, interleaved) for part in (query, key))
    bias = _group_bias(body, key, queries)
    of_query = body.ints(*(head * groups // heads for head in range(heads)))
    keys, values = (body("Gather", part, of_query, axis=1) for part in (key, value))
    attended = body.attend(query, keys, values, body.attribute("scale", 0.0), bias, body.attribute("softcap", 0.0))
    output = body.merged(attended, "query", body.dim(parts[0], -1))
    results = {"output": output, "present_key": key, "present_value": value}
    return body.function({name: body.narrowed(result) for name, result in results.items()})


def _rotated(body: AttentionBuilder, operand: str, angles: list[str], interleaved: bool) -> str:
    cos, sin = angles
    turned = body.rotated(body.with_axis(operand, 3), cos, sin, interleaved)
    return body("Reshape", turned, body("Shape", operand))


def _group_bias(body: AttentionBuilder, key: str, queries: str) -> str:
    """Keys beyond a sequence's length, after the query or before its window get the lowest value; attention_bias is added."""
    total = body.dim(key, 2)
    position = body.range(total)
    lengths = body("Add", body("Cast", "seqlens_k", to=7), body.scalar(1))
    seen = body("Less", position, body("Reshape", lengths, body.ints(-1, 1, 1, 1)))
    row = body("Reshape", body.range(queries), body.ints(-1, 1))
    if body.attribute("causal", 1):
        seen = body("And", seen, body("Not", body("Less", row, position)))
    window = body.attribute("local_window_size", -1)
    if window > 0:
        seen = body("And", seen, body("Less", body("Sub", row, body.scalar(window)), position))
    if not body.given("attention_bias"):
        return body("Where", seen, body.constant(0.0), body.constant(_LOWEST))
    return body("Where", seen, body.widened("attention_bias"), body.constant(float("-inf")))


ATTENTION: Final = register(
    OpContract(
        domain=DOMAIN,
        op="Attention",
        inputs=("input", "weights", "bias?", "mask_index?", "past?", "attention_bias?", "past_sequence_length?"),
        outputs=("output", "present?"),
        kernels={"cpu": ("float32",), "cuda": _ALL, "dml": ("float32", "float16")},
        body=_attention_body,
        attributes={
            "num_heads": Attribute(required=True),
            "unidirectional": Attribute(default=0),
            "scale": Attribute(),
            "qkv_hidden_sizes": Attribute(),
            "mask_filter_value": Attribute(),
            "do_rotary": Attribute(),
            "rotary_embedding_dim": Attribute(),
            "past_present_share_buffer": Attribute(),
        },
        source=(
            "ONNX Runtime contrib operator Attention, version 1: input (B, S, D), weights (D, N*H + N*H + N*Hv), bias of that"
            " length; output (B, S, N*Hv); self-attention"
        ),
    )
)

MULTI_HEAD_ATTENTION: Final = register(
    OpContract(
        domain=DOMAIN,
        op="MultiHeadAttention",
        inputs=(
            *("query", "key?", "value?", "bias?", "key_padding_mask?", "attention_bias?"),
            *("past_key?", "past_value?", "past_sequence_length?", "cache_indirection?"),
        ),
        outputs=("output", "present_key?", "present_value?", "qk?"),
        kernels={"cpu": ("float32",), "cuda": _ALL, "dml": ("float32", "float16")},
        body=_multi_head_attention_body,
        attributes={
            "num_heads": Attribute(required=True),
            "scale": Attribute(),
            "unidirectional": Attribute(default=0),
            "mask_filter_value": Attribute(),
        },
        source=(
            "ONNX Runtime contrib operator MultiHeadAttention, version 1: query (B, S, N*H), key (B, T, N*H) or (B, N, T, H),"
            " value (B, T, N*Hv) or (B, N, T, H), bias (N*H + N*H + N*Hv); output (B, S, N*Hv)"
        ),
    )
)

GROUP_QUERY_ATTENTION: Final = register(
    OpContract(
        domain=DOMAIN,
        op="GroupQueryAttention",
        inputs=(
            *("query", "key?", "value?", "past_key?", "past_value?", "seqlens_k", "total_sequence_length"),
            *("cos_cache?", "sin_cache?", "position_ids?", "attention_bias?", "head_sink?"),
            *("k_scale?", "v_scale?", "q_norm_weight?", "k_norm_weight?"),
        ),
        outputs=("output", "present_key?", "present_value?", "output_qk?"),
        kernels={"cpu": ("float32", "float16"), "cuda": ("float16", "bfloat16"), "dml": ("float32", "float16")},
        body=_group_query_attention_body,
        attributes={
            "num_heads": Attribute(required=True),
            "kv_num_heads": Attribute(required=True),
            "scale": Attribute(),
            "softcap": Attribute(),
            "local_window_size": Attribute(default=-1),
            "causal": Attribute(default=1),
            "do_rotary": Attribute(),
            "rotary_interleaved": Attribute(),
            "smooth_softmax": Attribute(default=-1),
            "qk_output": Attribute(default=0),
            "qk_norm_epsilon": Attribute(default=1e-6),
            "sliding_window_cache": Attribute(default=0),
            "kv_cache_bit_width": Attribute(),
            "k_quant_type": Attribute(default=b"NONE"),
            "v_quant_type": Attribute(default=b"NONE"),
        },
        source=(
            "ONNX Runtime contrib operator GroupQueryAttention, version 1: query (B, S, N*H), key and value (B, T, G*H);"
            " query head n uses key head n // (N / G); output (B, S, N*H)"
        ),
    )
)
