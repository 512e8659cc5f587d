"""The contract of com.microsoft's EmbedLayerNormalization."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, TensorProto

from rewright.ops.body import BodyBuilder
from rewright.ops.contract import Attribute, OpContract, register

_DOMAIN: Final = "com.microsoft"
_AXES_INPUT_SINCE: Final = 13
EPSILON: Final = 1e-12
"""The schema's default. LayerNormalization's is 1e-5: who turns one into the other must write epsilon out."""


def _embed_layer_normalization_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    body = BodyBuilder(node, EMBED_LAYER_NORMALIZATION.inputs, EMBED_LAYER_NORMALIZATION.outputs, opset, elem_type)
    total = _embedding_sum(body)
    mean = body.mean_over_last_axis(total)
    deviation = body("Sub", total, mean)
    variance = body.mean_over_last_axis(body("Mul", deviation, deviation))
    spread = body("Sqrt", body("Add", variance, body.constant(body.attribute("epsilon", EPSILON))))
    scaled = body("Mul", body("Div", deviation, spread), body.widened("gamma"))
    return body.function(
        {
            "output": body.narrowed(body("Add", scaled, body.widened("beta"))),
            "mask_index": _mask_index(body),
            "embedding_sum": body.narrowed(total),
        }
    )


def _embedding_sum(body: BodyBuilder) -> str:
    """word_embedding[input_ids] + position_embedding[position_ids] + segment_embedding[segment_ids]"""
    word = body("Gather", "word_embedding", "input_ids")
    position_ids = "position_ids" if "position_ids" in body.inputs else _positions(body)
    position = body("Gather", "position_embedding", position_ids)
    total = body("Add", body.widened(word), body.widened(position))
    if "segment_embedding" not in body.inputs:
        return total
    # The kernels take row 0 for all where there is a table but no ids.
    segment_ids = "segment_ids" if "segment_ids" in body.inputs else body.constant(0, TensorProto.INT64)
    return body("Add", total, body.widened(body("Gather", "segment_embedding", segment_ids)))


def _positions(body: BodyBuilder) -> str:
    """0, 1, ... up to the sequence length."""
    zero, one = body.constant(0, TensorProto.INT64), body.constant(1, TensorProto.INT64)
    return body("Range", zero, body("Gather", body("Shape", "input_ids"), one), one)


def _mask_index(body: BodyBuilder) -> str:
    """For each row how many entries of the mask are 1; 0 without a mask."""
    if "mask" in body.inputs:
        counted = body("Cast", body("Equal", "mask", body.constant(1, TensorProto.INT32)), to=TensorProto.INT32)
    else:
        counted = body("Sub", "input_ids", "input_ids")
    if body.opset < _AXES_INPUT_SINCE:
        return body("ReduceSum", counted, axes=[1], keepdims=0)
    axes = body("Constant", value=onnx.numpy_helper.from_array(np.asarray([1], np.int64)))
    return body("ReduceSum", counted, axes, keepdims=0)


EMBED_LAYER_NORMALIZATION: Final = register(
    OpContract(
        domain=_DOMAIN,
        op="EmbedLayerNormalization",
        inputs=(
            "input_ids",
            "segment_ids?",
            "word_embedding",
            "position_embedding",
            "segment_embedding?",
            "gamma",
            "beta",
            "mask?",
            "position_ids?",
        ),
        outputs=("output", "mask_index?", "embedding_sum?"),
        kernels={"cpu": ("float32",), "cuda": ("float32", "float16"), "dml": ("float32", "float16")},
        body=_embed_layer_normalization_body,
        attributes={"epsilon": Attribute(default=EPSILON), "mask_index_type": Attribute()},
        source=(
            "ONNX Runtime contrib operator EmbedLayerNormalization, version 1, and its CPU kernel: all ids int32 of shape (B, S),"
            " position_ids also (1, S), one of rank 1 ends the process; ids below 0 or beyond the table are an error; the node"
            " must list at least two outputs, the second may be empty; the shape of word_embedding must be known when the"
            " model is loaded; mask_index counts the ones of the mask (CUDA: the index of the first zero)"
        ),
        typed_by=2,
    )
)
