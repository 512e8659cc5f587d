"""Which inputs and outputs of a candidate stand for which of the reference, and the candidate under the reference's names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, Final

import yaml
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from rewright.model.carrier import Model, bodies
from rewright.model.errors import UsageError
from rewright.verify.interface import type_text

NameMap = Mapping[str, Any] | str | PathLike[str]
"""Candidate names by reference names; or the same in two parts, `inputs` and `outputs`; or a file that holds one of these."""

_FORM: Final = "Write names of the reference and of the candidate, {y: out}, or {inputs: {x: in}, outputs: {y: out}}."


@dataclass(frozen=True)
class Correspondence:
    """The candidate's name of each input and output of the reference; a name that is not mapped stands for itself."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


def named_correspondence(reference: Model, candidate: Model, names: NameMap) -> Correspondence:
    """The correspondence that a mapping states.

    Raises:
        UsageError: the mapping cannot be read, names something that the model does not have, or gives one name twice.
    """
    data = names if isinstance(names, Mapping) else _read(Path(names))
    first, second = reference.proto.graph, candidate.proto.graph
    if set(data) <= {"inputs", "outputs"} and data and all(isinstance(part, Mapping) for part in data.values()):
        inputs, outputs = dict(data.get("inputs", {})), dict(data.get("outputs", {}))
        _check_known("reference", "input", inputs, first.input)
        _check_known("reference", "output", outputs, first.output)
    else:
        inputs, outputs = _sorted_out(data, first)
    for kind, given, values in (("input", inputs, second.input), ("output", outputs, second.output)):
        wrong = [entry for pair in given.items() for entry in pair if not isinstance(entry, str)]
        if wrong:
            raise UsageError(f"the mapping holds {wrong[0]!r}, which is no name.", _FORM)
        _check_known("candidate", kind, given.values(), values)
        _check_single(kind, given, values)
    return Correspondence(inputs, outputs)


def positional_correspondence(reference: Model, candidate: Model) -> Correspondence:
    """The n-th input and output of one model are the n-th of the other.

    Raises:
        UsageError: there are more in one model, or the element type or the number of dimensions differs at a position.
    """
    pairs = {}
    for kind in ("input", "output"):
        old: Sequence[ValueInfoProto] = getattr(reference.proto.graph, kind)
        new: Sequence[ValueInfoProto] = getattr(candidate.proto.graph, kind)
        if len(old) != len(new):
            raise UsageError(
                f"the reference has {len(old)} {kind}s and the candidate {len(new)}.",
                f"The reference's are {_listed(old)}, the candidate's {_listed(new)}: positions do not tell which is which.",
            )
        for place, (first, second) in enumerate(zip(old, new, strict=True)):
            if not _is_same_kind(first, second):
                raise UsageError(
                    f"{kind} {place} is '{first.name}', {type_text(first)}, in the reference and '{second.name}',"
                    f" {type_text(second)}, in the candidate.",
                    f"Map the {kind}s by name.",
                )
        pairs[kind] = {first.name: second.name for first, second in zip(old, new, strict=True)}
    return Correspondence(pairs["input"], pairs["output"])


def under_reference_names(reference: Model, candidate: Model, names: Correspondence) -> Model:
    """The candidate with inputs and outputs named and ordered as the reference has them; what it has beyond them comes last."""
    proto = ModelProto()
    proto.CopyFrom(candidate.proto)
    graph = proto.graph
    wanted = {new: old for old, new in names.inputs.items() if new != old}
    forwarded: list[tuple[str, str]] = []
    given = {value.name for value in graph.input}
    for old, new in names.outputs.items():
        if new in given and wanted.get(new, new) != old:
            forwarded.append((new, old))  # an input that is an output as well, and now has two names
        elif new != old:
            wanted[new] = old
    taken = {old for _, old in forwarded}
    _rename(proto, wanted, taken)
    for new, old in forwarded:
        source = wanted.get(new, new)
        graph.node.append(NodeProto(op_type="Identity", name=f"{old}_forwarded", input=[source], output=[old]))
        for value in graph.output:
            if value.name == source:
                value.name = old
    _reorder(graph.input, [value.name for value in reference.proto.graph.input])
    _reorder(graph.output, [value.name for value in reference.proto.graph.output])
    return candidate.with_proto(proto)


def _rename(proto: ModelProto, wanted: Mapping[str, str], taken: Iterable[str]) -> None:
    """Renames values of the main graph, in it and in the bodies that capture them, all at once.

    A value that has one of the new names already, which is an inner one, steps aside.
    """
    graphs = [proto.graph, *_bodies_below(proto.graph.node)]
    defined = {name for graph in graphs for name in _defined(graph)}
    names = dict(wanted)
    for name in sorted({*wanted.values(), *taken} & defined):
        if name not in wanted:
            names[name] = next(fresh for number in count(1) if (fresh := f"{name}_inner{number}") not in defined)
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = names.get(value.name, value.name)
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = names.get(sparse.values.name, sparse.values.name)
        for annotation in graph.quantization_annotation:
            annotation.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)
        for node in graph.node:
            _replace(node.input, names)
            _replace(node.output, names)


def _replace(listed: Any, names: Mapping[str, str]) -> None:
    for index, name in enumerate(listed):
        if name in names:
            listed[index] = names[name]


def _bodies_below(nodes: Iterable[NodeProto]) -> list[GraphProto]:
    found = [body for node in nodes if node.attribute for body in bodies(node)]
    for body in found:  # grows while it is walked
        found.extend(inner for node in body.node if node.attribute for inner in bodies(node))
    return found


def _defined(graph: GraphProto) -> list[str]:
    names = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    names += [tensor.values.name for tensor in graph.sparse_initializer]
    return names + [name for node in graph.node for name in node.output if name]


def _reorder(values: Any, wanted: Sequence[str]) -> None:
    place = {name: index for index, name in enumerate(wanted)}
    ordered = sorted(
        (ValueInfoProto.FromString(value.SerializeToString()) for value in values), key=lambda v: place.get(v.name, len(place))
    )
    del values[:]
    values.extend(ordered)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except OSError as error:
        raise UsageError(
            f"the mapping '{path}' cannot be read ({error.strerror}).", "Give OLD=NEW, or the path of a YAML or JSON file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"the mapping {path} is malformed: {' '.join(str(error).split())}.", _FORM) from error
    if not isinstance(data, Mapping):
        raise UsageError(f"{path} holds no mapping.", _FORM)
    return _with_text(data)


def _with_text(data: Mapping[Any, Any]) -> dict[str, Any]:
    """Numbers as text: exporters number values, and YAML does not know that 2044 is a name."""
    spelled = {}
    for name, value in data.items():
        is_number = isinstance(value, int) and not isinstance(value, bool)
        spelled[str(name)] = _with_text(value) if isinstance(value, Mapping) else str(value) if is_number else value
    return spelled


def _sorted_out(data: Mapping[str, Any], reference: GraphProto) -> tuple[dict[str, str], dict[str, str]]:
    """Inputs and outputs of a mapping that does not say which is which."""
    inputs, outputs = {value.name for value in reference.input}, {value.name for value in reference.output}
    for name in data:
        if name in inputs and name in outputs:
            raise UsageError(
                f"'{name}' is an input and an output of the reference.", "Say in a file which is meant: {outputs: {y: out}}."
            )
    _check_known("reference", "input or output", data, [*reference.input, *reference.output])
    given = {name: new for name, new in data.items() if name in inputs}
    return given, {name: new for name, new in data.items() if name in outputs}


def _check_known(model: str, kind: str, names: Iterable[Any], values: Sequence[ValueInfoProto]) -> None:
    known = [value.name for value in values]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
            hint = f"Maybe you meant {' or '.join(map(repr, near))}." if near else f"It has {_listed(values)}."
            raise UsageError(f"the {model} has no {kind} '{name}', which the mapping names.", hint)


def _check_single(kind: str, names: Mapping[str, str], values: Sequence[ValueInfoProto]) -> None:
    """Each name of the candidate stands for one of the reference."""
    owners: dict[str, str] = {}
    for old, new in names.items():
        if new in owners:
            raise UsageError(f"the candidate's {kind} '{new}' is mapped to '{owners[new]}' and to '{old}'.", "Map it once.")
        owners[new] = old
    for value in values:
        if value.name in names and value.name not in owners:
            raise UsageError(
                f"the candidate has an {kind} '{value.name}' of its own, but '{names[value.name]}' is mapped to that name.",
                f"Say in the mapping too which {kind} of the reference the candidate's '{value.name}' is.",
            )


def _is_same_kind(first: ValueInfoProto, second: ValueInfoProto) -> bool:
    """Whether element type and number of dimensions agree, as far as both state them."""
    kinds = first.type.WhichOneof("value"), second.type.WhichOneof("value")
    if kinds != ("tensor_type", "tensor_type"):
        return bool(kinds[0] == kinds[1])
    old, new = first.type.tensor_type, second.type.tensor_type
    is_ranked = old.HasField("shape") and new.HasField("shape")
    return bool(old.elem_type == new.elem_type) and (not is_ranked or len(old.shape.dim) == len(new.shape.dim))


def _listed(values: Sequence[ValueInfoProto]) -> str:
    return ", ".join(f"'{value.name}'" for value in values) or "none"
