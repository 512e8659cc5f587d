"""Contracts of com.microsoft's QuantizeLinear, DequantizeLinear and MatMulIntegerToFloat.

The first two are the standard ops for types that those have in later opsets only. What ONNX Runtime's CPU kernels do (1.32; tests
hold it): QuantizeLinear rounds halves to even and saturates; DequantizeLinear takes 4-bit numbers too.
"""

from __future__ import annotations

from typing import Final

from onnx import FunctionProto, NodeProto, TensorProto

from rewright.ops.body import BodyBuilder
from rewright.ops.contract import Attribute, Body, OpContract, register
from rewright.ops.microsoft import DOMAIN

_SIXTEEN_BITS_SINCE: Final = 21


def _same_op_body(contract: str) -> Body:
    def body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
        if opset < _SIXTEEN_BITS_SINCE:
            return None
        made = BodyBuilder(node, _INPUTS[contract], ("y",), opset, elem_type)
        return made.function({"y": made(contract, *made.inputs, axis=made.attribute("axis", 1))})

    return body


def _matmul_integer_to_float_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    body = BodyBuilder(node, MATMUL_INTEGER_TO_FLOAT.inputs, MATMUL_INTEGER_TO_FLOAT.outputs, opset, elem_type)
    given = [name for name in ("a_zero_point", "b_zero_point") if name in body.inputs]
    if given == ["b_zero_point"]:
        return None  # MatMulInteger has no place for it
    product = body("Cast", body("MatMulInteger", "A", "B", *given), to=TensorProto.FLOAT)
    result = body("Mul", product, body("Mul", "a_scale", "b_scale"))
    return body.function({"Y": body("Add", result, "bias") if "bias" in body.inputs else result})


_INPUTS: Final = {
    "QuantizeLinear": ("x", "y_scale", "y_zero_point?"),
    "DequantizeLinear": ("x", "x_scale", "x_zero_point?"),
}

QUANTIZE_LINEAR: Final = register(
    OpContract(
        domain=DOMAIN,
        op="QuantizeLinear",
        inputs=_INPUTS["QuantizeLinear"],
        outputs=("y",),
        kernels={"cpu": ("int8", "uint8", "int16", "uint16", "int4", "uint4")},
        body=_same_op_body("QuantizeLinear"),
        attributes={"axis": Attribute()},
        source="ONNX Runtime contrib operator QuantizeLinear, version 1: to int8, uint8, int16, uint16, int4, uint4",
        typed_by=2,
    )
)

DEQUANTIZE_LINEAR: Final = register(
    OpContract(
        domain=DOMAIN,
        op="DequantizeLinear",
        inputs=_INPUTS["DequantizeLinear"],
        outputs=("y",),
        kernels={"cpu": ("float32",)},
        body=_same_op_body("DequantizeLinear"),
        attributes={"axis": Attribute()},
        source="ONNX Runtime contrib operator DequantizeLinear, version 1: from int8, uint8, int16, uint16, int32, int4, uint4",
        typed_by=1,
    )
)

MATMUL_INTEGER_TO_FLOAT: Final = register(
    OpContract(
        domain=DOMAIN,
        op="MatMulIntegerToFloat",
        inputs=("A", "B", "a_scale", "b_scale", "a_zero_point?", "b_zero_point?", "bias?"),
        outputs=("Y",),
        kernels={"cpu": ("float32",), "dml": ("float32",)},
        body=_matmul_integer_to_float_body,
        source=(
            "ONNX Runtime contrib operator MatMulIntegerToFloat, version 1: Y = (A - a_zero) @ (B - b_zero) * a_scale * b_scale"
            " + bias; uint8 A with int8 or uint8 B, int8 A with int8 B; scale and zero point of B scalars or (N), bias (N)"
        ),
        typed_by=2,
    )
)
