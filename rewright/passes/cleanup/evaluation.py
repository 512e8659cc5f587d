"""Computing constant nodes with ONNX Runtime: one session for all small results, and one for each batch of large ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from rewright.model.carrier import Model
from rewright.model.elements import WeightRef
from rewright.model.facts import dtype_of
from rewright.model.tensors import tensor_proto
from rewright.model.view import View
from rewright.model.weights import STUB_THRESHOLD, Slice, make_stub
from rewright.passes.cleanup.attributes import attribute_protos

Array = np.ndarray[Any, Any]

_SMALL: Final = 1 << 16
_BATCH: Final = 1 << 26
"""Bytes of large results that may be in memory at once; they go to the spill file after each session."""


class EvaluationError(Exception):
    """ONNX Runtime cannot compute a node of the region."""

    def __init__(self, node: Any, reason: str) -> None:
        super().__init__(reason)
        self.node = node
        self.reason = reason


class Evaluator:
    """Computes values that depend on constants only, without any optimization, on the CPU.

    Weights are handed over by reference. Equal large results share their place in the spill file.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._spilled: dict[bytes, Slice] = {}

    def values(self, nodes: list[Any], wanted: list[tuple[Any, int]]) -> dict[int, Any]:
        """The values of ``wanted``, by identity: arrays, or references into the spill file for large ones.

        Args:
            nodes: standard nodes in topological order that read constants and each other's outputs.
            wanted: outputs of these nodes, each with the bytes that it takes.

        Raises:
            EvaluationError: a node cannot be computed; it names the first such node.
        """
        found: dict[int, Any] = {}
        for tensors in _batches(wanted):
            needed = _ancestors(nodes, tensors)
            try:
                results = self._run(needed, tensors)
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                raise self._first_failure(needed, error) from error
            for tensor, result in zip(tensors, results, strict=True):
                found[id(tensor)] = self._kept(result)
        return found

    def _kept(self, result: Array) -> Any:
        if result.nbytes < STUB_THRESHOLD:
            return result
        data = np.ascontiguousarray(result)
        key = hashlib.blake2b(data.view(np.uint8).data, digest_size=16).digest()
        data_type = onnx.helper.np_dtype_to_tensor_dtype(result.dtype)
        place = self._spilled.get(key)
        if place is None:
            place = self._spilled[key] = self._view.model.files.spill(data.data)
        stub = make_stub(TensorProto(data_type=data_type, dims=result.shape), place)
        return WeightRef(stub, self._view.model.files)

    def _run(self, nodes: list[Any], tensors: list[Any]) -> list[Array]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER)
        options.add_session_config_entry("session.disable_prepacking", "1")
        data = self._model(nodes, tensors).SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return [np.asarray(result) for result in session.run(None, {})]

    def _model(self, nodes: list[Any], tensors: list[Any]) -> ModelProto:
        """The region as a model. Values get new names, because bodies beside each other may use the same ones."""
        names: dict[int, str] = {}
        graph = GraphProto(name="constants")
        for node in nodes:
            for tensor in node.inputs:
                if tensor.name and id(tensor) not in names:
                    names[id(tensor)] = f"v{len(names)}"
                    initializer = graph.initializer.add()
                    initializer.CopyFrom(tensor_proto(tensor, self._view.model.files))
                    initializer.name = names[id(tensor)]
            for tensor in node.outputs:
                if tensor.name:
                    names[id(tensor)] = f"v{len(names)}"
            made = graph.node.add(op_type=node.op)
            made.input.extend(names.get(id(tensor), "") for tensor in node.inputs)
            made.output.extend(names.get(id(tensor), "") for tensor in node.outputs)
            made.attribute.extend(attribute_protos(node) or ())
        for tensor in tensors:
            value = ValueInfoProto(name=names[id(tensor)])
            value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(dtype_of(tensor))
            graph.output.append(value)
        opset = self._view.opsets.get("", 1)
        source = self._view.model.proto
        imports = [onnx.helper.make_opsetid("", opset)]
        return ModelProto(ir_version=source.ir_version, opset_import=imports, graph=graph)

    def _first_failure(self, nodes: list[Any], error: Exception) -> EvaluationError:
        """Finds the node that cannot be computed by halving: every prefix of the region is a region."""
        good, bad = 0, len(nodes)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                self._run(nodes[:middle], _loose_ends(nodes[:middle]))
                good = middle
            except Exception as earlier:
                bad, error = middle, earlier
        return EvaluationError(nodes[bad - 1], _reason(error))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(" : ")[-1] if lines else type(error).__name__


def _batches(wanted: list[tuple[Any, int]]) -> Iterator[list[Any]]:
    small = [tensor for tensor, size in wanted if size <= _SMALL]
    if small:
        yield small
    batch: list[Any] = []
    held = 0
    for tensor, size in wanted:
        if size <= _SMALL:
            continue
        if batch and held + size > _BATCH:
            yield batch
            batch, held = [], 0
        batch.append(tensor)
        held += size
    if batch:
        yield batch


def _ancestors(nodes: list[Any], tensors: list[Any]) -> list[Any]:
    """The nodes that the tensors depend on, in the same order."""
    needed = {id(tensor) for tensor in tensors}
    kept = []
    for node in reversed(nodes):
        if any(id(tensor) in needed for tensor in node.outputs):
            kept.append(node)
            needed.update(id(tensor) for tensor in node.inputs)
    return kept[::-1]


def _loose_ends(nodes: list[Any]) -> list[Any]:
    """The outputs that none of the nodes reads."""
    read = {id(tensor) for node in nodes for tensor in node.inputs}
    return [tensor for node in nodes for tensor in node.outputs if tensor.name and id(tensor) not in read]
