"""The ``ort-session`` pass."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from pydantic import field_validator

from rewright.model.carrier import Model, all_graphs, all_nodes, copy_field
from rewright.model.elements import normal_domain
from rewright.model.errors import PassError, UsageError
from rewright.model.load import load
from rewright.model.weights import is_stub, slice_of
from rewright.passes.contract import Backend
from rewright.passes.difference import fresh_nodes, record_difference
from rewright.passes.graph_pass import ModelPass
from rewright.passes.ort.optimizers import all_but
from rewright.passes.ort.shadows import rename_shadows
from rewright.passes.session import PassSession

Level = Literal["basic", "extended", "all"]

_LEVELS: Final = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_EXTERNAL_FROM_BYTES: Final = 1024
_MOST_ROUNDS: Final = 4
_NEVER_PERSISTENT: Final = ("GeluApproximation",)


class OrtSession(ModelPass):
    """Hands the model to ONNX Runtime's own session optimizer and takes what it returns.

    1. ``only`` restricts it to the named optimizers ("GeluFusionL2", "SkipLayerNormFusion", ...); an unknown name is an error.
    2. Weights that come back unchanged are those of the source again; names, doc strings and metadata of what it left alone
       are restored, so are the model's own fields, inputs and outputs.
    3. Functions are inlined by ONNX Runtime on the way. Level "all" adds layout changes that suit this machine's processor: a
       result made so belongs on machines like it.
    4. It runs until nothing changes any more, at most four times.
    5. A model that ONNX Runtime cannot load is left as it is, with the reason.

    Source: ONNX Runtime, graph optimizations; session option ``optimized_model_filepath``.
    """

    name: ClassVar[str] = "ort-session"
    exactness = "reassociating"
    backends: ClassVar[tuple[Backend, ...]] = ("ort",)

    backend: Backend = "ort"
    level: Level = "extended"
    only: tuple[str, ...] = ()

    @field_validator("only")
    @classmethod
    def _only_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names:
            try:
                all_but(names)
            except UsageError as error:  # pydantic reports ValueErrors only
                raise ValueError(str(error)) from error
        return names

    def transform(self, session: PassSession) -> Model:
        source = result = session.model
        for _ in range(_MOST_ROUNDS):  # its own output can give ONNX Runtime something to do
            before = result
            try:
                result = self._round(before)
            except _Unloadable as error:
                session.notes.append(f"ONNX Runtime cannot load the model: {error}")
                break
            if result.fingerprint() == before.fingerprint():
                break
        fresh = list(fresh_nodes(source.proto, result.proto))
        _name(fresh, result.proto)
        for node in fresh:
            node.metadata_props.add(key="rewright.pass", value=self.name)
        if record_difference(session, result) is None:
            return source
        if self.level == "all":
            session.notes.append("level all: layouts may suit this machine's processor only")
        return source.with_proto(result.proto)

    def _round(self, source: Model) -> Model:
        folder = Path(tempfile.mkdtemp(prefix="ort-", dir=source.files.scratch))
        try:
            optimized = load(self._optimize(source, folder))
            proto = ModelProto()
            proto.CopyFrom(optimized.proto)
            _reattach_weights(source, optimized, proto)
            _restore(source.proto, proto)
            rename_shadows(proto)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if not any(slice_of(tensor).path.is_relative_to(folder) for graph in all_graphs(proto) for tensor in _stubs(graph)):
            shutil.rmtree(folder, ignore_errors=True)
        return source.with_proto(proto)

    def _optimize(self, source: Model, folder: Path) -> Path:
        """Lets ONNX Runtime write the optimized model into ``folder``; large weights go to a file beside it."""
        target = folder / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = _LEVELS[self.level]
        options.optimized_model_filepath = str(target)
        for key, value in (
            ("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER),
            ("session.disable_prepacking", "1"),
            ("session.optimized_model_external_initializers_file_name", "optimized.onnx.data"),
            ("session.optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_FROM_BYTES)),
        ):
            options.add_session_config_entry(key, value)
        disabled = all_but(self.only) if self.only else list(_NEVER_PERSISTENT)
        try:
            ort.InferenceSession(
                source.session_bytes(), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
        except Exception as error:  # onnxruntime's error classes have no public base of their own
            raise _Unloadable(str(error).splitlines()[0]) from error
        if not target.is_file():
            raise PassError("ONNX Runtime wrote no optimized model.", "Check the free space of the temporary folder.")
        return target


class _Unloadable(Exception):  # noqa: N818  (becomes a note)
    """ONNX Runtime refuses the source model."""


def _name(fresh: Sequence[NodeProto], proto: ModelProto) -> None:
    """Names what ONNX Runtime leaves without a name, or gives the name of another node."""
    times = Counter(node.name for node in all_nodes(proto))
    for node in fresh:
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
        if [value.name for value in getattr(source, name)] == [value.name for value in getattr(graph, name)]:
            graph.ClearField(name)
            getattr(graph, name).extend(getattr(source, name))
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
