"""Models on their way to ONNX Runtime's own optimizers and back: what those drop or rewrite on the way is restored."""

from __future__ import annotations

import importlib
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from rewright.model.carrier import Model, all_graphs, all_nodes, bodies, copy_field
from rewright.model.elements import normal_domain
from rewright.model.errors import RewrightError
from rewright.model.load import load
from rewright.model.regions import reads
from rewright.model.weights import is_stub, slice_of
from rewright.passes.difference import fresh_nodes
from rewright.passes.ort.ordering import restore_order
from rewright.passes.ort.renamed import restore_names
from rewright.passes.ort.shadows import rename_constants, rename_shadows
from rewright.passes.session import PassSession

OPTIMIZE: Final = "rewright.passes.ort.native:optimize"
RUN_CLASSES: Final = "rewright.passes.ort.classes:run"

Weights = Literal["ignored", "folded", "read"]
_HIDDEN_FROM_BYTES: Final = 2**16


class NotCarriedOut(Exception):  # noqa: N818  (becomes a note)
    """ONNX Runtime refuses the model, raises, or dies of it."""


def call(session: PassSession, function: str, payload: bytes, arguments: Mapping[str, Any]) -> Any:
    """What ``function``, "package.module:name", returns; in another process where there is one.

    Raises:
        NotCarriedOut: it raised, or the process died.
    """
    if session.isolation is not None:
        try:
            return session.isolation.call(function, payload, arguments)
        except RewrightError as error:
            raise NotCarriedOut(_first_line(error.message)) from error
    module, _, attribute = function.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)(payload, dict(arguments))
    except Exception as error:  # onnxruntime's error classes have no public base of their own
        raise NotCarriedOut(_first_line(str(error)) or type(error).__name__) from error


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]


def exchanged(source: Model, work: Callable[[bytes, Path], str], *, weights: Weights = "read") -> Model | None:
    """The model that ``work`` has written, given the serialized skeleton and a folder, with everything else as it was.

    Args:
        source: the model.
        work: returns the path of what it wrote in the folder; an empty one where there is nothing.
        weights: which of the large weights are handed over, see ``Deferral``; the others are given as inputs, so that nobody has
            to read or write them.

    Returns:
        None where nothing was written. New nodes have names of their own.
    """
    folder = Path(tempfile.mkdtemp(prefix="ort-", dir=source.files.scratch))
    try:
        hidden = _hidden(source, weights)
        given = _with_inputs(source.proto, hidden).SerializeToString() if hidden else source.session_bytes()
        path = work(given, folder)
        if not path:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        optimized = load(path)
        proto = ModelProto()
        proto.CopyFrom(optimized.proto)
        _reattach_weights(source, optimized, proto)
        _show(proto.graph, hidden)
        restore_names(source.proto.graph, proto.graph)
        _restore(source.proto, proto)
        rename_shadows(proto)
        rename_constants(source.proto.graph, proto.graph)
        _remove_unused(source.proto, proto)
        restore_order(source.proto.graph, proto.graph)
        _name(source.proto, proto)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not any(slice_of(tensor).path.is_relative_to(folder) for graph in all_graphs(proto) for tensor in _stubs(graph)):
        shutil.rmtree(folder, ignore_errors=True)
    return source.with_proto(proto)


def _hidden(source: Model, weights: Weights) -> dict[str, TensorProto]:
    """The large weights of the main graph that are not handed over."""
    if weights == "read":
        return {}
    graph = source.proto.graph
    shown = {value.name for value in (*graph.input, *graph.output)}
    large = {
        tensor.name: tensor
        for tensor in _stubs(graph)
        if len(tensor.dims) > 1 and slice_of(tensor).length >= _HIDDEN_FROM_BYTES and tensor.name not in shown
    }
    if weights == "folded" and large:
        shown = _foldable(graph)
    return {name: tensor for name, tensor in large.items() if name not in shown}


def _foldable(graph: GraphProto) -> set[str]:
    """What is read by a node, or for one in a body, that has nothing but constants to read."""
    constant = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    found: set[str] = set()
    for node in graph.node:
        names = reads(node)
        if all(name in constant for name in names):
            constant.update(node.output)
            found.update(names)
        elif node.attribute and next(bodies(node), None) is not None:
            found.update(names)
    return found


def _with_inputs(source: ModelProto, hidden: Mapping[str, TensorProto]) -> ModelProto:
    proto = ModelProto()
    proto.CopyFrom(source)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in hidden]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in hidden.values()
    )
    return proto


def _show(graph: GraphProto, hidden: Mapping[str, TensorProto]) -> None:
    if not hidden:
        return
    kept = [value for value in graph.input if value.name not in hidden]
    del graph.input[:]
    graph.input.extend(kept)
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for name, tensor in hidden.items() if name not in known)


def _name(source: ModelProto, proto: ModelProto) -> None:
    """Names what ONNX Runtime leaves without a name, or gives the name of another node."""
    times = Counter(node.name for node in all_nodes(proto))
    for node in fresh_nodes(source, proto):
        if node.name and times[node.name] == 1:
            continue
        times[node.name] -= 1
        base = node.name or f"{node.op_type}_{next(filter(None, node.output), '')}"
        numbered = (f"{base}_{number}" for number in itertools.count(1))
        node.name = next(name for name in itertools.chain((base,), numbered) if not times[name])
        times[node.name] = 1


def _stubs(graph: GraphProto) -> list[TensorProto]:
    return [tensor for tensor in graph.initializer if is_stub(tensor)]


def _reattach_weights(source: Model, optimized: Model, proto: ModelProto) -> None:
    """Points every weight that came back unchanged to the bytes it came from, so that no copy is kept."""
    originals = {tensor.name: tensor for graph in all_graphs(source.proto) for tensor in _stubs(graph)}
    for graph in all_graphs(proto):
        for tensor in _stubs(graph):
            original = originals.get(tensor.name)
            if original is None or original.data_type != tensor.data_type or list(original.dims) != list(tensor.dims):
                continue
            was, now = slice_of(original), slice_of(tensor)
            if was.length == now.length and source.files.bytes_of(was) == optimized.files.bytes_of(now):
                tensor.CopyFrom(original)


def _remove_unused(source: ModelProto, proto: ModelProto) -> None:
    """Takes out constants that nothing reads any more, and those that came along and that nothing has read."""
    read = {name for node in proto.graph.node for name in reads(node)}
    read.update(value.name for value in (*proto.graph.output, *proto.graph.input))
    kept_anyway = {tensor.name for tensor in source.graph.initializer}
    kept_anyway -= {name for node in source.graph.node for name in reads(node)}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read or tensor.name in kept_anyway]
    if len(kept) < len(proto.graph.initializer):
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


def _restore(source: ModelProto, proto: ModelProto) -> None:
    """Gives back what ONNX Runtime drops or rewrites although no optimizer touched it."""
    for descriptor, _ in source.ListFields():
        if descriptor.name not in ("graph", "functions", "opset_import"):
            proto.ClearField(descriptor.name)
            copy_field(source, proto, descriptor.name)
    for name in ("producer_name", "producer_version", "domain", "doc_string"):
        if not source.HasField(name):
            proto.ClearField(name)
    _restore_imports(source, proto)
    _restore_graph(source.graph, proto.graph)


def _restore_imports(source: ModelProto, proto: ModelProto) -> None:
    """ONNX Runtime imports every domain it knows; the model keeps its own and those it needs now."""
    own = {normal_domain(entry.domain) for entry in source.opset_import}
    used = {normal_domain(node.domain) for node in all_nodes(proto)}
    kept = [entry for entry in proto.opset_import if normal_domain(entry.domain) in used - own]
    imports = [*source.opset_import, *kept]
    replaced = ModelProto()
    replaced.opset_import.extend(imports)
    del proto.opset_import[:]
    proto.opset_import.extend(replaced.opset_import)


def _restore_graph(source: GraphProto, graph: GraphProto) -> None:
    for name in ("input", "output"):
        graph.ClearField(name)
        getattr(graph, name).extend(getattr(source, name))
    made = {name for node in graph.node for name in node.output}
    graph.ClearField("value_info")  # what was told on the way is not the model's own
    graph.value_info.extend(value for value in source.value_info if value.name in made)
    graph.ClearField("metadata_props")
    graph.metadata_props.extend(source.metadata_props)
    if source.HasField("doc_string"):
        graph.doc_string = source.doc_string
    graph.name = source.name
    originals = {tuple(node.output): node for node in source.node}
    for node in graph.node:
        original = originals.get(tuple(node.output))
        if original is not None and _same_node(original, node):
            node.CopyFrom(original)


def _same_node(original: NodeProto, node: NodeProto) -> bool:
    """Whether the two compute the same from the same values; ONNX Runtime writes default attributes out."""
    same_op = original.op_type == node.op_type and normal_domain(original.domain) == normal_domain(node.domain)
    if not same_op or list(original.input) != list(node.input):
        return False
    mine = {attribute.name: attribute for attribute in node.attribute}
    return all(_same_attribute(attribute, mine.get(attribute.name)) for attribute in original.attribute)


def _same_attribute(original: AttributeProto, mine: AttributeProto | None) -> bool:
    if mine is None:
        return False
    left, right = AttributeProto(), AttributeProto()
    left.CopyFrom(original)
    right.CopyFrom(mine)
    for side in (left, right):
        side.ClearField("doc_string")
    return bool(left == right)
