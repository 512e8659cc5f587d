"""Contracts of com.microsoft's ops over weights in blocks of few bits: MatMulNBits and GatherBlockQuantized.

What ONNX Runtime's CPU kernels do, measured (1.32; tests hold it):

* A row of the weight, (N, K), is cut into blocks of ``block_size`` along K, the last one padded; a weight is
  (code - zero point) * scale. Codes of 4 bits lie two in a byte, the first in the low half. Without ``zero_points`` each is
  2^(bits - 1).
* MatMulNBits: B is uint8 (N, blocks, block_size * bits / 8), scales (N, blocks), ``bias`` (N), ``zero_points`` packed alike,
  uint8 (N, ceil(blocks * bits / 8)), or (N, blocks) in A's type. A has any rank from 1 on, any K and N.
* ``accuracy_level`` 4 rounds A to 8 bits in blocks of ``block_size``, which is several times as fast; 0 to 3 compute in float32.
  For 8 bits nothing but level 4 is fast: the others take tens of times as long as a float MatMul.
* GatherBlockQuantized on uint8 gathers along axis 0, and has its codes packed along the last: a row's length is even for 4 bits.

Kernels of cuda and dml: ONNX Runtime, docs/OperatorKernels.md.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, TensorProto

from rewright.ops.body import BodyBuilder
from rewright.ops.contract import Attribute, OpContract, register
from rewright.ops.microsoft import DOMAIN

_BITS: Final = (4, 8)
_BITS_OF_MATMUL: Final = 4
_BLOCK_OF_GATHER: Final = 128
_NIBBLE: Final = 16
_ALLOWZERO_SINCE: Final = 14


def _ints(body: BodyBuilder, *values: int) -> str:
    return body("Constant", value=onnx.numpy_helper.from_array(np.asarray(values, np.int64)))


def _int32(body: BodyBuilder, value: int) -> str:
    return body("Constant", value=onnx.numpy_helper.from_array(np.asarray(value, np.int32)))


def _codes(body: BodyBuilder, stored: str, bits: int, *shape: int) -> str:
    """The codes in uint8 bytes (R, bytes) as int32, reshaped; 0 in the shape keeps that dimension."""
    codes = body("Cast", stored, to=TensorProto.INT32)
    if bits == 4:
        halves = [body(op, codes, _int32(body, _NIBBLE)) for op in ("Mod", "Div")]
        codes = body("Concat", *(body("Reshape", half, _ints(body, 0, 0, 1)) for half in halves), axis=2)
        codes = body("Flatten", codes, axis=1)
    return body("Reshape", codes, _ints(body, *shape)) if shape else codes


def _first_columns(body: BodyBuilder, matrix: str, count: int) -> str:
    return body("Slice", matrix, _ints(body, 0), _ints(body, count), _ints(body, 1))


def _matmul_n_bits_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    body = BodyBuilder(node, MATMUL_N_BITS.inputs, MATMUL_N_BITS.outputs, opset, elem_type)
    bits, size = body.attribute("bits", _BITS_OF_MATMUL), body.attribute("block_size", 0)
    rows, width = body.attribute("N", 0), body.attribute("K", 0)
    if "g_idx" in body.inputs or body.attribute("weight_prepacked", 0) or bits not in _BITS or not (size and rows and width):
        return None
    count = -(-width // size)
    flat = body("Reshape", "B", _ints(body, rows, count * size * bits // 8))
    codes = _codes(body, flat, bits, rows, count, size)
    if "zero_points" in body.inputs:
        stored = body("Reshape", "zero_points", _ints(body, rows, -(-count * bits // 8)))
        points = body("Reshape", _first_columns(body, _codes(body, stored, bits), count), _ints(body, rows, count, 1))
    else:
        points = _int32(body, 1 << (bits - 1))
    offsets = body("Cast", body("Sub", codes, points), to=body.work_type)
    scales = body("Reshape", body.widened("scales"), _ints(body, rows, count, 1))
    weight = _first_columns(body, body("Reshape", body("Mul", offsets, scales), _ints(body, rows, count * size)), width)
    output = body("MatMul", body.widened("A"), body("Transpose", weight, perm=[1, 0]))
    if "bias" in body.inputs:
        output = body("Add", output, body.widened("bias"))
    return body.function({"Y": body.narrowed(output)})


def _gather_block_quantized_body(node: NodeProto, opset: int, elem_type: int) -> FunctionProto | None:
    body = BodyBuilder(node, GATHER_BLOCK_QUANTIZED.inputs, GATHER_BLOCK_QUANTIZED.outputs, opset, elem_type)
    bits, size = body.attribute("bits", 0), body.attribute("block_size", _BLOCK_OF_GATHER)
    if bits not in _BITS or not size or body.attribute("gather_axis", 0) or body.attribute("quantize_axis", 1) not in (1, -1):
        return None  # without ``bits`` the data may be of a 4-bit type, where each element is one code
    ids = body("Reshape", "indices", _ints(body, -1))
    codes = _codes(body, body("Gather", "data", ids, axis=0), bits)
    width = body("Gather", body("Shape", codes), _ints(body, 1))
    zero, one = (body("Constant", value=onnx.numpy_helper.from_array(np.asarray(value, np.int64))) for value in (0, 1))
    columns = body("Range", zero, body("Reshape", width, body("Constant", value=_no_dims())), one)
    block = body("Div", columns, _ints(body, size))
    scales = body("Gather", body("Gather", body.widened("scales"), ids, axis=0), block, axis=1)
    if "zero_points" in body.inputs:
        points = body("Gather", _codes(body, body("Gather", "zero_points", ids, axis=0), bits), block, axis=1)
    else:
        points = _int32(body, 1 << (bits - 1))
    values = body("Mul", body("Cast", body("Sub", codes, points), to=body.work_type), scales)
    shape = body("Concat", body("Shape", "indices"), width, axis=0)
    kept = {"allowzero": 1} if body.opset >= _ALLOWZERO_SINCE else {}  # or the 0 of empty ids would be read as "as it is"
    return body.function({"output": body.narrowed(body("Reshape", values, shape, **kept))})


def _no_dims() -> TensorProto:
    """The shape of a scalar."""
    return onnx.numpy_helper.from_array(np.zeros(0, np.int64))


MATMUL_N_BITS: Final = register(
    OpContract(
        domain=DOMAIN,
        op="MatMulNBits",
        inputs=("A", "B", "scales", "zero_points?", "g_idx?", "bias?"),
        outputs=("Y",),
        kernels={
            "cpu": ("float32", "float16"),
            "cuda": ("float32", "float16", "bfloat16"),
            "dml": ("float32", "float16"),
        },
        body=_matmul_n_bits_body,
        attributes={
            "K": Attribute(required=True),
            "N": Attribute(required=True),
            "bits": Attribute(default=_BITS_OF_MATMUL),
            "block_size": Attribute(required=True),
            "accuracy_level": Attribute(default=0),
            "weight_prepacked": Attribute(default=0),
        },
        source=(
            "ONNX Runtime contrib operator MatMulNBits, version 1: Y = A @ W^T + bias for W (N, K) in blocks; the body describes"
            " zero points that are packed, in uint8"
        ),
    )
)

GATHER_BLOCK_QUANTIZED: Final = register(
    OpContract(
        domain=DOMAIN,
        op="GatherBlockQuantized",
        inputs=("data", "indices", "scales", "zero_points?"),
        outputs=("output",),
        kernels={"cpu": ("float32", "float16"), "cuda": ("float32", "float16", "bfloat16")},
        body=_gather_block_quantized_body,
        attributes={
            "bits": Attribute(default=4),
            "block_size": Attribute(default=_BLOCK_OF_GATHER),
            "gather_axis": Attribute(default=0),
            "quantize_axis": Attribute(default=1),
        },
        source=(
            "ONNX Runtime contrib operator GatherBlockQuantized, version 1: rows of a table (V, H) in blocks; the body describes"
            " uint8 data, gathered along axis 0"
        ),
        typed_by=2,
    )
)
