"""The interface gate: what a caller sees of a model must not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model
from rewright.model.view import FIRST_IR_WITH_OPTIONAL_INPUT_LISTING


class InterfaceEvidence(BaseModel):
    """What the interface gate found: every difference that a caller could notice; `notes` are differences that were allowed."""

    model_config = ConfigDict(extra="forbid")

    gate: Literal["interface"] = "interface"
    status: Literal["passed", "failed"]
    problems: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def reason(self) -> str:
        """The first difference, or the empty string."""
        return self.problems[0] if self.problems else ""


def check_interface(before: Model, after: Model, *, may_rename_symbols: bool = False) -> InterfaceEvidence:
    """Compare inputs and outputs: names, order, element types, symbolic shapes, and which inputs have a default.

    An input with a default is one that an initializer of the same name backs; callers may leave it out.

    Args:
        may_rename_symbols: a dimension without a fixed size may have another name, the same one wherever it had the same one
            before, or none; and an output may leave open what it stated before. A pass has no reason for either, two exports of
            one model often differ so.
    """
    symbols = _Symbols(before.proto.graph, after.proto.graph) if may_rename_symbols else None
    problems = _compare("input", _inputs(before.proto), _inputs(after.proto), symbols)
    problems += _compare("output", before.proto.graph.output, after.proto.graph.output, symbols)
    defaults, defaults_after = _defaults(before.proto), _defaults(after.proto)
    problems += [f"input '{name}' lost its default" for name in sorted(defaults - defaults_after)]
    problems += [f"input '{name}' got a default" for name in sorted(defaults_after - defaults)]
    notes = symbols.notes if symbols is not None else []
    return InterfaceEvidence(status="failed" if problems else "passed", problems=problems, notes=notes)


class _Symbols:
    """Names of dimensions in one model, by those in the other."""

    def __init__(self, before: GraphProto, after: GraphProto) -> None:
        self.notes: list[str] = []
        self._after: dict[str, str] = {}
        self._before: dict[str, str] = {}
        self._inputs_before, self._inputs_after = _input_symbols(before), _input_symbols(after)

    def same_type(self, kind: str, before: ValueInfoProto, after: ValueInfoProto) -> bool:
        """Whether the types agree but for names of dimensions, and for what an output leaves open."""
        kinds = before.type.WhichOneof("value"), after.type.WhichOneof("value")
        if kinds != ("tensor_type", "tensor_type"):
            return _same_type(before.type, after.type)
        old, new = before.type.tensor_type, after.type.tensor_type
        if old.elem_type != new.elem_type:
            return False
        if old.HasField("shape") and new.HasField("shape"):
            pairs = list(zip(old.shape.dim, new.shape.dim, strict=False))
            is_same = len(old.shape.dim) == len(new.shape.dim) and all(self._same_dim(kind, *pair) for pair in pairs)
        else:
            is_fixed = any(dim.HasField("dim_value") for dim in (*old.shape.dim, *new.shape.dim))
            is_same = kind == "output" or not is_fixed
        if not is_same:
            return False
        if _stated(old) != _stated(new):
            self.notes.append(f"{kind} '{before.name}' is declared as {type_text(after)}, and as {type_text(before)} before")
        return True

    def _same_dim(self, kind: str, old: TensorShapeProto.Dimension, new: TensorShapeProto.Dimension) -> bool:
        # Exporters make up a name for what they do not know; only the name of an input's dimension says something of an output's.
        is_open = kind == "output" and (_is_open(old, self._inputs_before) or _is_open(new, self._inputs_after))
        if is_open:
            return True
        if old.HasField("dim_value") or new.HasField("dim_value"):
            return _same_type(old, new)
        if not old.dim_param or not new.dim_param:
            return True
        if old.dim_param not in self._after and old.dim_param != new.dim_param:
            self.notes.append(f"dimension '{old.dim_param}' is called '{new.dim_param}'")
        is_first = self._after.setdefault(old.dim_param, new.dim_param) == new.dim_param
        return self._before.setdefault(new.dim_param, old.dim_param) == old.dim_param and is_first


def _is_open(dim: TensorShapeProto.Dimension, known: set[str]) -> bool:
    return not dim.HasField("dim_value") and dim.dim_param not in known


def _input_symbols(graph: GraphProto) -> set[str]:
    return {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim if dim.dim_param}


def _stated(tensor: TypeProto.Tensor) -> list[int]:
    """The sizes that are stated; -1 where one is not."""
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]


def _compare(kind: str, before: Sequence[ValueInfoProto], after: Sequence[ValueInfoProto], symbols: _Symbols | None) -> list[str]:
    names, names_after = [value.name for value in before], [value.name for value in after]
    if sorted(names) != sorted(names_after):
        lost = [name for name in names if name not in names_after]
        made = [name for name in names_after if name not in names]
        problems = [f"{kind} '{name}' is gone" for name in lost] + [f"{kind} '{name}' is new" for name in made]
        return problems or [f"{kind}s are repeated: {names_after} instead of {names}"]
    if names != names_after:
        return [f"{kind}s are reordered: {names_after} instead of {names}"]
    return [
        f"{kind} '{old.name}' is {type_text(new)} instead of {type_text(old)}"
        for old, new in zip(before, after, strict=True)
        if not (symbols.same_type(kind, old, new) if symbols is not None else _same_type(old.type, new.type))
    ]


def _same_type(before: Message, after: Message) -> bool:
    return before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


def type_text(value: ValueInfoProto) -> str:
    """The declared type as a message shows it: "float[batch, 4]"."""
    if value.type.WhichOneof("value") != "tensor_type":
        return value.type.WhichOneof("value") or "untyped"
    tensor = value.type.tensor_type
    name = TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{name} of unknown rank"
    dims = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return f"{name}[{', '.join(dims)}]"


def _inputs(proto: ModelProto) -> list[ValueInfoProto]:
    """What callers feed. Before IR 4 every weight is listed among the inputs; ONNX Runtime lets nobody feed those."""
    if proto.ir_version >= FIRST_IR_WITH_OPTIONAL_INPUT_LISTING:
        return list(proto.graph.input)
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def _defaults(proto: ModelProto) -> set[str]:
    return {value.name for value in _inputs(proto)} & {tensor.name for tensor in proto.graph.initializer}
