"""Contracts of the normalisations: SkipLayerNormalization, SkipSimplifiedLayerNormalization and SimplifiedLayerNormalization.

Kernel tables: ``cpu`` is what the installed ONNX Runtime registers *and* the op's schema admits (a test compares the two; the
double kernels of the Skip ops can not be reached, because their schemas have no double). ``cuda`` and ``dml`` follow
docs/OperatorKernels.md of ONNX Runtime.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, TensorProto

from rewright.ops.body import BodyBuilder
from rewright.ops.contract import Attribute, OpContract, register
from rewright.ops.microsoft import DOMAIN

SKIP_LAYER_NORMALIZATION_EPSILON: Final = 1e-12
"""The default of both Skip ops' schemas. LayerNormalization's is 1e-5: who turns one into the other must write epsilon out."""

LAYER_NORMALIZATION_EPSILON: Final = 1e-5
"""The default of the schemas of LayerNormalization, RMSNormalization and SimplifiedLayerNormalization."""

_HALF_AND_SINGLE: Final = ("float32", "float16")
_ALL_SINGLE: Final = ("float32", "float16", "bfloat16")
_LAST_AXIS: Final = -1


def _skip_sum(body: BodyBuilder) -> str:
    """input + skip [+ bias]"""
    total = body("Add", body.widened("input"), body.widened("skip"))
    return body("Add", total, body.widened("bias")) if "bias" in body.inputs else total


def _root(body: BodyBuilder, variance: str, default: float) -> str:
    return body("Sqrt", body("Add", variance, body.constant(body.attribute("epsilon", default))))


def _skip_layer_normalization_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    body = BodyBuilder(node, SKIP_LAYER_NORMALIZATION.inputs, SKIP_LAYER_NORMALIZATION.outputs, opset, elem_type)
    total = _skip_sum(body)
    mean = body.mean_over_last_axis(total)
    deviation = body("Sub", total, mean)
    spread = _root(body, body.mean_over_last_axis(body("Mul", deviation, deviation)), SKIP_LAYER_NORMALIZATION_EPSILON)
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


def _skip_simplified_layer_normalization_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    contract = SKIP_SIMPLIFIED_LAYER_NORMALIZATION
    body = BodyBuilder(node, contract.inputs, contract.outputs, opset, elem_type)
    total = _skip_sum(body)
    mean = body.mean_over_last_axis(total)
    root = _root(body, body.mean_over_last_axis(body("Mul", total, total)), SKIP_LAYER_NORMALIZATION_EPSILON)
    return body.function(
        {
            "output": body.narrowed(body("Mul", body("Div", total, root), body.widened("gamma"))),
            "mean": body("Cast", mean, to=TensorProto.FLOAT),
            "inv_std_var": body("Cast", body("Reciprocal", root), to=TensorProto.FLOAT),
            "input_skip_bias_sum": body.narrowed(total),
        }
    )


def _simplified_layer_normalization_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto:
    """X / sqrt(mean(X^2) + epsilon) * scale; where several axes are normalised, over a view that has them as one."""
    contract = SIMPLIFIED_LAYER_NORMALIZATION
    body = BodyBuilder(node, contract.inputs, contract.outputs, opset, elem_type)
    axis = body.attribute("axis", _LAST_AXIS)
    x = body.widened("X")
    rows = x if axis == _LAST_AXIS else body("Flatten", x, axis=axis)
    root = _root(body, body.mean_over_last_axis(body("Mul", rows, rows)), LAYER_NORMALIZATION_EPSILON)
    normalised, inverse = body("Div", rows, root), body("Reciprocal", root)
    if axis != _LAST_AXIS:
        normalised = body("Reshape", normalised, body("Shape", x))
        inverse = body("Reshape", inverse, _reduced_shape(body, x, axis))
    return body.function(
        {
            "Y": body.narrowed(body("Mul", normalised, body.widened("scale"))),
            "inv_std_var": body("Cast", inverse, to=TensorProto.FLOAT),
        }
    )


def _reduced_shape(body: BodyBuilder, x: str, axis: int) -> str:
    """The shape of x with ones from ``axis`` on."""

    def index(value: int) -> str:
        return body("Constant", value=onnx.numpy_helper.from_array(np.asarray([value], np.int64)))

    shape = body("Shape", x)
    kept = body("Slice", shape, index(0), index(axis))
    reduced = body("Shape", body("Slice", shape, index(axis), index(np.iinfo(np.int64).max)))
    one = onnx.numpy_helper.from_array(np.asarray([1], np.int64))
    return body("Concat", kept, body("ConstantOfShape", reduced, value=one), axis=0)


SKIP_LAYER_NORMALIZATION: Final = register(
    OpContract(
        domain=DOMAIN,
        op="SkipLayerNormalization",
        inputs=("input", "skip", "gamma", "beta?", "bias?"),
        outputs=("output", "mean?", "inv_std_var?", "input_skip_bias_sum?"),
        kernels={"cpu": _ALL_SINGLE, "cuda": _HALF_AND_SINGLE, "dml": _HALF_AND_SINGLE},
        body=_skip_layer_normalization_body,
        attributes={"epsilon": Attribute(default=SKIP_LAYER_NORMALIZATION_EPSILON)},
        source=(
            "ONNX Runtime contrib operator SkipLayerNormalization, version 1: input (B, S, H) or (T, H); skip of the same shape,"
            " or (1, S, H) or (S, H) beside an input of rank 3; gamma, beta and bias (H); normalises the last axis"
        ),
    )
)

SKIP_SIMPLIFIED_LAYER_NORMALIZATION: Final = register(
    OpContract(
        domain=DOMAIN,
        op="SkipSimplifiedLayerNormalization",
        inputs=("input", "skip", "gamma", "bias?"),
        outputs=("output", "mean?", "inv_std_var?", "input_skip_bias_sum?"),
        kernels={"cpu": _ALL_SINGLE, "cuda": _HALF_AND_SINGLE, "dml": _HALF_AND_SINGLE},
        body=_skip_simplified_layer_normalization_body,
        attributes={"epsilon": Attribute(default=SKIP_LAYER_NORMALIZATION_EPSILON)},
        source=(
            "ONNX Runtime contrib operator SkipSimplifiedLayerNormalization, version 1: shapes as for SkipLayerNormalization,"
            " without beta and without subtracting the mean"
        ),
    )
)

SIMPLIFIED_LAYER_NORMALIZATION: Final = register(
    OpContract(
        domain="",  # ONNX Runtime's own op, although it stands in the standard domain; standard from 23 on is RMSNormalization
        op="SimplifiedLayerNormalization",
        inputs=("X", "scale"),
        outputs=("Y", "inv_std_var?"),
        kernels={"cpu": (*_ALL_SINGLE, "float64"), "cuda": (*_ALL_SINGLE, "float64"), "dml": _HALF_AND_SINGLE},
        body=_simplified_layer_normalization_body,
        attributes={
            "axis": Attribute(default=_LAST_AXIS),
            "epsilon": Attribute(default=LAYER_NORMALIZATION_EPSILON),
            "stash_type": Attribute(default=1),
        },
        source="ONNX Runtime operator SimplifiedLayerNormalization, version 1, of ai.onnx: scale has the shape of the last axes",
    )
)
