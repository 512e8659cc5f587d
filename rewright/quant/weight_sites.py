"""Where a constant matrix is multiplied with, or rows of it are gathered: what a node does with it, or why it is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.model.elements import Constant
from rewright.model.facts import attribute, constant_of, dtype_of, is_constant, shape_of
from rewright.passes.coverage import Covered
from rewright.passes.session import label, op_key
from rewright.quant.attention_parts import obstacle_to_parts, sizes_of, unknown
from rewright.quant.blocks import Array
from rewright.quant.selection import Candidate
from rewright.quant.weights import Weight, weight_of

_FLOATS: Final = ("float16", "float32")
_SWAPS: Final = ([1, 0], None)
_ATTENTION: Final = "no kernel reads its projections in blocks, and {}: run quantize-weights before attention"
_LEFT: Final = "the constant is its left operand, and blocks run along the rows of the right one"


@dataclass(frozen=True)
class WeightSite:
    """A node that reads a weight matrix.

    Attributes:
        candidate: the node and its graph.
        weight: the constant behind the operand.
        operand: which input of the node it is.
        is_rows: whether the operand has the shape (N, K), a row for each output channel, as for Gather and Gemm with transB; else
            it is (K, N).
        shape: (N, K).
        dtype: of the operand.
    """

    candidate: Candidate
    weight: Weight
    operand: int
    is_rows: bool
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    @property
    def node(self) -> Any:
        return self.candidate.node

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal where the rows (N, K) are the same: E that is gathered from, and its transpose that is multiplied with."""
        turned = not self.is_rows
        for step in self.weight.steps:
            perm = attribute(step, "perm")
            if step.op == "Identity" or (step.op == "Transpose" and perm == [0, 1]):
                continue
            if step.op != "Transpose" or perm not in _SWAPS:
                return (*self.weight.key, self.is_rows)
            turned = not turned
        return id(self.weight.source), turned

    def matrix(self) -> Array:
        """The rows (N, K): a view of the constant where no step converts it."""
        values = self.weight.values()
        values = values.reshape(values.shape[-2:])
        return values if self.is_rows else values.T

    @property
    def nbytes(self) -> int:
        """Of the constant as it is stored now."""
        held = getattr(self.weight.source, "_values", None)
        if held is not None:
            return int(held.nbytes)
        return int(self.shape[0] * self.shape[1] * self.dtype.itemsize)


def missed(node: Any, reason: str) -> Covered:
    """What is said of a node that stays as it is."""
    return Covered(label(node), op_key(node), "missed", reason=reason)


def find_site(candidate: Candidate, *, any_form: bool) -> WeightSite | str | None:
    """What the node reads; or why there is nothing for it; or None where it is none of the kind: a Gather of other than rows of a
    matrix of floats.

    Args:
        candidate: a MatMul, Gemm, Gather, or com.microsoft.Attention.
        any_form: whether the node stays as it is, so that a Gemm may transpose its input and scale, and Attention have a past.
    """
    node = candidate.node
    if node.op == "Gather":
        return _gathered(candidate)
    if node.op == "Attention":
        return _projections(candidate, any_form=any_form)
    weight = weight_of(node.inputs[1])
    if weight is None:
        return _LEFT if weight_of(node.inputs[0]) is not None else "no operand is a constant: it multiplies activations"
    found = _shape_of(weight)
    if found is None:
        return "the constant cannot be read"
    shape, dtype = found
    if dtype.name not in _FLOATS:
        return f"the weight is {dtype.name}"
    if not all(shape):
        return "the weight is empty"
    if node.op == "Gemm":
        reason = None if any_form else _gemm_reason(node)
        is_rows = bool(attribute(node, "transB", 0))
    else:
        reason, is_rows = _matmul_reason(node, shape), False
    if reason:
        return reason
    rows, columns = shape[-2:]
    return WeightSite(candidate, weight, 1, is_rows, (rows, columns) if is_rows else (columns, rows), dtype)


def _projections(candidate: Candidate, *, any_form: bool) -> WeightSite | str | None:
    """The packed weights of com.microsoft.Attention (D, N*H + N*H + N*Hv), which become a product before MultiHeadAttention."""
    node = candidate.node
    weight = weight_of(node.inputs[1])
    found = _shape_of(weight) if weight is not None else None
    if weight is None or found is None:
        return None
    shape, dtype = found
    if dtype.name not in _FLOATS:
        return f"the weight is {dtype.name}"
    if len(shape) != 2 or not all(shape):
        return "the weights are no matrix"
    obstacle = "" if any_form else unknown(node) or obstacle_to_parts(node)
    if not obstacle and sizes_of(node, shape[1]) is None:
        obstacle = f"their width, {shape[1]}, is not three times that of the heads"
    if obstacle:
        return _ATTENTION.format(obstacle)
    return WeightSite(candidate, weight, 1, False, (shape[1], shape[0]), dtype)


def _gathered(candidate: Candidate) -> WeightSite | str | None:
    node = candidate.node
    dtype = dtype_of(node.inputs[0])
    if dtype is None or dtype.kind not in "fV":
        return None  # lookups of shapes and ids
    weight = weight_of(node.inputs[0])
    found = _shape_of(weight) if weight is not None else None
    if weight is None or found is None or len(found[0]) != 2:
        return None
    (count, width), kind = found
    if kind.name not in _FLOATS:
        return f"the table is {kind.name}"
    if attribute(node, "axis", 0) not in (0, -2):
        return "it gathers columns, and the kernel gathers rows"
    if not count or not width:
        return "the table is empty"
    return WeightSite(candidate, weight, 0, True, (count, width), kind)


def _shape_of(weight: Weight) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    if not weight.steps and isinstance(weight.source, Constant):
        shape = shape_of(weight.source)
        dtype = dtype_of(weight.source)
        if shape is not None and dtype is not None:
            return tuple(int(dim) for dim in shape if isinstance(dim, int)), dtype
    try:
        values = weight.values()
    except (TypeError, ValueError):
        return None
    return values.shape, values.dtype


def _matmul_reason(node: Any, shape: tuple[int, ...]) -> str:
    if len(shape) < 2:
        return "the weight is a vector"
    if any(dim != 1 for dim in shape[:-2]):
        return f"the weight has the shape {shape}: a matrix for each element of a batch"
    if len(shape) > 2:
        rank = shape_of(node.inputs[0])
        if rank is None or len(rank) < len(shape):
            return f"the weight has the shape {shape}, and the other operand is not proven to have as many dimensions"
    return ""


def _gemm_reason(node: Any) -> str:
    if attribute(node, "alpha", 1.0) != 1:
        return f"alpha is {attribute(node, 'alpha', 1.0):g}"
    if attribute(node, "transA", 0):
        return "transA is set"
    if _has_bias(node) and attribute(node, "beta", 1.0) not in (0, 1) and not is_constant(node.inputs[2]):
        return f"beta is {attribute(node, 'beta', 1.0):g}, and C is not constant"
    return ""


def _has_bias(node: Any) -> bool:
    return len(node.inputs) > 2 and bool(node.inputs[2].name)


def gemm_bias(node: Any) -> tuple[Any | None, Array | None]:
    """What a Gemm adds: a value as it is, or an array that is C times beta; neither where there is nothing."""
    beta = attribute(node, "beta", 1.0)
    if node.op != "Gemm" or not _has_bias(node) or beta == 0:
        return None, None
    if beta == 1:
        return node.inputs[2], None
    array = np.asarray(constant_of(node.inputs[2]))
    return None, array * array.dtype.type(beta)
