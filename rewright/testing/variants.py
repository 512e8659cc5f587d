"""The same model in other circumstances: another opset, another dtype, in a body, twice, with an inner value that is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
    version_converter,
)

from rewright.model.carrier import Model, all_graphs, all_nodes, bodies, stubs
from rewright.model.elements import normal_domain
from rewright.model.opsets import PURE_SUPERSETS, REVIEWED_FROM, REVIEWED_UP_TO
from rewright.ops.contract import CONTRACTS
from rewright.ops.targets import typed_by, unsupported
from rewright.testing.builder_types import inferred_types
from rewright.testing.sources import ir_version_for, standard_opset

ELEM_TYPES: Final = {
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16,
}
CONDITION: Final = "rewright_condition"
FUNCTION_DOMAIN: Final = "rewright.variant"


class NoVariantError(Exception):
    """The model cannot be put into these circumstances; the message says why."""


def at_opset(model: Model, version: int) -> Model:
    """The model at another version of the standard domain.

    Where every op is written the same at both, only the import changes; otherwise onnx's version converter is asked.

    Raises:
        NoVariantError: an op does not exist at that version, or the converter cannot convert the model.
    """
    current = standard_opset(model.proto)
    if not current:
        raise NoVariantError("the model does not import the standard domain")
    names = sorted({node.op_type for node in all_nodes(model.proto) if not normal_domain(node.domain)})
    if all(_is_written_the_same(op, current, version) for op in names):
        proto = _copy(model.proto)
        owners: list[Any] = [proto, *proto.functions]
        for owner in owners:
            for entry in owner.opset_import:
                if not normal_domain(entry.domain):
                    entry.version = version
        proto.ir_version = max(proto.ir_version, ir_version_for(version))
        return model.with_proto(proto)
    for op in names:
        if _since(op, current) and not _since(op, version):
            raise NoVariantError(f"opset {version} has no {op}")
    if any(stubs(model.proto)):
        raise NoVariantError("onnx's version converter does not take weights from files")
    try:
        converted = version_converter.convert_version(_copy(model.proto), version)
    except Exception as error:
        reason = str(error).rpartition("failed: ")[2].strip()  # of the C++ assertion that it is
        raise NoVariantError(f"onnx's version converter: {reason}") from error
    converted.ir_version = max(model.proto.ir_version, ir_version_for(version))
    return model.with_proto(converted)


def in_dtype(model: Model, dtype: str) -> Model:
    """The model with ``dtype`` wherever it had float32: values, weights, constants, and the targets of casts.

    Raises:
        NoVariantError: the model has no float32 value.
    """
    elem_type = ELEM_TYPES[dtype]
    proto = _copy(model.proto)
    changed = False
    for graph in all_graphs(proto):
        for info in (*graph.input, *graph.output, *graph.value_info):
            changed |= _retyped(info.type, elem_type)
        converted = [_converted(model, tensor, elem_type) for tensor in graph.initializer]
        del graph.initializer[:]
        graph.initializer.extend(converted)
    for node in all_nodes(proto):
        for attribute in node.attribute:
            _retype_attribute(model, node, attribute, elem_type)
    if not changed:
        raise NoVariantError("the model has no float32 input, output or stated inner value")
    return model.with_proto(proto)


def _retyped(type_: TypeProto, elem_type: int) -> bool:
    if type_.tensor_type.elem_type != TensorProto.FLOAT:
        return False
    type_.tensor_type.elem_type = elem_type
    return True


def _converted(model: Model, tensor: TensorProto, elem_type: int) -> TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    lowest, highest = _range(elem_type)
    numbers = np.clip(model.tensor(tensor).astype(np.float64), lowest, highest).astype(helper.tensor_dtype_to_np_dtype(elem_type))
    return numpy_helper.from_array(np.ascontiguousarray(numbers).reshape(tensor.dims), tensor.name)


def _range(elem_type: int) -> tuple[float, float]:
    """What the dtype holds: a mask of -3.4e38 becomes the lowest number of the dtype, not -inf."""
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return -largest, largest


def _retype_attribute(model: Model, node: NodeProto, attribute: AttributeProto, elem_type: int) -> None:
    if attribute.type == AttributeProto.TENSOR:
        attribute.t.CopyFrom(_converted(model, attribute.t, elem_type))
    elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
        attribute.i = elem_type
    elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        array = np.asarray(attribute.f if attribute.name == "value_float" else list(attribute.floats), dtype=np.float32)
        tensor = numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(elem_type)))
        attribute.CopyFrom(helper.make_attribute("value", tensor))
    elif node.op_type == "ConstantOfShape" and attribute.name == "value":
        attribute.t.CopyFrom(_converted(model, attribute.t, elem_type))


def twice(model: Model, *, shares_weights: bool = False) -> Model:
    """The model beside a copy of itself in one graph, every name with "a_" or "b_" before it.

    ``shares_weights``: both read the same initializers, under their old names.

    Raises:
        NoVariantError: weights were to be shared, and there are none, or one is an input or output as well.
    """
    graph = model.proto.graph
    shared = {tensor.name for tensor in graph.initializer} if shares_weights else set()
    if shares_weights and (not shared or shared & {info.name for info in (*graph.input, *graph.output)}):
        raise NoVariantError("the model has no weights that could be shared")
    proto = _copy(model.proto)
    proto.ClearField("graph")
    proto.graph.name = graph.name
    for prefix in ("a_", "b_"):
        copied = _renamed(graph, lambda name, prefix=prefix: name if name in shared else prefix + name)  # type: ignore[misc]
        proto.graph.node.extend(copied.node)
        proto.graph.input.extend(copied.input)
        proto.graph.output.extend(copied.output)
        proto.graph.value_info.extend(info for info in copied.value_info if info.name not in shared)
        if not shared or prefix == "a_":
            proto.graph.initializer.extend(copied.initializer)
    return model.with_proto(proto)


def with_overridable_weights(model: Model) -> Model:
    """The model with every initializer among its inputs, as the default that a caller may replace.

    Raises:
        NoVariantError: there is no such initializer.
    """
    proto = _copy(model.proto)
    inputs = {info.name for info in proto.graph.input}
    outputs = {info.name for info in proto.graph.output}
    added = [tensor for tensor in proto.graph.initializer if tensor.name not in inputs | outputs]
    if not added:
        raise NoVariantError("the model has no initializer")
    proto.graph.input.extend(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in added)
    return model.with_proto(proto)


def in_a_function(model: Model) -> Model:
    """The model's nodes in a model-local function, to which inputs and weights are passed.

    Raises:
        NoVariantError: the model has no node, or an output that is an input or a weight.
    """
    graph = model.proto.graph
    passed = [info.name for info in graph.input]
    passed += [tensor.name for tensor in graph.initializer if tensor.name not in passed]
    outputs = [info.name for info in graph.output]
    if not graph.node or set(outputs) & set(passed):
        raise NoVariantError("the model has no node, or an output that no node computes")
    proto = _copy(model.proto)
    function = proto.functions.add(domain=FUNCTION_DOMAIN, name="whole")
    function.input.extend(passed)
    function.output.extend(outputs)
    function.node.extend(graph.node)
    function.opset_import.extend(entry for entry in model.proto.opset_import)
    proto.graph.ClearField("node")
    proto.graph.ClearField("value_info")
    proto.graph.node.append(helper.make_node("whole", passed, outputs, name="whole", domain=FUNCTION_DOMAIN))
    proto.opset_import.append(helper.make_opsetid(FUNCTION_DOMAIN, 1))
    proto.ir_version = max(proto.ir_version, ir_version_for(standard_opset(proto), has_functions=True))
    return model.with_proto(proto)


def in_bodies(model: Model) -> Model:
    """The model's nodes in both branches of an If over a new input; inputs and initializers stay outside, and are captured.

    Raises:
        NoVariantError: the model has no node, or its IR lists initializers among the inputs.
    """
    graph = model.proto.graph
    if not graph.node:
        raise NoVariantError("the model has no node")
    outside = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    proto = _copy(model.proto)
    proto.graph.ClearField("node")
    proto.graph.ClearField("value_info")
    proto.graph.input.append(helper.make_tensor_value_info(CONDITION, TensorProto.BOOL, []))
    branches: dict[str, Any] = {}
    for branch in ("then_branch", "else_branch"):

        def rename(name: str, prefix: str = branch[:5]) -> str:
            return name if name in outside else prefix + name

        body = _renamed(graph, rename)
        body.name = branch
        body.ClearField("input")
        body.ClearField("initializer")
        for index, info in enumerate(body.output):
            if info.name in outside:  # ONNX Runtime refuses a body that returns a value of the graph around it
                inner = f"{branch}_output_{index}"
                body.node.append(helper.make_node("Identity", [info.name], [inner], name=f"{branch}_copy_{index}"))
                info.name = inner
        branches[branch] = body
    names = [info.name if info.name not in outside else f"{info.name}_out" for info in graph.output]
    for info, name in zip(proto.graph.output, names, strict=True):
        info.name = name
    proto.graph.node.append(helper.make_node("If", [CONDITION], names, name="rewright_if", **branches))
    return model.with_proto(proto)


def inner_values(model: Model, names: Iterable[str]) -> Iterator[tuple[str, TypeProto]]:
    """Those of the named values that the main graph computes, are no output, and have a known tensor type."""
    types = inferred_types(model.proto)
    outputs = {info.name for info in model.proto.graph.output}
    computed = {name for node in model.proto.graph.node for name in node.output if name}
    for name in names:
        known = types.get(name)
        if name in computed and name not in outputs and known is not None and known.HasField("tensor_type"):
            yield name, known


def with_output(model: Model, name: str, type_: TypeProto) -> Model:
    """The model with an inner value among its outputs."""
    proto = _copy(model.proto)
    proto.graph.output.add(name=name).type.CopyFrom(_without_made_up_dims(type_))
    return model.with_proto(proto)


def with_reader(model: Model, name: str, type_: TypeProto) -> Model:
    """The model with a further node that reads an inner value; what it gives is an output.

    The node is a Concat of the value with itself, which no pass may take for the value and every dtype has. A scalar is made
    a vector first.
    """
    proto = _copy(model.proto)
    made = f"{name}_read_elsewhere"
    rank = len(type_.tensor_type.shape.dim) if type_.tensor_type.HasField("shape") else 0
    if not rank:
        raise NoVariantError(f"the rank of '{name}' is 0 or not known")
    proto.graph.node.append(helper.make_node("Concat", [name, name], [made], name=f"{made}_node", axis=0))
    proto.graph.output.append(helper.make_tensor_value_info(made, type_.tensor_type.elem_type, [None] * rank))
    return model.with_proto(proto)


def _without_made_up_dims(type_: TypeProto) -> TypeProto:
    made = TypeProto()
    made.CopyFrom(type_)
    for dim in made.tensor_type.shape.dim:
        if dim.dim_param.startswith("unk__"):
            dim.ClearField("dim_param")
    return made


def _renamed(graph: GraphProto, rename: Callable[[str], str]) -> GraphProto:
    """The graph, bodies included, with every value and node under another name; an omitted input stays omitted."""
    made = GraphProto()
    made.CopyFrom(graph)
    pending = [made]
    while pending:
        current = pending.pop()
        for info in (*current.input, *current.output, *current.value_info):
            info.name = rename(info.name)
        for tensor in current.initializer:
            tensor.name = rename(tensor.name)
        for node in current.node:
            node.name = rename(node.name) if node.name else ""
            for names in (node.input, node.output):
                changed = [rename(name) if name else "" for name in names]
                del names[:]
                names.extend(changed)
            pending.extend(bodies(node))
    return made


def _copy(proto: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(proto)
    return made


def _is_written_the_same(op: str, current: int, version: int) -> bool:
    """Whether the op has one definition at both opsets, or definitions of which the later one only adds to the earlier."""
    was_reviewed = min(current, version) >= REVIEWED_FROM and max(current, version) <= REVIEWED_UP_TO
    return _since(op, current) == _since(op, version) or (was_reviewed and op in PURE_SUPERSETS and bool(_since(op, version)))


def _since(op: str, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(op, version, "").since_version)
    except onnx.defs.SchemaError:
        return 0


def without_kernel(after: Model, before: Model, target: str) -> Iterator[str]:
    """Why ``target`` cannot run ops outside the standard that ``after`` has and ``before`` had not; one sentence for each."""
    known = {(node.domain, node.op_type) for node in all_nodes(before.proto)}
    types = inferred_types(after.proto)
    for node in all_nodes(after.proto):
        domain = normal_domain(node.domain)
        if (node.domain, node.op_type) in known or (not domain and onnx.defs.has(node.op_type)):
            continue
        if f"{domain}::{node.op_type}" not in CONTRACTS:
            if target == "portable":
                yield f"the target 'portable' has standard ops only, not {domain or 'ai.onnx'}.{node.op_type}"
            continue
        index = typed_by(domain, node.op_type)
        found = types.get(node.input[index]) if index < len(node.input) else None
        if found is not None:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(found.tensor_type.elem_type))
            reason = unsupported(domain, node.op_type, dtype, target)
            if reason is not None:
                yield reason
