"""Contracts of com.microsoft's ops that multiply quantized weights by activations which are quantized at run time.

What ONNX Runtime's CPU kernels do (1.32; tests hold it): activations become uint8 with one scale and one zero point for the
whole tensor, as DynamicQuantizeLinear says; weights are int8 or uint8, a scale and a zero point for the tensor or for each
column; sums are of 32 bits; an omitted zero point is 0. On x86 without VNNI, uint8 times int8 is summed up in pairs of 16 bits,
which saturate.
"""

from __future__ import annotations

from typing import Final

from onnx import FunctionProto, NodeProto, TensorProto

from rewright.ops.attention import attended
from rewright.ops.attention_body import AttentionBuilder
from rewright.ops.body import BodyBuilder
from rewright.ops.contract import Attribute, OpContract, register
from rewright.ops.microsoft import DOMAIN

_DYNAMIC_QUANTIZE_LINEAR_SINCE: Final = 11


def _dynamic_quantize_matmul_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    if opset < _DYNAMIC_QUANTIZE_LINEAR_SINCE:
        return None
    body = BodyBuilder(node, DYNAMIC_QUANTIZE_MATMUL.inputs, DYNAMIC_QUANTIZE_MATMUL.outputs, opset, elem_type)
    levels, scale, zero = body.quantized("A")
    zeros = [zero, "b_zero_point"] if "b_zero_point" in body.inputs else [zero]
    product = body("Cast", body("MatMulInteger", levels, "B", *zeros), to=TensorProto.FLOAT)
    result = body("Mul", product, body("Mul", scale, "b_scale"))
    return body.function({"Y": body("Add", result, "bias") if "bias" in body.inputs else result})


def _q_attention_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    body = AttentionBuilder(node, Q_ATTENTION.inputs, Q_ATTENTION.outputs, opset, elem_type)
    if body.attribute("do_rotary", 0) or body.attribute("past_present_share_buffer", 0):
        return None
    given = [name for name in ("input_zero_point", "weight_zero_point") if body.given(name)]
    if given == ["weight_zero_point"]:
        return None  # MatMulInteger has no place for it
    product = body("Cast", body("MatMulInteger", "input", "weight", *given), to=TensorProto.FLOAT)
    scaled = body("Mul", product, body("Mul", "input_scale", "weight_scale"))
    return attended(body, body("Add", scaled, "bias"), "input", None)


def _no_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    """The recurrent state is quantized anew at each step, which takes a loop of its own to say."""
    return None


DYNAMIC_QUANTIZE_MATMUL: Final = register(
    OpContract(
        domain=DOMAIN,
        op="DynamicQuantizeMatMul",
        inputs=("A", "B", "b_scale", "b_zero_point?", "bias?"),
        outputs=("Y",),
        kernels={"cpu": ("float32",), "dml": ("float32",)},
        body=_dynamic_quantize_matmul_body,
        source=(
            "ONNX Runtime contrib operator DynamicQuantizeMatMul, version 1: Y = dequantized(quantized(A) @ B) + bias, B int8 or"
            " uint8 of any rank, scale and zero point scalars, (N), or (..., 1, N) for B (..., K, N); bias (N)"
        ),
    )
)

Q_ATTENTION: Final = register(
    OpContract(
        domain=DOMAIN,
        op="QAttention",
        inputs=(
            *("input", "weight", "bias", "input_scale", "weight_scale"),
            *("mask_index?", "input_zero_point?", "weight_zero_point?", "past?"),
        ),
        outputs=("output", "present?"),
        kernels={"cpu": ("float32",)},
        body=_q_attention_body,
        attributes={
            "num_heads": Attribute(required=True),
            "unidirectional": Attribute(default=0),
            "scale": Attribute(),
            "mask_filter_value": Attribute(),
            "do_rotary": Attribute(),
            "past_present_share_buffer": Attribute(),
        },
        source=(
            "ONNX Runtime contrib operator QAttention, version 1, and its CPU kernel: Attention on a uint8 input (B, S, D) and"
            " int8 or uint8 weights (D, 3 * N * H), scales and zero points as those of DynamicQuantizeMatMul, a bias that is not"
            " optional, no attention_bias, no qkv_hidden_sizes. CUDA wants an int8 input, which nothing quantizes at run time"
        ),
        typed_by=2,
    )
)

DYNAMIC_QUANTIZE_LSTM: Final = register(
    OpContract(
        domain=DOMAIN,
        op="DynamicQuantizeLSTM",
        inputs=(
            *("X", "W", "R", "B?", "sequence_lens?", "initial_h?", "initial_c?", "P?"),
            *("W_scale", "W_zero_point", "R_scale", "R_zero_point"),
        ),
        outputs=("Y?", "Y_h?", "Y_c?"),
        kernels={"cpu": ("float32",)},
        body=_no_body,
        attributes={
            "direction": Attribute(default=b"forward"),
            "hidden_size": Attribute(),
            "activations": Attribute(),
            "activation_alpha": Attribute(),
            "activation_beta": Attribute(),
            "clip": Attribute(),
            "input_forget": Attribute(default=0),
        },
        source=(
            "ONNX Runtime contrib operator DynamicQuantizeLSTM, version 1: LSTM with W (directions, I, 4 * H) and R"
            " (directions, H, 4 * H), transposed against LSTM's; scales and zero points (directions) or (directions, 4 * H)"
        ),
    )
)
