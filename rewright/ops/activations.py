"""Contracts of the activations of com.microsoft: Gelu, BiasGelu, FastGelu, QuickGelu and GemmFastGelu.

Kernel tables: ``cpu`` is what the installed ONNX Runtime registers (a test compares the two), ``cuda`` and ``dml`` follow
docs/OperatorKernels.md of ONNX Runtime.
"""

from __future__ import annotations

import math
from typing import Final

from onnx import FunctionProto, NodeProto

from rewright.ops.body import BodyBuilder
from rewright.ops.contract import Attribute, OpContract, register
from rewright.ops.microsoft import DOMAIN

QUICK_GELU_ALPHA: Final = 1.702
"""The schema's default."""

_KERNELS: Final = {
    "cpu": ("float32",),
    "cuda": ("float32", "float16", "bfloat16", "float64"),
    "dml": ("float32", "float16"),
}


def _gelu(body: BodyBuilder, x: str) -> str:
    """0.5 * x * (1 + erf(x / sqrt(2)))"""
    scaled = body("Mul", x, body.constant(math.sqrt(0.5)))
    cdf = body("Mul", body("Add", body("Erf", scaled), body.constant(1.0)), body.constant(0.5))
    return body("Mul", x, cdf)


def _tanh_gelu(body: BodyBuilder, x: str) -> str:
    """0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))"""
    growth = body("Add", body("Mul", body("Mul", x, x), body.constant(0.044715)), body.constant(1.0))
    argument = body("Mul", body("Mul", x, body.constant(math.sqrt(2.0 / math.pi))), growth)
    cdf = body("Mul", body("Add", body("Tanh", argument), body.constant(1.0)), body.constant(0.5))
    return body("Mul", x, cdf)


def _biased(body: BodyBuilder, x: str, bias: str) -> str:
    """x + bias, or x where the node omits the bias."""
    return body("Add", x, body.widened(bias)) if bias in body.inputs else x


def _gelu_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    body = BodyBuilder(node, GELU.inputs, GELU.outputs, opset, elem_type)
    return body.function({"Y": body.narrowed(_gelu(body, body.widened("X")))})


def _bias_gelu_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    body = BodyBuilder(node, BIAS_GELU.inputs, BIAS_GELU.outputs, opset, elem_type)
    return body.function({"C": body.narrowed(_gelu(body, _biased(body, body.widened("A"), "B")))})


def _fast_gelu_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    body = BodyBuilder(node, FAST_GELU.inputs, FAST_GELU.outputs, opset, elem_type)
    return body.function({"Y": body.narrowed(_tanh_gelu(body, _biased(body, body.widened("X"), "bias")))})


def _gemm_fast_gelu_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    body = BodyBuilder(node, GEMM_FAST_GELU.inputs, GEMM_FAST_GELU.outputs, opset, elem_type)
    product = body("MatMul", body.widened("X"), body.widened("W"))
    return body.function({"Y": body.narrowed(_tanh_gelu(body, _biased(body, product, "bias")))})


def _quick_gelu_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    body = BodyBuilder(node, QUICK_GELU.inputs, QUICK_GELU.outputs, opset, elem_type)
    x = body.widened("X")
    scaled = body("Mul", x, body.constant(body.attribute("alpha", QUICK_GELU_ALPHA)))
    return body.function({"Y": body.narrowed(body("Mul", x, body("Sigmoid", scaled)))})


GELU: Final = register(
    OpContract(
        domain=DOMAIN,
        op="Gelu",
        inputs=("X",),
        outputs=("Y",),
        kernels=_KERNELS,
        body=_gelu_body,
        source="ONNX Runtime contrib operator Gelu, version 1",
    )
)

BIAS_GELU: Final = register(
    OpContract(
        domain=DOMAIN,
        op="BiasGelu",
        inputs=("A", "B"),
        outputs=("C",),
        kernels=_KERNELS,
        body=_bias_gelu_body,
        source="ONNX Runtime contrib operator BiasGelu, version 1: B has one dimension, the length of A's last",
    )
)

FAST_GELU: Final = register(
    OpContract(
        domain=DOMAIN,
        op="FastGelu",
        inputs=("X", "bias?"),
        outputs=("Y",),
        kernels=_KERNELS,
        body=_fast_gelu_body,
        source="ONNX Runtime contrib operator FastGelu, version 1: bias has one dimension, the length of X's last",
    )
)

QUICK_GELU: Final = register(
    OpContract(
        domain=DOMAIN,
        op="QuickGelu",
        inputs=("X",),
        outputs=("Y",),
        kernels=_KERNELS,
        body=_quick_gelu_body,
        attributes={"alpha": Attribute(default=QUICK_GELU_ALPHA)},
        source="ONNX Runtime contrib operator QuickGelu, version 1",
    )
)

GEMM_FAST_GELU: Final = register(
    OpContract(
        domain=DOMAIN,
        op="GemmFastGelu",
        inputs=("X", "W", "bias?"),
        outputs=("Y",),
        kernels={},  # its only kernel was that of ROCm, which ONNX Runtime no longer has
        body=_gemm_fast_gelu_body,
        source="ONNX Runtime contrib operator GemmFastGelu, version 1: FastGelu(X @ W + bias), W of rank 2, bias (columns of W)",
    )
)
