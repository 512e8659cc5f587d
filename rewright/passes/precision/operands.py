"""Which operands and results of a node can be of a narrower type, as the op's schema and its contract say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from rewright.model.elements import normal_domain
from rewright.model.facts import attribute, dtype_of
from rewright.model.order import node_has_bodies
from rewright.ops.contract import CONTRACTS
from rewright.ops.standard_kernels import runs_in_bfloat16
from rewright.ops.targets import unsupported

SINGLE: Final = np.dtype(np.float32)
_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
_FORMAL = onnx.defs.OpSchema.FormalParameterOption


class Role(Enum):
    """What becomes of a float32 operand or result where its node computes in the narrow type."""

    NARROW = "narrow"
    WIDE = "wide"
    EITHER = "either"


@dataclass(frozen=True)
class Roles:
    """The roles of a node's operands and results, None for those that are not float32.

    Attributes:
        inputs, outputs: by position.
        obstacle: why the node stays in float32; empty where it need not.
    """

    inputs: tuple[Role | None, ...]
    outputs: tuple[Role | None, ...]
    obstacle: str = ""

    @property
    def is_choice(self) -> bool:
        """Whether there is anything to decide: something would be narrow."""
        return Role.NARROW in self.inputs or Role.NARROW in self.outputs


STAYING: Final = frozenset((
    "If", "Loop", "Scan", "SequenceMap", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "Constant", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "EyeLike", "QuantizeLinear",
    "DequantizeLinear", "DynamicQuantizeLinear", "BitCast", "DFT", "STFT", "BlackmanWindow", "HammingWindow", "HannWindow",
    "MelWeightMatrix", "Range", "NonMaxSuppression", "RoiAlign", "MaxRoiPool", "Det", "TfIdfVectorizer",
))  # fmt: skip
"""Standard ops that these passes leave alone: they hold bodies or sequences, draw random numbers, or make indices or scales."""

_EITHER: Final = {("Cast", 0), ("CastLike", 0), ("Resize", 1), ("Dropout", 1)}
"""Operands whose type nothing else of the node depends on."""
_WIDE_RESULTS: Final = {
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (1, 2),
}
"""Statistics, which are float32 whatever the op computes in."""


def roles_of(node: Any, opset: int, narrow: np.dtype[Any], target: str) -> Roles:
    """The roles of a node's operands and results for the narrow type."""
    inputs, outputs = _singles(node.inputs), _singles(node.outputs)
    wide = Roles(_all(Role.WIDE, inputs), _all(Role.WIDE, outputs))
    if not any(inputs) and not any(outputs):
        return wide
    if any(tensor.name and dtype_of(tensor) is None for tensor in (*node.inputs, *node.outputs)):
        return _staying(wide, "types of its operands or results are not known")
    domain = normal_domain(node.domain)
    if f"{domain}::{node.op}" in CONTRACTS:
        is_judged = _is_judged(target, narrow)
        obstacle = unsupported(domain, node.op, narrow, target) if is_judged else _unknown(domain, node.op, narrow)
        if obstacle:
            return _staying(wide, obstacle)
        fixed = _WIDE_RESULTS.get(node.op, ())
        results = tuple(single and (Role.WIDE if index in fixed else Role.NARROW) for index, single in enumerate(outputs))
        return Roles(_all(Role.NARROW, inputs), tuple(role or None for role in results))
    if domain:
        return _staying(wide, f"nothing is known of {domain}.{node.op}")
    if node.op in STAYING or node_has_bodies(node):
        return wide
    if narrow == _BFLOAT16 and not runs_in_bfloat16(node.op, opset, target):
        return _staying(wide, f"the target '{target}' has no kernel for ai.onnx.{node.op} on bfloat16")
    return _by_schema(node, opset, narrow, inputs, outputs, wide)


def _by_schema(
    node: Any, opset: int, narrow: np.dtype[Any], inputs: tuple[bool, ...], outputs: tuple[bool, ...], wide: Roles
) -> Roles:
    schema = _schema(node.op, opset)
    if schema is None:
        return _staying(wide, f"nothing is known of {node.op} in opset {opset}")
    name = f"tensor({narrow.name})"
    fixed = _WIDE_RESULTS.get(node.op, ())
    makes_floats = any(outputs)

    def role(formal: tuple[str, bool], place: tuple[str, int], single: bool) -> Role | None:
        if not single:
            return None
        kind, is_shared = formal
        if place in _EITHER:
            return Role.EITHER
        if name not in schema.types.get(kind, ()):
            return Role.WIDE
        return Role.NARROW if is_shared or makes_floats else Role.EITHER

    read = tuple(role(schema.input(index), (node.op, index), single) for index, single in enumerate(inputs))
    made = tuple(
        Role.WIDE if single and index in fixed else role(schema.output(index), ("", index), single)
        for index, single in enumerate(outputs)
    )
    if node.op == "Cast":
        made = (Role.NARROW if attribute(node, "to", 0) == TensorProto.FLOAT else None,)
    if node.op in ("If", "Loop") or (Role.NARROW not in read and Role.NARROW not in made):
        is_either = all(item in (None, Role.EITHER) for item in (*read, *made))
        return Roles(read, made) if is_either else Roles(read, made, f"{node.op} has no {narrow.name} in opset {opset}")
    return Roles(read, made)


@dataclass(frozen=True)
class _Signature:
    inputs: tuple[tuple[str, bool], ...]
    outputs: tuple[tuple[str, bool], ...]
    types: dict[str, frozenset[str]]

    def input(self, index: int) -> tuple[str, bool]:
        """The type parameter of an operand, the last one's for further ones, and whether another operand has it too."""
        return self.inputs[min(index, len(self.inputs) - 1)]

    def output(self, index: int) -> tuple[str, bool]:
        """The same of a result."""
        return self.outputs[min(index, len(self.outputs) - 1)]


@lru_cache(maxsize=1024)
def _schema(op: str, opset: int) -> _Signature | None:
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
    kinds = [str(held.type_str) for held in schema.inputs]

    def formal(held: Any) -> tuple[str, bool]:
        kind = str(held.type_str)
        return kind, kinds.count(kind) > 1 or held.option == _FORMAL.Variadic

    types = {item.type_param_str: frozenset(map(str, item.allowed_type_strs)) for item in schema.type_constraints}
    return _Signature(tuple(map(formal, schema.inputs)), tuple(map(formal, schema.outputs)), types)


def ops_holding(name: str) -> tuple[str, ...]:
    """The ops that can compute in a type: standard ones whose newest schema admits it, and those with a contract."""
    kind = f"tensor({name})"
    standard = sorted(
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if not schema.domain
        and schema.name not in STAYING
        and any(kind in item.allowed_type_strs for item in schema.type_constraints)
    )
    return (*standard, *(key.removeprefix("::") for key in CONTRACTS if key.removeprefix("::") not in standard))


def _is_judged(target: str, narrow: np.dtype[Any]) -> bool:
    """Whether a missing kernel is an obstacle: for the CPU, ONNX Runtime puts casts around what it has for float32 only."""
    return target != "cpu" or narrow != np.dtype(np.float16)


def _unknown(domain: str, op: str, narrow: np.dtype[Any]) -> str | None:
    """Why an op with a contract cannot be of the type: no target has a kernel, as of ops whose schema does not admit it."""
    kernels = CONTRACTS[f"{domain}::{op}"].kernels.values()
    return None if any(narrow.name in held for held in kernels) else f"{domain or 'ai.onnx'}.{op} has no {narrow.name}"


def _singles(tensors: Any) -> tuple[bool, ...]:
    return tuple(bool(tensor.name) and is_single(tensor) for tensor in tensors)


def is_single(tensor: Any) -> bool:
    """Whether a value is a tensor of float32."""
    is_tensor = isinstance(tensor, gs.Constant) or getattr(tensor, "type", "tensor_type") == "tensor_type"
    return is_tensor and dtype_of(tensor) == SINGLE


def _all(role: Role, singles: tuple[bool, ...]) -> tuple[Role | None, ...]:
    return tuple(role if single else None for single in singles)


def _staying(roles: Roles, obstacle: str) -> Roles:
    return Roles(roles.inputs, roles.outputs, obstacle)
