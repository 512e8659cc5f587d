"""The editing view: a ``gs.Graph`` over a model, and the way back. The boundary loses nothing and copies no weight.

Nodes that a pass does not touch are exported as the very messages that were read, so doc strings, metadata, overloads and
unknown fields survive. What graphsurgeon's own import and export get wrong is listed, and pinned, in
tests/model/test_graphsurgeon_traps.py.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto

from rewright.model.carrier import Model
from rewright.model.elements import (
    Node,
    Opaque,
    Variable,
    WeightRef,
    make_constant,
    make_variable,
    synchronized,
)
from rewright.model.graph import Function, Graph, state_of, walk_bodies
from rewright.model.weights import WeightFiles

FIRST_IR_WITH_OPTIONAL_INPUT_LISTING = 4
"""Before, every initializer is listed among the inputs."""

Scope = dict[str, Any]


class View:
    """``gs.Graph`` objects over a model: ``graph``, its bodies and the functions.

    Import once, let any number of passes edit, export once for each check with ``to_model``. The source model is not changed.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.opsets = {_standard(entry.domain): entry.version for entry in model.proto.opset_import}
        self.facts_stale = True
        self.inference_runs = 0
        self.facts_problem = ""
        self.shapes: Any = None  # rewright.shapes.walk keeps there what it knows
        self.names: set[str] = set()  # rewright.model.names keeps there what was in use so far
        importer = _Importer(model, self.opsets)
        with collector_paused():
            self.graph: Any = importer.main()
            self.functions: list[Any] = [importer.function(function) for function in model.proto.functions]
        for graph in self.graphs():
            graph._functions = self.functions

    def graphs(self) -> Iterator[Any]:
        """The main graph, every body, every function and their bodies."""
        for top in (self.graph, *self.functions):
            for graph in (top, *walk_bodies(top)):
                state_of(graph)  # a body that a pass made with graphsurgeon has none yet
                yield graph

    def opset_of(self, graph: Any, domain: str = "") -> int:
        """The version of ``domain`` that the nodes of ``graph`` follow; 0 if it is not imported."""
        opsets = state_of(graph).opsets or self.opsets
        return int(opsets.get(_standard(domain), 0))

    def to_model(self) -> Model:
        """The model as edited. Equal to the source, byte for byte, where nothing was edited."""
        from rewright.model.export import export

        return export(self)


@contextmanager
def collector_paused() -> Iterator[None]:
    """An import makes a million objects and no garbage; collecting meanwhile would take a third of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


class _Importer:
    def __init__(self, model: Model, opsets: dict[str, int]) -> None:
        self._model = model
        self._opsets = opsets
        self._ir_version = model.proto.ir_version
        self._has_bodies = len(model.node_lists) > 1
        self._decoder = self._decode_plain  # bound once: a hundred thousand nodes refer to it

    def main(self) -> Any:
        proto = self._model.proto
        graph = self.graph(proto.graph, [])
        graph.producer_name, graph.producer_version = proto.producer_name, proto.producer_version
        graph.ir_version = proto.ir_version
        return graph

    def graph(self, proto: GraphProto, outer: list[Scope]) -> Any:
        graph = Graph(name=proto.name, doc_string=proto.doc_string, import_domains=_copies(self._model.proto.opset_import))
        graph.state.opsets = self._opsets
        graph.state.proto = proto
        scope: Scope = {}
        initial = {tensor.name: tensor for tensor in proto.initializer}
        for value in proto.input:
            default = initial.get(value.name)
            if default is not None:
                graph.state.input_defaults[value.name] = default
                if self._ir_version < FIRST_IR_WITH_OPTIONAL_INPUT_LISTING:
                    continue
                del initial[value.name]
            scope[value.name] = variable = _typed(value)
            graph.inputs.append(variable)
        for name, tensor in initial.items():
            constant = make_constant(name, WeightRef(tensor, self._model.files))
            scope[name] = graph.state.initializers[name] = constant
        graph.nodes = self.nodes(proto.node, scope, outer)
        for value in proto.value_info:
            declared = scope.get(value.name)
            if isinstance(declared, Variable) and declared.dtype is None:
                _set_type(declared, value)
        graph.outputs = [_lookup(value.name, scope, outer) for value in proto.output]
        for variable, value in zip(graph.outputs, proto.output, strict=True):
            if isinstance(variable, Variable) and variable.dtype is None:
                _set_type(variable, value)
        return graph

    def function(self, proto: FunctionProto) -> Any:
        opsets = {_standard(entry.domain): entry.version for entry in proto.opset_import}
        attributes = dict.fromkeys(proto.attribute) | {
            item.name: decode_attribute(item, self._model.files) for item in proto.attribute_proto
        }
        function = Function(proto.name, proto.domain, doc_string=proto.doc_string, attrs=attributes)
        function.import_domains = _copies(proto.opset_import)
        function.state.opsets = opsets
        function.state.proto = proto
        scope: Scope = {}
        for name in proto.input:
            scope[name] = variable = make_variable(name)
            function.inputs.append(variable)
        function.nodes = self.nodes(proto.node, scope, [])
        function.outputs = [_lookup(name, scope, []) for name in proto.output]
        return function

    def nodes(self, protos: Any, scope: Scope, outer: list[Scope]) -> list[Any]:
        for proto in protos:
            for name in proto.output:
                if name and name not in scope:
                    scope[name] = make_variable(name)
        scopes = [scope, *outer]
        return [self._node(proto, scope, outer, scopes) for proto in protos]

    def _node(self, proto: NodeProto, scope: Scope, outer: list[Scope], scopes: list[Scope]) -> Node:
        node = Node.__new__(Node)
        state = node.__dict__
        state["op"] = proto.op_type
        state["name"] = proto.name
        state["domain"] = proto.domain or None
        state["proto"] = proto
        state["_decoder"] = self._decoder
        names, made = list(proto.input), list(proto.output)
        state["as_read"] = state["op"], state["name"], state["domain"], names, made
        inputs = []
        for name in names:
            tensor = scope.get(name)
            if tensor is None:
                tensor = _lookup(name, scope, outer)
            inputs.append(tensor)
            list.append(tensor.outputs, node)
        outputs = []
        for name in made:
            tensor = scope[name] if name else make_variable("")
            outputs.append(tensor)
            list.append(tensor.inputs, node)
        state["inputs"] = synchronized(node, "outputs", inputs)
        state["outputs"] = synchronized(node, "inputs", outputs)
        if self._has_bodies and any(attribute.type in _GRAPH_TYPES for attribute in proto.attribute):
            state["has_bodies"] = True
            decoded = {attribute.name: self._attribute(attribute, scopes) for attribute in proto.attribute}
            state["_attrs"] = decoded
            state["_pristine"] = {k: list(v) if isinstance(v, list) else v for k, v in decoded.items()}
        return node

    def _attribute(self, attribute: AttributeProto, scopes: list[Scope]) -> Any:
        if not attribute.ref_attr_name:
            if attribute.type == AttributeProto.GRAPH:
                return self.graph(attribute.g, scopes)
            if attribute.type == AttributeProto.GRAPHS:
                return [self.graph(graph, scopes) for graph in attribute.graphs]
        return decode_attribute(attribute, self._model.files)

    def _decode_plain(self, node: Node) -> dict[str, Any]:
        proto, files = node.proto, self._model.files
        return {} if proto is None else {item.name: decode_attribute(item, files) for item in proto.attribute}


_GRAPH_TYPES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def _copies(imports: Any) -> list[onnx.OperatorSetIdProto]:
    """Copies: graphsurgeon keeps the list it is given and appends to it."""
    copies = []
    for entry in imports:
        copy = onnx.OperatorSetIdProto()
        copy.CopyFrom(entry)
        copies.append(copy)
    return copies


def _lookup(name: str, scope: Scope, outer: list[Scope]) -> Any:
    if not name:
        return make_variable("")
    if name in scope:
        return scope[name]
    for enclosing in outer:
        if name in enclosing:
            return enclosing[name]
    # Dangling: the structure gate reports it; the view must not fail on it.
    scope[name] = made = make_variable(name)
    return made


def _typed(value: onnx.ValueInfoProto) -> Variable:
    variable = make_variable(value.name)
    _set_type(variable, value)
    return variable


def _set_type(variable: Any, value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    if kind is not None:
        variable.type = kind
    if kind == "tensor_type":
        set_facts(variable, value.type.tensor_type)


MADE_UP_SYMBOL = "unk__"
"""How onnx's shape inference names a dimension that it knows nothing about; it counts from 0 in each run."""


class DerivedDim(str):
    """A dimension that was derived, not declared: it says something about a value and never changes a declaration."""

    __slots__ = ()


def set_facts(variable: Any, tensor_type: Any, run: int = 0, names: Mapping[str, str] | None = None) -> None:
    """Fills what ``tensor_type`` (onnx.TypeProto.Tensor) says and the variable does not know; never erases a fact.

    Symbols that shape inference made up get ``run`` into their name: "unk__0" of two runs are two dimensions. A name in
    ``names`` is the dimension that it stands for there, which may be a derived one.
    """
    if variable.dtype is None and tensor_type.elem_type:
        variable.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
    if tensor_type.HasField("shape"):
        known = variable.shape
        dims = [dim.dim_value if dim.HasField("dim_value") else _symbol(dim.dim_param, run) for dim in tensor_type.shape.dim]
        if names:
            dims = [names.get(dim, dim) if isinstance(dim, str) else dim for dim in dims]
        if known is None or len(known) != len(dims):
            variable.shape = dims if known is None else known
        else:
            variable.shape = [_better(old, new) for old, new in zip(known, dims, strict=True)]


def _symbol(name: str, run: int) -> str | None:
    if run and name.startswith(MADE_UP_SYMBOL):
        return f"{MADE_UP_SYMBOL}run{run}_{name.removeprefix(MADE_UP_SYMBOL)}"
    return name or None


def _better(old: Any, new: Any) -> Any:
    if isinstance(old, int) or new is None:
        return old
    if isinstance(new, int) or old is None:
        return new
    return new if old.startswith(MADE_UP_SYMBOL) and not new.startswith(MADE_UP_SYMBOL) else old


def decode_attribute(attribute: AttributeProto, files: WeightFiles) -> Any:
    """An attribute's value: int, float, str (bytes where it is not UTF-8), list of those, Constant for a tensor, or Opaque."""
    if attribute.ref_attr_name:
        return gs.Node.AttributeRef(attribute.ref_attr_name, _TYPES.get(attribute.type, object))
    kind = attribute.type
    if kind == AttributeProto.INT:
        return attribute.i
    if kind == AttributeProto.FLOAT:
        return attribute.f
    if kind == AttributeProto.STRING:
        return _text(attribute.s)
    if kind == AttributeProto.INTS:
        return list(attribute.ints)
    if kind == AttributeProto.FLOATS:
        return list(attribute.floats)
    if kind == AttributeProto.STRINGS:
        return [_text(item) for item in attribute.strings]
    if kind == AttributeProto.TENSOR:
        return make_constant(attribute.t.name, WeightRef(attribute.t, files))
    return Opaque(attribute)


_TYPES: dict[int, type] = {
    AttributeProto.INT: int,
    AttributeProto.FLOAT: float,
    AttributeProto.STRING: str,
    AttributeProto.INTS: list,
    AttributeProto.FLOATS: list,
    AttributeProto.STRINGS: list,
    AttributeProto.TENSOR: gs.Tensor,
}


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
