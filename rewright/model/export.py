"""From the editing view back to a skeleton. What was not touched is exported as the very message that was read."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from rewright.model.carrier import Model
from rewright.model.elements import Constant, Opaque, WeightRef, normal_domain, same_attribute
from rewright.model.errors import PassError
from rewright.model.graph import GraphState, state_of, walk_bodies
from rewright.model.order import node_has_bodies, stable_order
from rewright.model.tensors import tensor_proto
from rewright.model.view import FIRST_IR_WITH_OPTIONAL_INPUT_LISTING, DerivedDim, View
from rewright.model.weights import WeightFiles


def export(view: View) -> Model:
    """The model that the view shows; see ``View.to_model``."""
    return _Exporter(view).model()


class _Exporter:
    def __init__(self, view: View) -> None:
        self._view = view
        self._files: WeightFiles = view.model.files

    def model(self) -> Model:
        proto = ModelProto()
        proto.CopyFrom(self._view.model.proto)  # unknown fields included
        for name in ("graph", "functions"):
            proto.ClearField(name)
        graph = self._view.graph
        for name in ("producer_name", "producer_version", "ir_version"):
            value = getattr(graph, name)
            if value is not None and value != getattr(proto, name):
                setattr(proto, name, value)
        self._graph_into(graph, proto.graph, set())
        for function in self._view.functions:
            proto.functions.append(self._function(function))
        used = {normal_domain(node.domain) for graph in self._view.graphs() for node in graph.nodes}
        _import_domains(proto, graph.import_domains, self._view.opsets, used)
        return self._view.model.with_proto(proto)

    @property
    def _lists_initializers(self) -> bool:
        version = self._view.graph.ir_version
        return bool(version) and version < FIRST_IR_WITH_OPTIONAL_INPUT_LISTING

    def _graph_into(self, graph: Any, proto: GraphProto, outer: set[str]) -> None:
        state = state_of(graph)
        source = cast("GraphProto | None", state.proto)
        graph.nodes = stable_order(graph.nodes)
        if source is not None:
            proto.CopyFrom(_shell(state, source))
        names = outer | {constant.name for constant in state.initializers.values()}
        extra = self._new_constants(graph, names)
        if self._lists_initializers:
            # Initializers would have to be listed among the inputs, which would change the signature.
            proto.node.extend(self._constant_nodes(extra))
            names, extra = names | extra.keys(), {}
        proto.node.extend(self._nodes(graph, names | extra.keys()))
        if graph.name or (source is not None and source.HasField("name")):
            proto.name = graph.name or ""
        if (graph.doc_string or "") != proto.doc_string:
            proto.doc_string = graph.doc_string or ""
        self._initializers(graph, proto, extra)
        self._signature(graph, proto, source)
        self._value_info(graph, proto, source)

    def _nodes(self, graph: Any, outer: set[str]) -> list[NodeProto]:
        return [self._node(node, outer) for node in graph.nodes]

    def _new_constants(self, graph: Any, known: set[str] | dict[str, Any]) -> dict[str, Constant]:
        """Constants that the nodes of this graph read and no enclosing graph holds yet."""
        found: dict[str, Constant] = {}
        for node in graph.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and tensor.name not in known:
                    found[tensor.name] = tensor
        for tensor in graph.outputs:
            if isinstance(tensor, gs.Constant) and tensor.name not in known:
                found[tensor.name] = tensor
        return found

    def _initializers(self, graph: Any, proto: GraphProto, extra: dict[str, Constant]) -> None:
        state = state_of(graph)
        source = cast("GraphProto | None", state.proto)
        held = {name: constant for name, constant in state.initializers.items() if isinstance(constant, gs.Constant)}
        done: set[str] = set()
        for tensor in source.initializer if source is not None else ():
            name = tensor.name
            constant = held.get(name)
            if constant is None:
                if name in state.input_defaults and not self._lists_initializers:
                    proto.initializer.append(tensor)
                    done.add(name)
                continue
            proto.initializer.append(tensor_proto(constant, self._files))
            done.add(name)
        for name, constant in (*held.items(), *extra.items()):
            if name not in done:
                proto.initializer.append(tensor_proto(constant, self._files))
                done.add(name)

    def _signature(self, graph: Any, proto: GraphProto, source: GraphProto | None) -> None:
        """Inputs and outputs: the source's own entries wherever the name is still there."""
        sources = {value.name: value for value in (*source.input, *source.output)} if source is not None else {}
        listed = {tensor.name for tensor in graph.inputs}
        if source is not None:
            # Before IR 4 initializers are listed among the inputs; the view keeps those as constants.
            state = state_of(graph)
            kept = state.input_defaults.keys() & state.initializers.keys()
            tensors = {tensor.name: tensor for tensor in graph.inputs}
            for value in source.input:
                if value.name in kept:
                    constant = state.initializers[value.name]
                    proto.input.append(value if _agrees(constant, value, declared=True) else _value_info(constant))
                elif value.name in listed:
                    tensor = tensors[value.name]
                    proto.input.append(value if _agrees(tensor, value, declared=True) else _value_info(tensor))
        present = {value.name for value in proto.input}
        proto.input.extend(_value_info(tensor) for tensor in graph.inputs if tensor.name not in present)
        for tensor in graph.outputs:
            read = sources.get(tensor.name)
            proto.output.append(read if read is not None and _agrees(tensor, read) else _value_info(tensor))

    def _value_info(self, graph: Any, proto: GraphProto, source: GraphProto | None) -> None:
        """Keeps the source's entries for values that still exist; adds what is known about outputs of non-standard ops,
        which onnx's shape inference cannot find again."""
        present: set[str] = set()
        if source is not None and source.value_info:
            tensors = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
            tensors |= state_of(graph).initializers
            kept = [value for value in source.value_info if value.name in tensors]
            proto.value_info.extend(
                value if _agrees(tensors[value.name], value) else _value_info(tensors[value.name]) for value in kept
            )
            present = {value.name for value in kept}
        outputs = {tensor.name for tensor in graph.outputs}
        for node in graph.nodes:
            if getattr(node, "proto", None) is None and not self._is_standard(node, graph):
                for tensor in node.outputs:
                    if tensor.name and tensor.name not in present | outputs and tensor.dtype is not None:
                        proto.value_info.append(_value_info(tensor))

    def _is_standard(self, node: Any, graph: Any) -> bool:
        """Whether onnx has a schema for the op, and so infers its outputs."""
        opset = self._view.opset_of(graph)
        return not normal_domain(node.domain) and bool(onnx.defs.has(node.op, opset))

    def _function(self, function: Any) -> FunctionProto:
        proto = FunctionProto()
        state = state_of(function)
        if state.proto is not None:
            proto.CopyFrom(cast("FunctionProto", state.proto))
            del proto.node[:]
        else:
            self._new_function(function, proto)
        function.nodes = stable_order(function.nodes)
        extra = self._new_constants(function, set())
        proto.node.extend(self._constant_nodes(extra))  # functions have no initializers
        proto.node.extend(self._nodes(function, set(extra)))
        used = {normal_domain(node.domain) for graph in (function, *walk_bodies(function)) for node in graph.nodes}
        _import_domains(proto, function.import_domains, {**self._view.opsets, **(state.opsets or {})}, used)
        return proto

    def _new_function(self, function: Any, proto: FunctionProto) -> None:
        proto.name, proto.domain = function.name, function.domain or ""
        proto.input.extend(tensor.name for tensor in function.inputs)
        proto.output.extend(tensor.name for tensor in function.outputs)
        proto.attribute.extend(name for name, default in function.attrs.items() if default is None)
        for name, default in function.attrs.items():
            if default is not None:
                proto.attribute_proto.append(self._attribute(name, default, function))

    def _constant_nodes(self, constants: dict[str, Constant]) -> list[NodeProto]:
        made = []
        for name, constant in constants.items():
            node = NodeProto(op_type="Constant", output=[name], name=name)
            tensor = tensor_proto(constant, self._files)
            node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
            made.append(node)
        return made

    def _node(self, node: Any, outer: set[str]) -> NodeProto:
        source: NodeProto | None = getattr(node, "proto", None)
        inputs = [tensor.name for tensor in node.inputs]
        outputs = [tensor.name for tensor in node.outputs]
        has_bodies = node_has_bodies(node)
        if source is not None and not has_bodies and not getattr(node, "metadata", None):
            said = node.op, node.name, node.domain, inputs, outputs
            if said == getattr(node, "as_read", None) and not node.attributes_changed():
                return source
        made = _exported_before(node, inputs, outputs) if source is None and not has_bodies else None
        if made is not None:
            return made
        proto = NodeProto()
        if source is not None:
            proto.CopyFrom(source)
            del proto.input[:]
            del proto.output[:]
        proto.input.extend(inputs)
        proto.output.extend(outputs)
        proto.op_type = node.op
        if node.name or (source is not None and source.HasField("name")):
            proto.name = node.name or ""
        if (node.domain or "") != proto.domain:
            proto.domain = node.domain or ""
        if source is None or has_bodies or node.attributes_changed():
            del proto.attribute[:]
            self._attributes(node, source, proto, outer)
        for key, value in (getattr(node, "metadata", None) or {}).items():
            proto.metadata_props.add(key=key, value=value)
        if source is None and not has_bodies:
            node.__dict__["_exported"] = proto, _said(node)
        return proto

    def _attributes(self, node: Any, source: NodeProto | None, proto: NodeProto, outer: set[str]) -> None:
        originals = {attribute.name: attribute for attribute in source.attribute} if source is not None else {}
        pristine = getattr(node, "_pristine", None) or {}
        for name, value in node.attrs.items():
            original = originals.get(name)
            if isinstance(value, gs.Graph) or (isinstance(value, list) and value and isinstance(value[0], gs.Graph)):
                attribute = proto.attribute.add(name=name)
                if original is not None and original.doc_string:
                    attribute.doc_string = original.doc_string
                attribute.type = AttributeProto.GRAPHS if isinstance(value, list) else AttributeProto.GRAPH
                for body in value if isinstance(value, list) else (value,):
                    self._graph_into(body, attribute.graphs.add() if isinstance(value, list) else attribute.g, outer)
            elif original is not None and name in pristine and same_attribute(value, pristine[name]):
                proto.attribute.append(original)
            else:
                proto.attribute.append(self._attribute(name, value, node, original))

    def _attribute(self, name: str, value: Any, node: Any, original: AttributeProto | None = None) -> AttributeProto:
        if isinstance(value, Opaque):
            return value.proto
        if isinstance(value, gs.Node.AttributeRef):
            reference = AttributeProto(name=name, ref_attr_name=value.name)
            kind = next((number for number, held in _REFERENCE_TYPES.items() if held is value.type), AttributeProto.UNDEFINED)
            reference.type = cast(Any, kind)
            return reference
        if isinstance(value, gs.Constant):
            tensor = value._values.tensor if isinstance(value._values, WeightRef) else self._inline(value)
            return AttributeProto(name=name, type=AttributeProto.TENSOR, t=tensor)
        if isinstance(value, np.ndarray):
            return AttributeProto(name=name, type=AttributeProto.TENSOR, t=onnx.numpy_helper.from_array(value))
        if isinstance(value, (np.bool_, np.integer, bool)):
            value = int(value)
        elif isinstance(value, np.floating):
            value = float(value)
        elif isinstance(value, (type, np.dtype)):  # as in Cast(to=np.float32)
            value = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value))
        try:
            known = original.type if original is not None and value == [] else None
            return onnx.helper.make_attribute(name, value, attr_type=known)
        except (TypeError, ValueError) as error:
            raise PassError(
                f"attribute '{name}' of node '{node.name or node.op}' has the value {value!r}, which ONNX cannot hold.",
                "Pass developer: use int, float, str, lists of one of them, or an array.",
            ) from error

    def _inline(self, constant: Any) -> TensorProto:
        tensor: TensorProto = onnx.numpy_helper.from_array(constant.values, constant.name)
        return tensor


_REBUILT_GRAPH_FIELDS = ("node", "initializer", "input", "output", "value_info")

_REFERENCE_TYPES: dict[AttributeProto.AttributeType, Any] = {
    AttributeProto.INT: int,
    AttributeProto.FLOAT: float,
    AttributeProto.STRING: str,
    AttributeProto.TENSOR: gs.Tensor,
}


def _import_domains(proto: ModelProto | FunctionProto, listed: Any, opsets: dict[str, int], used: set[str]) -> None:
    """Imports every domain that a node uses, and what a pass asked for: a new one at the version it gave, else 1."""
    read = {normal_domain(entry.domain): entry.version for entry in proto.opset_import}
    asked = {normal_domain(entry.domain): entry.version for entry in listed or ()}
    wanted = {domain: version for domain, version in asked.items() if read.get(domain) != version}
    for entry in proto.opset_import:
        domain = normal_domain(entry.domain)
        version = wanted.get(domain, opsets.get(domain, entry.version))
        if version != entry.version:
            entry.version = version
    for domain in sorted((used | wanted.keys()) - read.keys()):
        proto.opset_import.add(domain=domain, version=wanted.get(domain) or opsets.get(domain) or 1)


def _agrees(tensor: Any, value: ValueInfoProto, declared: bool = False) -> bool:
    """Whether the tensor's facts are those of ``value``, or what inference made of them.

    ``declared`` is for inputs, where nothing is inferred: any difference then was made by a pass.
    """
    if tensor.dtype is None or not value.type.HasField("tensor_type"):
        return True
    kind = value.type.tensor_type
    if kind.elem_type and kind.elem_type != onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)):
        return False
    if tensor.shape is None or not kind.HasField("shape"):
        return not (declared and (tensor.shape is None) == kind.HasField("shape"))
    if len(tensor.shape) != len(kind.shape.dim):
        return False
    for dim, read in zip(tensor.shape, kind.shape.dim, strict=True):
        known = read.dim_value if read.HasField("dim_value") else read.dim_param or None
        if isinstance(dim, DerivedDim) and not isinstance(known, int):
            continue
        if dim != known and (declared or isinstance(known, int) or (isinstance(known, str) and isinstance(dim, str))):
            return False
    return True


def _value_info(tensor: Any) -> ValueInfoProto:
    value = ValueInfoProto(name=tensor.name)
    if tensor.dtype is None:
        return value
    kind = value.type.tensor_type
    kind.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    if tensor.shape is not None:
        kind.shape.SetInParent()
        for dim in tensor.shape:
            entry = kind.shape.dim.add()
            if isinstance(dim, (int, np.integer)) and dim >= 0:
                entry.dim_value = int(dim)
            elif isinstance(dim, str) and not dim.startswith("unk__"):
                entry.dim_param = dim
    return value


def _said(node: Any) -> tuple[Any, ...]:
    """What a new node's message was made of, attribute values by identity or, where they are plain, by value."""
    attributes = tuple((k, v if isinstance(v, (int, float, str)) else repr(v)) for k, v in node.attrs.items())
    return node.op, node.name, node.domain, attributes, tuple((getattr(node, "metadata", None) or {}).items())


def _exported_before(node: Any, inputs: list[str], outputs: list[str]) -> NodeProto | None:
    """The message that an earlier export made of a new node, if nothing about it has changed since."""
    proto, said = node.__dict__.get("_exported", (None, None))
    if proto is None or any(not isinstance(v, (int, float, str, list)) for v in node.attrs.values()):
        return None
    if said != _said(node) or list(proto.input) != inputs or list(proto.output) != outputs:
        return None
    return cast(NodeProto, proto)


def _shell(state: GraphState, source: GraphProto) -> GraphProto:
    """The source graph without what is rebuilt, unknown fields included; made once for each graph of a view."""
    if state.shell is None:
        state.shell = GraphProto()
        state.shell.CopyFrom(source)
        for name in _REBUILT_GRAPH_FIELDS:
            state.shell.ClearField(name)
    return state.shell
