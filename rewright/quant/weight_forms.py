"""New nodes over quantized matrices: ops of com.microsoft that read blocks, or DequantizeLinear before the op that there was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from rewright.model.elements import make_constant
from rewright.model.facts import constant_of, is_constant, shape_of
from rewright.model.names import scope_of
from rewright.ops.microsoft import DOMAIN
from rewright.passes.session import PassSession
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.attention_parts import BIAS, attend, given, sizes_of
from rewright.quant.blocks import Array, packed
from rewright.quant.matrices import QuantizedMatrix, dtype_of_codes
from rewright.quant.weight_sites import WeightSite, gemm_bias

_SPLIT_READS_SIZES_SINCE: Final = 13


@dataclass
class StoredMatrix:
    """The constants of one quantized matrix, each made when it is first read, and shared by all that read it.

    Attributes:
        session: for names.
        name: of the weight.
        matrix: the matrix.
        made: the constants by what they are.
        nbytes: of them together.
    """

    session: PassSession
    name: str
    matrix: QuantizedMatrix
    made: dict[str, Value] = field(default_factory=dict)
    nbytes: int = 0

    def constant(self, what: str, make: Callable[[], Array]) -> Value:
        """The constant that is ``what`` of the matrix; made where it is not there yet."""
        if what not in self.made:
            array = np.ascontiguousarray(make())
            self.nbytes += -(-array.size // 2) if "int4" in array.dtype.name else array.nbytes
            self.made[what] = Value(make_constant(self.session.names.fresh(f"{self.name}_{what}"), array))
        return self.made[what]

    @property
    def scales(self) -> Value:
        return self.constant("scales", lambda: self.matrix.scales)

    @property
    def zero_points(self) -> Value | None:
        """None where they are those that the kernels take without any."""
        return None if self.matrix.form.symmetric else self.constant("zero_points", self.matrix.packed_zero_points)

    @property
    def is_shareable(self) -> bool:
        """Whether rows of whole blocks are what a gather reads as well."""
        return self.matrix.width % self.matrix.form.block_size == 0


def operator_form(site: WeightSite, stored: StoredMatrix, accuracy_level: int, opset: int) -> list[Any]:
    """MatMulNBits, with what adds the bias or attends, or GatherBlockQuantized; the last node makes the result."""
    op = Builder(stored.session.names, scope_of(site.node), opset)
    if site.node.op == "Gather":
        _gather(op, site, stored)
    elif site.node.op == "Attention":
        _attention(op, site, stored, accuracy_level)
    else:
        _matmul(op, site, stored, accuracy_level)
    return op.nodes


def _matmul(op: Builder, site: WeightSite, stored: StoredMatrix, accuracy_level: int) -> None:
    bias = _bias(op, site, stored)
    is_vector = bias is not None and bias.is_constant and bias.shape == (site.shape[0],)
    result = _product(op, site, stored, accuracy_level, bias if is_vector else None, site.node.name)
    if bias is not None and not is_vector:
        op.Add(result, bias)


def _product(
    op: Builder, site: WeightSite, stored: StoredMatrix, accuracy_level: int, bias: Value | None, name: str | None
) -> Value:
    form, (count, width) = stored.matrix.form, site.shape
    return op.MatMulNBits(  # type: ignore[no-any-return]
        Value(site.node.inputs[0]),
        stored.constant("blocks", stored.matrix.blobs),
        stored.scales,
        stored.zero_points,
        None,
        bias,
        domain=DOMAIN,
        name=name or None,
        K=width,
        N=count,
        bits=form.bits,
        block_size=form.block_size,
        accuracy_level=accuracy_level,
    )


def _attention(op: Builder, site: WeightSite, stored: StoredMatrix, accuracy_level: int) -> None:
    node, count = site.node, site.shape[0]
    sizes = np.asarray(sizes_of(node, count), np.int64)
    packed_parts = _product(op, site, stored, accuracy_level, None, None)
    if op.opset < _SPLIT_READS_SIZES_SINCE:
        parts = op.Split(packed_parts, axis=-1, split=sizes.tolist(), outputs=len(sizes))
    else:
        parts = op.Split(packed_parts, op.constant(sizes, f"{stored.name}_sizes"), axis=-1, outputs=len(sizes))
    attend(op, node, list(parts), given(node, BIAS))


def _bias(op: Builder, site: WeightSite, stored: StoredMatrix) -> Value | None:
    """What a Gemm adds: a vector where it is a constant row, else as it broadcasts."""
    value, array = gemm_bias(site.node)
    count = site.shape[0]
    if value is not None and is_constant(value):
        shape = shape_of(value)
        if shape is not None and len(shape) > 1 and shape == (*[1] * (len(shape) - 1), count):
            array = np.asarray(constant_of(value))
    if array is None:
        return None if value is None else Value(value)
    is_row = array.size == count == array.shape[-1] if array.ndim else False
    return op.constant(array.reshape(-1) if is_row else array, f"{stored.name}_bias")


def _gather(op: Builder, site: WeightSite, stored: StoredMatrix) -> None:
    form = stored.matrix.form
    if "blocks" in stored.made and stored.is_shareable:
        shape = np.asarray([site.shape[0], site.shape[1] * form.bits // 8], np.int64)
        data = op.Reshape(stored.made["blocks"], op.constant(shape, f"{stored.name}_rows"))
    else:
        data = stored.constant("rows", lambda: packed(stored.matrix.rows(), form.bits))
    op.GatherBlockQuantized(
        data,
        Value(site.node.inputs[1]),
        stored.scales,
        stored.zero_points,
        domain=DOMAIN,
        name=site.node.name or None,
        bits=form.bits,
        block_size=form.block_size,
        gather_axis=0,
        quantize_axis=1,
    )


def qdq_form(site: WeightSite, stored: StoredMatrix, opset: int) -> list[Any]:
    """DequantizeLinear in the layout of the operand, and the node as it was behind it."""
    op = Builder(stored.session.names, scope_of(site.node), opset)
    matrix, kind, side = stored.matrix, dtype_of_codes(stored.matrix.form), "rows" if site.is_rows else "columns"

    def laid_out(array: Array) -> Array:
        return array if site.is_rows else array.T

    def codes() -> Array:
        found = matrix.rows()
        if matrix.form.symmetric:
            found = (found.astype(np.int16) - matrix.form.middle).astype(np.int8)
        return laid_out(found).astype(kind)

    points = None
    if not matrix.form.symmetric:
        points = stored.constant(f"{side}_zero_points", lambda: laid_out(matrix.zero_points).astype(kind))
    weight = op.DequantizeLinear(
        stored.constant(side, codes),
        stored.constant(f"{side}_scales", lambda: laid_out(matrix.scales)),
        points,
        axis=1 if site.is_rows else 0,
        block_size=matrix.form.block_size,
    )
    operands: list[Value | None] = [Value(tensor) if tensor.name else None for tensor in site.node.inputs]
    operands[site.operand] = weight
    kept: dict[str, Any] = {"domain": site.node.domain} if site.node.domain else {}
    if len(site.node.outputs) > 1:
        kept["outputs"] = tuple(bool(tensor.name) for tensor in site.node.outputs)
    getattr(op, site.node.op)(*operands, name=site.node.name or None, **kept, **site.node.attrs)
    return op.nodes
