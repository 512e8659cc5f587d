"""The contract of com.microsoft.RotaryEmbedding.

What ONNX Runtime's CPU kernel does, measured (1.31 and 1.32; tests hold what the body says):

* input (B, S, N*H) or (B, N, S, H); any even head size; the output has the input's shape.
* Without ``rotary_embedding_dim`` the head size is twice the width of the caches, for either rank; ``num_heads`` is not needed.
  With it, ``num_heads`` is needed too, the caches are ``rotary_embedding_dim`` / 2 wide and the rest of a head is copied.
* ``position_ids`` int64: (B, S), or one number, scalar or (1), that the positions count up from. Refused at run time: (1, S) with
  a larger batch, (B, 1) and (S). Positions outside the caches are refused.
* The caches have at least S rows, also where the positions stay below.
* ``scale`` changes nothing.

Kernels of cuda and dml: ONNX Runtime, docs/OperatorKernels.md.
"""

from __future__ import annotations

from typing import Final

from onnx import FunctionProto, NodeProto

from rewright.ops.attention_body import AttentionBuilder
from rewright.ops.contract import Attribute, OpContract, register
from rewright.ops.microsoft import DOMAIN


def _rotary_embedding_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    body = AttentionBuilder(node, ROTARY_EMBEDDING.inputs, ROTARY_EMBEDDING.outputs, opset, elem_type)
    if body.attribute("scale", 1.0) != 1.0 or body.attribute("is_packed_batching", 0):
        return None
    queries = body.dim("input", -2)
    cos, sin = (body.angles(cache, "position_ids", queries) for cache in ("cos_cache", "sin_cache"))
    source = body.widened("input")
    if body.attribute("rotary_embedding_dim", 0):
        heads = body.by_head(source, body.ints(body.attribute("num_heads", 0)))
    else:
        size = body("Mul", body.dim("cos_cache", -1), body.ints(2))
        heads = body.by_head(source, body("Div", body.hidden(source), size), size)
    turned = body.rotated(heads, cos, sin, bool(body.attribute("interleaved", 0)))
    return body.function({"output": body.narrowed(body.reshaped(turned, body("Shape", "input")))})


ROTARY_EMBEDDING: Final = register(
    OpContract(
        domain=DOMAIN,
        op="RotaryEmbedding",
        inputs=("input", "position_ids", "cos_cache", "sin_cache"),
        outputs=("output",),
        kernels={"cpu": ("float32", "float16"), "cuda": ("float32", "float16", "bfloat16"), "dml": ("float32", "float16")},
        body=_rotary_embedding_body,
        attributes={
            "interleaved": Attribute(),
            "num_heads": Attribute(),
            "rotary_embedding_dim": Attribute(),
            "scale": Attribute(),
            "is_packed_batching": Attribute(),
        },
        source="ONNX Runtime contrib operator RotaryEmbedding, version 1; rotation of RoFormer (arXiv 2104.09864)",
    )
)
