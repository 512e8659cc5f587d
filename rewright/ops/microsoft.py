"""Contracts of the com.microsoft ops that the passes emit.

Kernel tables: ``cpu`` is what the installed ONNX Runtime registers *and* its schema admits (a test compares the two; the
double kernel of SkipLayerNormalization can not be reached, because the schema has no double). ``cuda`` and ``dml`` follow
docs/OperatorKernels.md of ONNX Runtime. ``portable`` means any ONNX runtime, so none of these.
"""

from __future__ import annotations

from typing import Final

from onnx import FunctionProto, NodeProto, TensorProto

from rewright.ops.body import BodyBuilder
from rewright.ops.contract import Attribute, OpContract, register

DOMAIN: Final = "com.microsoft"
SKIP_LAYER_NORMALIZATION_EPSILON: Final = 1e-12
"""The schema's default. LayerNormalization's is 1e-5: who turns one into the other must write epsilon out."""

_SINGLE_AND_HALF: Final = ("float32", "float16")


def _skip_layer_normalization_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    body = BodyBuilder(node, SKIP_LAYER_NORMALIZATION.inputs, SKIP_LAYER_NORMALIZATION.outputs, opset, elem_type)
    epsilon = body.attribute("epsilon", SKIP_LAYER_NORMALIZATION_EPSILON)
    total = body("Add", body.widened("input"), body.widened("skip"))
    if "bias" in body.inputs:
        total = body("Add", total, body.widened("bias"))
    mean = body.mean_over_last_axis(total)
    deviation = body("Sub", total, mean)
    variance = body.mean_over_last_axis(body("Mul", deviation, deviation))
    spread = body("Sqrt", body("Add", variance, body.constant(epsilon)))
    output = body("Mul", body("Div", deviation, spread), body.widened("gamma"))
    if "beta" in body.inputs:
        output = body("Add", output, body.widened("beta"))
    return body.function(
        {
            "output": body.narrowed(output),
            "mean": body("Cast", mean, to=TensorProto.FLOAT),
            "inv_std_var": body("Cast", body("Reciprocal", spread), to=TensorProto.FLOAT),
            "input_skip_bias_sum": body.narrowed(total),
        }
    )


SKIP_LAYER_NORMALIZATION: Final = register(
    OpContract(
        domain=DOMAIN,
        op="SkipLayerNormalization",
        inputs=("input", "skip", "gamma", "beta?", "bias?"),
        outputs=("output", "mean?", "inv_std_var?", "input_skip_bias_sum?"),
        kernels={"cpu": ("float32", "float16", "bfloat16"), "cuda": _SINGLE_AND_HALF, "dml": _SINGLE_AND_HALF},
        body=_skip_layer_normalization_body,
        attributes={"epsilon": Attribute(default=SKIP_LAYER_NORMALIZATION_EPSILON)},
        source=(
            "ONNX Runtime contrib operator SkipLayerNormalization, version 1: input (B, S, H) or (T, H); skip of the same shape,"
            " or (1, S, H) or (S, H) beside an input of rank 3; gamma, beta and bias (H); normalises the last axis"
        ),
    )
)
