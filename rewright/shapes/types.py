"""Element types of outputs: those that the op's schema ties to an input, and those that an attribute says."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewright.model.elements import normal_domain
from rewright.model.facts import attribute, constant_node_value, dtype_of

DType = np.dtype[Any]
Rule = Callable[[Any], DType | None]

_TYPED_BY: Final = {
    **dict.fromkeys(
        (
            "Attention", "BiasAdd", "BiasGelu", "BiasSplitGelu", "DecoderMaskedMultiHeadAttention", "FastGelu", "FusedConv",
            "FusedGemm", "FusedMatMul", "Gelu", "GemmFastGelu", "GroupNorm", "GroupQueryAttention", "MatMulBnb4", "MatMulNBits",
            "MultiHeadAttention", "NhwcConv", "PackedAttention", "PackedMultiHeadAttention", "QuickGelu", "RotaryEmbedding",
            "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "TransposeMatMul",
        ),
        0,
    ),
    **dict.fromkeys(("EmbedLayerNormalization", "GatherBlockQuantized"), 2),
    **dict.fromkeys(("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"), 0),
    "QAttention": 2,
}  # fmt: skip
"""com.microsoft ops whose first output has the type of an input, and which one; of all others nothing is known."""


def output_dtypes(node: Any, opset: int) -> list[DType | None]:
    """The element type of each output; None where it is not certain."""
    domain = normal_domain(node.domain)
    if domain == "com.microsoft":
        return _microsoft(node)
    if domain:
        return [None] * len(node.outputs)
    special: Rule | None = _SPECIAL.get(node.op)
    if special is not None:
        return [special(node)]
    found: list[DType | None] = []
    rules = _schema_rules(node.op, opset)
    for index in range(len(node.outputs)):
        rule = rules[min(index, len(rules) - 1)] if rules else None
        if isinstance(rule, tuple):
            typed = [dtype_of(node.inputs[place]) for place in rule if place < len(node.inputs) and node.inputs[place].name]
            found.append(next((dtype for dtype in typed if dtype is not None), None))
        else:
            found.append(rule)
    return found


@lru_cache(maxsize=1024)
def _schema_rules(op: str, opset: int) -> tuple[DType | tuple[int, ...] | None, ...]:
    """For each output its fixed type, or the inputs that have the same one."""
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return ()
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    rules: list[DType | tuple[int, ...] | None] = []
    for output in schema.outputs:
        same = tuple(index for index, held in enumerate(schema.inputs) if held.type_str == output.type_str)
        types = list(allowed.get(output.type_str, [output.type_str]))
        heterogeneous = output.option == onnx.defs.OpSchema.FormalParameterOption.Variadic and not output.is_homogeneous
        if heterogeneous:
            rules.append(None)
        elif same and output.type_str in allowed:
            rules.append(same)
        else:
            rules.append(_TENSOR_TYPES.get(str(types[0])) if len(types) == 1 else None)
    return tuple(rules)


_TENSOR_TYPES: Final[dict[str, DType]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(uint8)": np.dtype(np.uint8),
}


def _named(name: str, default: int | None) -> Rule:
    def rule(node: Any) -> DType | None:
        kind = attribute(node, name, default)
        if not isinstance(kind, int):
            return dtype_of(node.inputs[0]) if kind is None and default is None and node.inputs else None
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else None

    return rule


def _filled(node: Any) -> DType | None:
    value = attribute(node, "value")
    if value is None:
        return np.dtype(np.float32)
    found: DType | None = None if isinstance(value, gs.Node.AttributeRef) else np.dtype(value.dtype)
    return found


def _constant(node: Any) -> DType | None:
    held = attribute(node, "value")
    value = held if isinstance(held, (gs.Constant, np.ndarray)) else constant_node_value(node)
    found: DType | None = np.dtype(value.dtype) if value is not None else None
    return found if found is not None and found.kind != "O" else None


def _like_second(node: Any) -> DType | None:
    return dtype_of(node.inputs[1])


def _unknown(node: Any) -> DType | None:
    return None


_SPECIAL: Final[dict[str, Rule]] = {
    "Cast": _named("to", 0),
    "CastLike": _like_second,
    "EyeLike": _named("dtype", None),
    "RandomNormalLike": _named("dtype", None),
    "RandomUniformLike": _named("dtype", None),
    "Bernoulli": _named("dtype", None),
    "RandomNormal": _named("dtype", 1),
    "RandomUniform": _named("dtype", 1),
    "Multinomial": _named("dtype", 6),
    "ConstantOfShape": _filled,
    "Constant": _constant,
    "QuantizeLinear": _unknown,
    "DequantizeLinear": _unknown,
}


def _microsoft(node: Any) -> list[DType | None]:
    index = _TYPED_BY.get(node.op)
    first = dtype_of(node.inputs[index]) if index is not None and index < len(node.inputs) else None
    found: list[DType | None] = [first, *([None] * (len(node.outputs) - 1))]
    if node.op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization") and len(found) > 3:
        found[3] = first
    return found
