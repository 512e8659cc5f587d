"""From the editing view back to a skeleton. What was not touched is exported as the very message that was read."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from rewright.model.carrier import Model
from rewright.model.elements import Constant, Opaque, WeightRef, normal_domain
from rewright.model.errors import PassError
from rewright.model.order import node_has_bodies, stable_order
from rewright.model.view import View
from rewright.model.weights import STUB_THRESHOLD, Slice, WeightFiles, make_stub, slice_of


def export(view: View) -> Model:
    """The model that the view shows; see ``View.to_model``."""
    return _Exporter(view).model()


class _Exporter:
    def __init__(self, view: View) -> None:
        self._view = view
        self._files: WeightFiles = view.model.files

    def model(self) -> Model:
        source = self._view.model.proto
        proto = ModelProto()
        for descriptor, value in source.ListFields():
            if descriptor.name in ("graph", "functions"):
                continue
            if hasattr(value, "extend"):
                getattr(proto, descriptor.name).extend(value)
            else:
                setattr(proto, descriptor.name, value)
        self._graph_into(self._view.graph, proto.graph, set())
        for function in self._view.functions:
            proto.functions.append(self._function(function))
        self._import_domains(proto)
        return self._view.model.with_proto(proto)

    def _import_domains(self, proto: ModelProto) -> None:
        """Imports every domain that a node uses; a new one at the version that the view was told, else 1."""
        imported = {normal_domain(entry.domain) for entry in proto.opset_import}
        for entry in proto.opset_import:
            wanted = self._view.opsets.get(normal_domain(entry.domain), entry.version)
            if wanted != entry.version:
                entry.version = wanted
        used = {normal_domain(node.domain) for graph in self._view.graphs() for node in graph.nodes}
        for domain in sorted(used - imported):
            proto.opset_import.add(domain=domain, version=self._view.opsets.get(domain) or 1)

    def _graph_into(self, graph: Any, proto: GraphProto, outer: set[str]) -> None:
        source: GraphProto | None = graph.state.proto
        graph.nodes = stable_order(graph.nodes)
        names = outer | graph.state.initializers.keys()
        extra = self._new_constants(graph, names)
        proto.node.extend(self._nodes(graph, names | extra.keys()))
        proto.name = graph.name or ""
        if source is not None:
            for descriptor, value in source.ListFields():
                if descriptor.name in _PLAIN_GRAPH_FIELDS:
                    getattr(proto, descriptor.name).extend(value)
                elif descriptor.name == "doc_string":
                    proto.doc_string = value
        elif graph.doc_string:
            proto.doc_string = graph.doc_string
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
        source: GraphProto | None = graph.state.proto
        held = graph.state.initializers
        done: set[str] = set()
        for tensor in source.initializer if source is not None else ():
            name = tensor.name
            constant = held.get(name)
            if constant is None:
                if name in graph.state.input_defaults:
                    proto.initializer.append(tensor)
                    done.add(name)
                continue
            proto.initializer.append(self._tensor(constant))
            done.add(name)
        for name, constant in (*held.items(), *extra.items()):
            if name not in done:
                proto.initializer.append(self._tensor(constant))
                done.add(name)

    def _tensor(self, constant: Any) -> TensorProto:
        held = constant._values
        if isinstance(held, WeightRef):
            if held.tensor.name == constant.name:
                return held.tensor
            renamed = TensorProto()
            renamed.CopyFrom(held.tensor)
            renamed.name = constant.name
            return renamed
        if isinstance(held, gs.ir.tensor.LazyValues):
            return held.tensor  # type: ignore[no-any-return]
        cached: tuple[Any, TensorProto] | None = getattr(constant, "_exported", None)
        if cached is None or cached[0] is not held or cached[1].name != constant.name:
            cached = (held, self._encoded(constant.name, held))
            constant._exported = cached
        return cached[1]

    def _encoded(self, name: str, values: np.ndarray[Any, Any]) -> TensorProto:
        tensor: TensorProto = onnx.numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
        if len(tensor.raw_data) < STUB_THRESHOLD:
            return tensor
        return make_stub(tensor, self._files.spill(tensor.raw_data))

    def _signature(self, graph: Any, proto: GraphProto, source: GraphProto | None) -> None:
        """Inputs and outputs: the source's own entries wherever the name is still there."""
        sources = {value.name: value for value in (*source.input, *source.output)} if source is not None else {}
        listed = {tensor.name for tensor in graph.inputs}
        if source is not None:
            # Before IR 4 initializers are listed among the inputs; the view keeps those as constants.
            kept = listed | (graph.state.input_defaults.keys() & graph.state.initializers.keys())
            proto.input.extend(value for value in source.input if value.name in kept)
        present = {value.name for value in proto.input}
        proto.input.extend(_value_info(tensor) for tensor in graph.inputs if tensor.name not in present)
        for tensor in graph.outputs:
            proto.output.append(sources.get(tensor.name) or _value_info(tensor))

    def _value_info(self, graph: Any, proto: GraphProto, source: GraphProto | None) -> None:
        """Keeps the source's entries for values that still exist; adds what is known about outputs of non-standard ops,
        which onnx's shape inference cannot find again."""
        produced = {tensor.name for node in graph.nodes for tensor in node.outputs}
        present: set[str] = set()
        if source is not None and source.value_info:
            kept = [value for value in source.value_info if value.name in produced or value.name in graph.state.initializers]
            proto.value_info.extend(kept)
            present = {value.name for value in kept}
        outputs = {tensor.name for tensor in graph.outputs}
        for node in graph.nodes:
            if node.domain and normal_domain(node.domain) and getattr(node, "proto", None) is None:
                for tensor in node.outputs:
                    if tensor.name and tensor.name not in present | outputs and tensor.dtype is not None:
                        proto.value_info.append(_value_info(tensor))

    def _function(self, function: Any) -> FunctionProto:
        proto = FunctionProto()
        source = function.state.proto
        proto.CopyFrom(source)
        del proto.node[:]
        function.nodes = stable_order(function.nodes)
        extra = self._new_constants(function, set())
        for name, constant in extra.items():  # functions have no initializers
            tensor = self._tensor(constant)
            node = proto.node.add(op_type="Constant", output=[name], name=name)
            node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
        proto.node.extend(self._nodes(function, set(extra)))
        imported = {normal_domain(entry.domain) for entry in proto.opset_import}
        for domain in sorted({normal_domain(node.domain) for node in function.nodes} - imported):
            proto.opset_import.add(domain=domain, version=self._view.opsets.get(domain) or 1)
        return proto

    def _node(self, node: Any, outer: set[str]) -> NodeProto:
        source: NodeProto | None = getattr(node, "proto", None)
        inputs = [tensor.name for tensor in node.inputs]
        outputs = [tensor.name for tensor in node.outputs]
        has_bodies = node_has_bodies(node)
        if source is not None and not has_bodies and not getattr(node, "metadata", None):
            same_io = inputs == list(source.input) and outputs == list(source.output)
            if same_io and node.op == source.op_type and node.name == source.name and not node.attributes_changed():
                return source
        proto = NodeProto()
        if source is not None:
            proto.CopyFrom(source)
            del proto.input[:]
            del proto.output[:]
        proto.input.extend(inputs)
        proto.output.extend(outputs)
        proto.op_type = node.op
        if node.name or (source is not None and source.HasField("name")):
            proto.name = node.name
        if node.domain:
            proto.domain = node.domain
        if source is None or has_bodies or node.attributes_changed():
            del proto.attribute[:]
            self._attributes(node, source, proto, outer)
        for key, value in (getattr(node, "metadata", None) or {}).items():
            proto.metadata_props.add(key=key, value=value)
        return proto

    def _attributes(self, node: Any, source: NodeProto | None, proto: NodeProto, outer: set[str]) -> None:
        originals = {attribute.name: attribute for attribute in source.attribute} if source is not None else {}
        pristine = getattr(node, "_pristine", None) or {}
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                attribute = proto.attribute.add(name=name, type=AttributeProto.GRAPH)
                if name in originals and originals[name].doc_string:
                    attribute.doc_string = originals[name].doc_string
                self._graph_into(value, attribute.g, outer)
            elif name in originals and name in pristine and _equal(value, pristine[name]):
                proto.attribute.append(originals[name])
            else:
                proto.attribute.append(self._attribute(name, value, node))

    def _attribute(self, name: str, value: Any, node: Any) -> AttributeProto:
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
        try:
            return onnx.helper.make_attribute(name, value)
        except (TypeError, ValueError) as error:
            raise PassError(
                f"attribute '{name}' of node '{node.name or node.op}' has the value {value!r}, which ONNX cannot hold.",
                "Pass developer: use int, float, str, lists of one of them, or an array.",
            ) from error

    def _inline(self, constant: Any) -> TensorProto:
        tensor: TensorProto = onnx.numpy_helper.from_array(constant.values, constant.name)
        return tensor


_PLAIN_GRAPH_FIELDS = ("sparse_initializer", "quantization_annotation", "metadata_props")

_REFERENCE_TYPES: dict[int, Any] = {
    AttributeProto.INT: int,
    AttributeProto.FLOAT: float,
    AttributeProto.STRING: str,
    AttributeProto.TENSOR: gs.Tensor,
}


def _equal(left: Any, right: Any) -> bool:
    return left is right or (isinstance(left, (int, float, str, bytes, list)) and bool(left == right))


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


def weight_slice(constant: Any) -> Slice | None:
    """Where an untouched constant's bytes lie, or None if they are inline or were replaced."""
    held = constant._values
    if isinstance(held, WeightRef) and held.tensor.external_data:
        return slice_of(held.tensor)
    return None
