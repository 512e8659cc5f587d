"""The interface gate: what a caller sees of a model must not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, ValueInfoProto
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model


class InterfaceEvidence(BaseModel):
    """What the interface gate found: every difference that a caller could notice."""

    model_config = ConfigDict(extra="forbid")

    gate: Literal["interface"] = "interface"
    status: Literal["passed", "failed"]
    problems: list[str] = Field(default_factory=list)

    @property
    def reason(self) -> str:
        """The first difference, or the empty string."""
        return self.problems[0] if self.problems else ""


def check_interface(before: Model, after: Model) -> InterfaceEvidence:
    """Compare inputs and outputs: names, order, element types, symbolic shapes, and which inputs have a default.

    An input with a default is one that an initializer of the same name backs; callers may leave it out.
    """
    problems = _compare("input", before.proto.graph.input, after.proto.graph.input)
    problems += _compare("output", before.proto.graph.output, after.proto.graph.output)
    defaults, defaults_after = _defaults(before.proto), _defaults(after.proto)
    problems += [f"input '{name}' lost its default" for name in sorted(defaults - defaults_after)]
    problems += [f"input '{name}' got a default" for name in sorted(defaults_after - defaults)]
    return InterfaceEvidence(status="failed" if problems else "passed", problems=problems)


def _compare(kind: str, before: Sequence[ValueInfoProto], after: Sequence[ValueInfoProto]) -> list[str]:
    names, names_after = [value.name for value in before], [value.name for value in after]
    if sorted(names) != sorted(names_after):
        lost = [name for name in names if name not in names_after]
        made = [name for name in names_after if name not in names]
        problems = [f"{kind} '{name}' is gone" for name in lost] + [f"{kind} '{name}' is new" for name in made]
        return problems or [f"{kind}s are repeated: {names_after} instead of {names}"]
    if names != names_after:
        return [f"{kind}s are reordered: {names_after} instead of {names}"]
    return [
        f"{kind} '{old.name}' is {_type(new)} instead of {_type(old)}"
        for old, new in zip(before, after, strict=True)
        if not _same_type(old.type, new.type)
    ]


def _same_type(before: Message, after: Message) -> bool:
    return before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


def _type(value: ValueInfoProto) -> str:
    if value.type.WhichOneof("value") != "tensor_type":
        return value.type.WhichOneof("value") or "untyped"
    tensor = value.type.tensor_type
    name = TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{name} of unknown rank"
    dims = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return f"{name}[{', '.join(dims)}]"


def _defaults(proto: ModelProto) -> set[str]:
    inputs = {value.name for value in proto.graph.input}
    return inputs & {tensor.name for tensor in proto.graph.initializer}
