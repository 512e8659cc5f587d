"""The ``constant-folding`` pass."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from pydantic import Field

from rewright.model.edit import domain_of
from rewright.model.elements import WeightRef
from rewright.model.facts import constant_node_value, constant_of, dtype_of, infer_outputs, shape_of
from rewright.model.graph import walk_bodies
from rewright.model.order import node_has_bodies
from rewright.model.weights import STUB_THRESHOLD, make_stub
from rewright.passes.cleanup.attributes import attribute_protos
from rewright.passes.cleanup.bypass import become_constants, make_initializer
from rewright.passes.cleanup.evaluation import EvaluationError, Evaluator
from rewright.passes.cleanup.shape_numbers import fold_numbers
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession
from rewright.shapes.walk import shapes_of

_NEVER: Final = {
    "RandomNormal": "it is random",
    "RandomNormalLike": "it is random",
    "RandomUniform": "it is random",
    "RandomUniformLike": "it is random",
    "Multinomial": "it is random",
    "Bernoulli": "it is random",
    "QuantizeLinear": "folding it would undo or hide the quantization",
    "DequantizeLinear": "folding it would undo or hide the quantization",
    "DynamicQuantizeLinear": "folding it would undo or hide the quantization",
}

_KINDS: Final = "fiub"
_FIRST_IR_WITH_FREE_INITIALIZERS: Final = 4
_MOST_FAILURES: Final = 8
_NOT_YET: Final = "the size of its result is not known before it is computed"


class ConstantFolding(GraphPass):
    """Computes what depends on constants only, once, and keeps the results as initializers.

    1. A standard node whose inputs are all constants is computed by ONNX Runtime on the CPU without optimizations, the whole
       region in one session (large results in batches), and the values that other nodes use become initializers. An
       initializer that an input of the graph also names can be overridden by the caller and is no constant.
    2. Never folded: random ops, Dropout that may train, ops of other domains, nodes with bodies, quantization and
       dequantization (folding them would turn int8 weights back into floats), values that are not numbers or booleans, integer
       division by a constant that contains 0 or -1, and nodes that produce an output of a graph.
    3. A result of more than ``max_bytes`` is folded only if it is no larger than the constants that only this node uses, as the
       transposed copy of a weight is: the model must not grow. Equal large results are stored once.
    4. A node that ONNX Runtime cannot compute stays, with what depends on it, and is reported.
    5. Constant nodes become initializers, in bodies too. Functions have no initializers: inline them first.
    6. Shape (with ``start`` and ``end``) and Size become initializers where the dimensions are known, and so does small integer
       arithmetic of which only known dimensions are left, as Gather and Slice of a Shape may be.

    Models below IR version 4 list their initializers as inputs; folding would change their signature, so they stay as they are.
    """

    name = "constant-folding"
    keeps_facts = True
    ort = Deferral(optimizers=("ConstantFolding",), weights="folded")

    max_bytes: int = Field(default=1 << 20, ge=0, description="Largest result, in bytes, that may make the model grow.")

    def run(self, session: PassSession) -> None:
        view = session.view
        if view.model.proto.ir_version < _FIRST_IR_WITH_FREE_INITIALIZERS:
            session.notes.append(f"constants stay nodes: IR version {view.model.proto.ir_version} lists initializers as inputs")
            return
        graphs = [view.graph, *walk_bodies(view.graph)]
        for graph in graphs:
            _constant_nodes_to_initializers(session, graph)
        session.editor.finish()
        folding = _Folding(self, session, graphs)
        if folding.has_candidates():
            folding.fold()
            folding.report()


def _constant_nodes_to_initializers(session: PassSession, graph: Any) -> None:
    editor, removed = session.editor, []
    for node in graph.nodes:
        if node.op != "Constant" or domain_of(node) or len(node.outputs) != 1:
            continue
        if editor.is_graph_output(node.outputs[0]) or not editor.is_used(node.outputs[0]):
            continue
        values = _held_values(session, node)
        if values is not None:
            editor.remove(node)
            make_initializer(graph, node.outputs[0], values)
            removed.append(node)
    if removed:
        session.record(graph, removed, [])


def _held_values(session: PassSession, node: Any) -> Any | None:
    """What the Constant node holds: a reference to the tensor in its attribute, or an array."""
    files = session.view.model.files
    tensor = _source_tensor(node)
    if tensor is None:
        return constant_node_value(node)
    if len(tensor.raw_data) >= STUB_THRESHOLD:
        tensor = make_stub(tensor, files.spill(tensor.raw_data))
    return WeightRef(tensor, files)


def _source_tensor(node: Any) -> TensorProto | None:
    """The tensor in the node's attribute, as it was read."""
    protos = attribute_protos(node) or ()
    return next((item.t for item in protos if item.name == "value" and item.type == AttributeProto.TENSOR), None)


class _Folding:
    def __init__(self, options: ConstantFolding, session: PassSession, graphs: list[Any]) -> None:
        self._options = options
        self._session = session
        self._graphs = graphs
        self._refused: dict[int, tuple[Any, str]] = {}
        self._failures = 0
        self._opset = session.view.opset_of(session.view.graph)

    def has_candidates(self) -> bool:
        """Whether inference can be of use: without it, a model that has nothing to fold costs one walk."""
        return any(node.op in ("Shape", "Size") or self._all_constant(node, {}) for graph in self._graphs for node in graph.nodes)

    def fold(self) -> None:
        """Folds until nothing is left: results may be shapes, and may tell the sizes that further nodes wait for.

        onnx is asked last, when folding has made known what the rules can find.
        """
        evaluator = Evaluator(self._session.view)
        while True:
            shapes_of(self._session.view).refresh()
            fold_numbers(self._session)
            if not self._fold_region(evaluator) and not self._session.ensure_facts():
                return

    def _fold_region(self, evaluator: Evaluator) -> list[Any]:
        """Computes what can be computed now; returns the new constants."""
        while self._failures < _MOST_FAILURES:
            nodes = self._region()
            wanted = self._frontier(nodes)
            if not wanted:
                return []
            try:
                values = evaluator.values(nodes, wanted)
            except EvaluationError as error:
                self._failures += 1
                self._refuse(error.node, f"ONNX Runtime cannot compute it: {error.reason}")
                continue
            for node in nodes:
                if any(id(tensor) in values for tensor in node.outputs):
                    become_constants(self._session, node, values)
            return [tensor for tensor, _ in wanted]
        return []

    def report(self) -> None:
        for node, reason in self._refused.values():
            if getattr(node, "alive", True):
                self._session.reject(node, reason)

    def _refuse(self, node: Any, reason: str) -> None:
        self._refused[id(node)] = (node, reason)

    def _gives_output(self, node: Any) -> bool:
        return any(self._session.editor.is_graph_output(tensor) for tensor in node.outputs)

    def _all_constant(self, node: Any, computed: dict[int, int]) -> bool:
        named = [tensor for tensor in node.inputs if tensor.name]
        return bool(named) and all(isinstance(tensor, gs.Constant) or id(tensor) in computed for tensor in named)

    def _region(self) -> list[Any]:
        """The foldable nodes in topological order: graphs before their bodies, which may use what the graphs compute."""
        computed: dict[int, int] = {}
        region = []
        for graph in self._graphs:
            for node in graph.nodes:
                if not getattr(node, "alive", True) or not self._all_constant(node, computed):
                    continue
                if domain_of(node) or node_has_bodies(node):
                    continue
                held = self._refused.get(id(node))
                if held is not None and held[1] != _NOT_YET:
                    continue
                reason = self._reason_against(node) or self._size_against(node, computed)
                if reason is not None:
                    self._refuse(node, reason)
                else:
                    region.append(node)
                    computed.update((id(tensor), _nbytes(tensor) or 0) for tensor in node.outputs if tensor.name)
        return region

    def _reason_against(self, node: Any) -> str | None:
        if node.op in _NEVER:
            return _NEVER[node.op]
        if node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2].name:
            return "it may train"
        if self._gives_output(node):
            return "it produces an output of the graph"
        if attribute_protos(node) is None:
            return "its attributes are not known"
        if node.op in ("Div", "Mod"):
            kind = dtype_of(node.inputs[1])
            if kind is None or kind.kind != "f":
                divisor = constant_of(node.inputs[1])
                if divisor is None:
                    return _NOT_YET
                if np.isin(divisor, (0, -1)).any():
                    return "an integer division by 0 or -1 may stop the process"
        return None

    def _size_against(self, node: Any, computed: dict[int, int]) -> str | None:
        outputs = [tensor for tensor in node.outputs if tensor.name]
        if any(_nbytes(tensor) is None for tensor in outputs):
            infer_outputs(node, self._opset)
        sizes = [_nbytes(tensor) for tensor in outputs]
        if None in sizes:
            return _NOT_YET
        if any(dtype_of(tensor).kind not in _KINDS or dtype_of(tensor).num >= 256 for tensor in outputs):  # type: ignore[union-attr]
            return "its dtype is one that Python cannot take from ONNX Runtime"
        total = sum(size or 0 for size in sizes)
        if total <= self._options.max_bytes:
            return None
        freed = sum(
            computed.get(id(tensor)) or _nbytes(tensor) or 0
            for tensor in {id(tensor): tensor for tensor in node.inputs if tensor.name}.values()
            if {id(user) for user in self._session.editor.consumers(tensor)} == {id(node)}
        )
        return None if total <= freed else f"its result of {total} bytes would make the model grow by more than max_bytes"

    def _frontier(self, nodes: list[Any]) -> list[tuple[Any, int]]:
        """The values of the region that something outside it reads, each with its size."""
        inside = {id(node) for node in nodes}
        return [
            (tensor, _nbytes(tensor) or 0)
            for node in nodes
            for tensor in node.outputs
            if tensor.name and any(id(user) not in inside for user in self._session.editor.consumers(tensor))
        ]


def _nbytes(tensor: Any) -> int | None:
    """The bytes of the value, if dtype and shape are known."""
    shape, dtype = shape_of(tensor), dtype_of(tensor)
    if shape is None or dtype is None or not all(isinstance(dim, int) for dim in shape):
        return None
    count = int(dtype.itemsize)
    for dim in shape:
        count *= int(dim)  # type: ignore[arg-type]
    return count
