"""What each graph input means, read off the graph: token ids, masks, positions, caches, images, plain numbers.

An input is followed through the ops that only move its elements about, into bodies and functions, until something
interprets it: the index of a Gather has to stay below the table's height, the condition of a Where is a mask. Names
decide only where the graph says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.verify.convolutions import first_convolution, sides_of_image
from rewright.verify.uses import Use, Uses, Value, attribute_of

Kind = Literal[
    "index", "position", "mask", "additive-mask", "flag", "past", "image", "waveform", "float", "integer", "shape", "text"
]
Dim = int | str | None


@dataclass(frozen=True)
class InputRole:
    """One graph input and what it means.

    Attributes:
        name: the input's name.
        dtype: its element type; `object` for strings.
        dims: a number where the size is fixed, a symbol or an expression of symbols where it is named, else None.
        kind: what its values mean.
        low: the smallest value that an index may have.
        bound: values of an index stay below; None when the table's size is not known.
        reshapes: whether a `shape` input is the target of a Reshape.
        sides: of a square image, the lengths that the model's position embeddings may be for; the likeliest first.
        evidence: the node, or the name, that decided.
    """

    name: str
    dtype: np.dtype = field(repr=False)
    dims: tuple[Dim, ...]
    kind: Kind
    low: int = 0
    bound: int | None = None
    reshapes: bool = False
    evidence: str = ""
    sides: tuple[int, ...] = ()


def infer_roles(model: Model) -> list[InputRole]:
    """The role of every input that a caller has to feed, in graph order.

    Raises:
        UsageError: an input is not a tensor.
    """
    uses = Uses(model)
    initialized = _initialized(model)
    return [_role(value, uses) for value in model.proto.graph.input if value.name not in initialized]


def roles_with_defaults(model: Model) -> list[InputRole]:
    """The role of every input that a caller may feed and need not, because the model has a value for it."""
    initialized = _initialized(model)
    values = [value for value in model.proto.graph.input if value.name in initialized]
    uses = Uses(model) if values else None
    return [_role(value, uses) for value in values] if uses is not None else []


def _initialized(model: Model) -> set[str]:
    names = {tensor.name for tensor in model.proto.graph.initializer}
    return names | {tensor.values.name for tensor in model.proto.graph.sparse_initializer}


_MOVES: Final[dict[str, frozenset[int]]] = {
    **dict.fromkeys(
        ("Identity", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand", "Slice",
         "Split", "Tile", "Gather", "GatherElements", "GatherND", "Pad"),
        frozenset({0}),
    ),
    "Where": frozenset({1, 2}),
    "Concat": frozenset(range(64)),
}  # fmt: skip
"""Ops whose output elements are elements of the input at these positions."""

_SHAPE_OPERANDS: Final[dict[str, frozenset[int]]] = {
    "Reshape": frozenset({1}),
    "Expand": frozenset({1}),
    "Tile": frozenset({1}),
    "ConstantOfShape": frozenset({0}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Range": frozenset({0, 1, 2}),
    "TopK": frozenset({1}),
    "Pad": frozenset({1}),
    "Resize": frozenset({3}),
    "Split": frozenset({1}),
    "Loop": frozenset({0}),
}
_MASK_OPERANDS: Final[dict[tuple[str, str], int]] = {
    ("", "Where"): 0,
    ("", "Attention"): 3,
    ("com.microsoft", "Attention"): 3,
    ("com.microsoft", "MultiHeadAttention"): 4,
    ("com.microsoft", "EmbedLayerNormalization"): 7,
}
_LOGIC: Final = {"Not", "And", "Or", "Xor"}
_LARGE: Final = 1e3
"""A factor from here on turns a padding mask into an additive one (-1e4, the lowest float32, ...)."""


@dataclass
class _Findings:
    """What the trace of one input has met."""

    bounds: list[int] = field(default_factory=list)
    unbounded_index: bool = False
    low: int = 0
    masks: list[str] = field(default_factory=list)
    added: bool = False
    convolved: bool = False
    weighted: bool = False
    shape_operands: list[str] = field(default_factory=list)
    evidence: str = ""


def _role(value: ValueInfoProto, uses: Uses) -> InputRole:
    if value.type.WhichOneof("value") != "tensor_type":
        raise UsageError(
            f"input '{value.name}' is a {value.type.WhichOneof('value') or 'value of no type'}, not a tensor.",
            "Inputs are made for tensors only; turn the numeric check off for this model.",
        )
    element_type = value.type.tensor_type.elem_type
    if element_type == TensorProto.STRING:
        return InputRole(value.name, np.dtype(object), _dims(value), "text")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    findings = _trace(value.name, uses)
    kind, evidence = _kind(value.name, dtype, _dims(value), findings)
    convolution = first_convolution(value.name, uses) if findings.convolved else None
    return InputRole(
        value.name,
        dtype,
        _dims(value) if convolution is None else convolution.with_channels(_dims(value)),
        kind,
        findings.low,
        min(findings.bounds, default=None),
        "Reshape" in findings.shape_operands,
        evidence,
        sides_of_image(convolution, uses) if convolution is not None and kind == "image" else (),
    )


def _kind(name: str, dtype: np.dtype, dims: tuple[Dim, ...], findings: _Findings) -> tuple[Kind, str]:
    """The kind, and what decided: an index outranks a mask, since both token ids and masks are compared with numbers."""
    lowered = name.lower()
    if dtype == np.bool_:
        return ("mask", "boolean") if len(dims) >= 2 else ("flag", "boolean")
    if dtype.kind in "iu":
        if findings.bounds or findings.unbounded_index:
            return ("position" if "position" in lowered else "index"), findings.evidence
        if findings.masks:
            return "mask", findings.masks[0]
        if findings.shape_operands and len(dims) <= 1:
            return "shape", findings.shape_operands[0]
        if "mask" in lowered and len(dims) >= 2:
            return "mask", "its name"
        return ("position" if "position" in lowered else "integer"), "its name" if "position" in lowered else ""
    is_data = (findings.weighted or findings.convolved) and not findings.masks  # features of what is masked, a masked image
    if "mask" in lowered and len(dims) >= 2 and not is_data:
        is_additive = findings.added and not findings.masks
        return ("additive-mask" if is_additive else "mask"), "its name"
    if any(part in lowered for part in ("past", "cache")):
        return "past", "its name"
    if findings.convolved:
        return ("image" if len(dims) == 4 else "waveform"), "a convolution"
    return ("image", "its rank") if len(dims) == 4 else ("float", "")


def _dims(value: ValueInfoProto) -> tuple[Dim, ...]:
    tensor_type = value.type.tensor_type
    if not tensor_type.HasField("shape"):
        return (None, None)  # a rank has to be taken; most models read rows
    return tuple(
        dim.dim_param or None if not dim.HasField("dim_value") or dim.dim_value < 0 else dim.dim_value
        for dim in tensor_type.shape.dim
    )


def _trace(name: str, uses: Uses) -> _Findings:
    """Follow an input to whatever interprets it; `offset` is what has been added to it on the way."""
    findings = _Findings()
    pending: list[tuple[Value, int]] = [(("", name), 0)]
    seen = set(pending)
    while pending:
        value, offset = pending.pop()
        followers = [(alias, offset) for alias in uses.aliases(value)]
        for use in uses.readers(value):
            _note(findings, use, offset, uses)
            followers.extend(_followers(use, offset, uses))
        for follower in followers:
            if follower not in seen:
                seen.add(follower)
                pending.append(follower)
    return findings


def _followers(use: Use, offset: int, uses: Uses) -> Iterator[tuple[Value, int]]:
    node = use.node
    if node.domain in ("", "ai.onnx") and use.index in _MOVES.get(node.op_type, ()):
        yield from (((use.scope, output), offset) for output in node.output if output)
    elif node.op_type in ("Add", "Sub") and len(node.input) == 2:
        operand = uses.constant((use.scope, node.input[1 - use.index]))
        if operand is None or operand.dtype.kind not in "iu" or operand.size == 0:
            return
        if node.op_type == "Add":
            yield (use.scope, node.output[0]), offset + int(operand.max())
        elif use.index == 0:
            yield (use.scope, node.output[0]), offset - int(operand.min())


def _note(findings: _Findings, use: Use, offset: int, uses: Uses) -> None:
    node, domain = use.node, "" if use.node.domain == "ai.onnx" else use.node.domain
    table = _table(node, domain, use.index)
    if table is not None:
        _note_index(findings, use, offset, _height(uses, use, table, node))
    elif use.index == _MASK_OPERANDS.get((domain, node.op_type)) or node.op_type in _LOGIC or _masks(use, uses):
        findings.masks.append(_label(node))
    elif use.index in _SHAPE_OPERANDS.get(node.op_type, ()):
        findings.shape_operands.append(node.op_type)
    elif node.op_type == "Add":
        findings.added = True
    elif node.op_type in ("MatMul", "Gemm") and len(node.input) > 1:
        findings.weighted = findings.weighted or uses.is_constant((use.scope, node.input[1 - use.index % 2]))
    elif node.op_type in ("LayerNormalization", "RMSNormalization"):
        findings.weighted = findings.weighted or use.index == 0
    elif node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        findings.convolved = findings.convolved or use.index == 0


def _note_index(findings: _Findings, use: Use, offset: int, height: int | None) -> None:
    findings.evidence = findings.evidence or f"an index of {_label(use.node)}"
    findings.low = max(findings.low, -offset)
    if height is None:
        findings.unbounded_index = True
    else:
        findings.bounds.append(height - max(offset, 0))


def _table(node: NodeProto, domain: str, index: int) -> int | None:
    """The position of the operand that the value at `index` indexes; None when it is no index."""
    key = (domain, node.op_type)
    if key in _INDEXED:
        return _INDEXED[key].get(index)
    return None


_INDEXED: Final[dict[tuple[str, str], dict[int, int]]] = {
    ("", "Gather"): {1: 0},
    ("", "GatherElements"): {1: 0},
    ("", "GatherND"): {1: 0},
    ("", "ScatterElements"): {1: 0},
    ("", "ScatterND"): {1: 0},
    ("", "OneHot"): {0: 1},
    ("", "RotaryEmbedding"): {3: 1},
    ("com.microsoft", "RotaryEmbedding"): {1: 2},
    ("com.microsoft", "GatherBlockQuantized"): {1: 0},
    ("com.microsoft", "EmbedLayerNormalization"): {0: 2, 1: 4, 8: 3},
}
_ALONG_AXIS: Final = {"Gather", "GatherElements", "ScatterElements"}


def _height(uses: Uses, use: Use, table: int, node: NodeProto) -> int | None:
    """How many rows the indexed operand has; of several axes the shortest."""
    if table >= len(node.input):
        return None
    operand = (use.scope, node.input[table])
    if node.op_type == "OneHot":
        depth = uses.constant(operand)
        return int(depth.reshape(-1)[0]) if depth is not None and depth.size else None
    dims = uses.dims(operand)
    if not dims:
        return None
    if node.op_type in _ALONG_AXIS:
        axis = attribute_of(node, "axis", 0)
        return dims[axis] if -len(dims) <= axis < len(dims) else None
    if node.op_type in ("GatherND", "ScatterND"):
        known = [dim for dim in dims if dim is not None]
        return min(known) if len(known) == len(dims) else None
    return dims[0]


def _masks(use: Use, uses: Uses) -> bool:
    """Whether the node treats the value as a mask of ones and zeros."""
    node = use.node
    if node.op_type == "Cast":
        return attribute_of(node, "to", 0) == TensorProto.BOOL
    if node.op_type not in ("Sub", "Mul", "Equal") or len(node.input) != 2:
        return False
    operand = uses.constant((use.scope, node.input[1 - use.index]))
    if operand is None or operand.size != 1 or operand.dtype.kind not in "fiub":
        return False
    number = float(operand.reshape(-1)[0])
    if node.op_type == "Sub":
        return use.index == 1 and number == 1.0
    if node.op_type == "Equal":
        return number in (0.0, 1.0)
    return abs(number) >= _LARGE


def _label(node: NodeProto) -> str:
    return f"{node.op_type} '{node.name}'" if node.name else node.op_type
