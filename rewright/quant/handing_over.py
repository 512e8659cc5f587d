"""Dynamic quantization by ``onnxruntime.quantization``, in another process: what it is given, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from onnx import NodeProto, TensorProto

from rewright.model.carrier import Model, all_graphs, all_nodes
from rewright.model.elements import make_constant
from rewright.model.facts import attribute
from rewright.model.names import scope_of
from rewright.model.tensors import spill
from rewright.model.view import FIRST_IR_WITH_OPTIONAL_INPUT_LISTING
from rewright.passes.coverage import Covered
from rewright.passes.ort.carrying import take
from rewright.passes.ort.exchange import NotCarriedOut, call, exchanged
from rewright.passes.session import PassSession, label, op_key
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.affine import IntegerType
from rewright.quant.integer_attention import projection_of
from rewright.quant.integer_lookups import lookup_of, table_of
from rewright.quant.integer_products import product_of
from rewright.quant.integer_recurrence import lstm_weights
from rewright.quant.integer_weights import MissedError
from rewright.quant.selection import Candidate
from rewright.quant.weights import Weight, weight_of

_FUNCTION: Final = "rewright.quant.deferred:quantize_dynamic"
_LEFT: Final = "ONNX Runtime's quantizer left it, and does not say why"
_SCORE_BIAS: Final = 5
_LISTED: Final = (
    "ONNX Runtime's quantizer writes initializers, which a model of IR version 3 lists among its inputs: use backend=standalone"
)


class Request(Protocol):
    """What the pass asks for."""

    per_channel: bool
    weight: IntegerType
    symmetric: bool
    reduce_range: bool


@dataclass
class _Preparation:
    """The model that the quantizer is given: weights are initializers, and a Gemm to quantize is a MatMul and an Add.

    The quantizer by itself knows no weight behind a Transpose, and transposes a Gemm's weight for everyone who reads it.
    """

    session: PassSession
    outputs: dict[str, tuple[Any, str]] = field(default_factory=dict)
    missed: list[tuple[Any, str]] = field(default_factory=list)
    _constants: dict[Any, Any] = field(default_factory=dict)

    def add(self, candidate: Candidate) -> None:
        """Takes a node in, or notes why not."""
        node = candidate.node
        entry = label(node), op_key(node)
        try:
            output = self._prepared(candidate)
        except MissedError as missed:
            self.missed.append((entry, missed.reason))
        else:
            self.outputs[output] = entry

    def _prepared(self, candidate: Candidate) -> str:
        node, kind = candidate.node, op_key(candidate.node)
        if kind == "Gather":
            lookup_of(node)
            self._materialize(node, 0)
        elif kind == "LSTM":
            lstm_weights(node)
            self._materialize(node, 1)
            self._materialize(node, 2)
        elif kind == "com.microsoft::Attention":
            self._check_attention(node)
            self._materialize(node, 1)
        elif kind in ("MatMul", "Gemm"):
            product = product_of(node)
            if kind == "Gemm":
                return self._without_gemm(candidate, product.alpha, product.turns_a)
            self._materialize(node, 1)
        else:
            raise MissedError(f"ONNX Runtime's quantizer does not do {node.op} soundly")
        return str(node.outputs[0].name)

    @staticmethod
    def _check_attention(node: Any) -> None:
        projection_of(node)
        given = [tensor.name for tensor in node.inputs]
        if any(given[_SCORE_BIAS:]):
            raise MissedError("ONNX Runtime's quantizer drops the attention_bias")
        if attribute(node, "qkv_hidden_sizes"):
            raise MissedError("QAttention has no qkv_hidden_sizes")
        if len(given) < 3 or not given[2]:
            raise MissedError("QAttention needs a bias")

    def _without_gemm(self, candidate: Candidate, alpha: float, turns_a: bool) -> str:
        node = candidate.node
        beta = float(attribute(node, "beta", 1.0))
        if turns_a or alpha != 1.0 or beta != 1.0:
            raise MissedError("ONNX Runtime's quantizer does a Gemm only without factors and with A as it is")
        op = Builder(self.session.names, scope_of(node), self.session.view.opset_of(candidate.graph))
        weight = weight_of(node.inputs[1])
        turned = bool(attribute(node, "transB", 0))
        product = op.MatMul(Value(node.inputs[0]), Value(self._constant(weight, turned)))
        made = str(product.name)
        given = len(node.inputs) > 2 and bool(node.inputs[2].name)
        if given:
            op.Add(product, Value(node.inputs[2]))
        editor = self.session.editor
        output = node.outputs[0]
        editor.insert(op.nodes, node)
        editor.remove(node)
        editor.take_output(output, op.nodes[-1])
        return made if given else str(output.name)

    def _materialize(self, node: Any, index: int) -> None:
        weight = weight_of(node.inputs[index])
        if weight is not None and (weight.steps or not hasattr(node.inputs[index], "values")):
            node.inputs[index] = self._constant(weight, turned=False)

    def _constant(self, weight: Weight | None, turned: bool) -> Any:
        if weight is None:
            raise MissedError("the weight is not constant")
        if not weight.steps and not turned and hasattr(weight.source, "values"):
            return weight.source
        key = (weight.key, turned)
        if key not in self._constants:
            array = weight.values().T if turned else weight.values()
            made = make_constant(self.session.names.fresh(f"{weight.name}_as_read"), np.ascontiguousarray(array))
            spill(made, self.session.view.model.files)
            self._constants[key] = made
        return self._constants[key]


def hand_over(request: Any, session: PassSession) -> None:
    """Lets ONNX Runtime quantize the chosen nodes, and records sites and coverage by comparing before and after."""
    session.ensure_facts()
    aside = PassSession(session.current, session.model, session.target, isolation=session.isolation)
    aside.ensure_facts()
    chosen = request.chosen(aside)
    session.coverage.extend(aside.coverage)
    preparation = _Preparation(aside)
    if is_refused(session, chosen):
        return
    for candidate in chosen:
        if candidate.node.op == "Gather" and table_of(candidate.node) is None:
            continue
        preparation.add(candidate)
    for (name, op), reason in preparation.missed:
        session.coverage.append(Covered(name, op, "missed", reason=reason))
    if not preparation.outputs:
        return
    aside.editor.finish()
    prepared = aside.view.to_model()
    try:
        result = exchanged(prepared, lambda model, folder: _work(request, session, preparation, model, folder))
    except NotCarriedOut as error:
        session.notes.append(f"onnxruntime.quantization changed nothing: {error}")
        result = None
    found = {} if result is None else dict(_covered(prepared, result, preparation))
    for output, (name, op) in preparation.outputs.items():
        session.coverage.append(found.get(output) or Covered(name, op, "missed", reason=_LEFT))
    if result is not None and found:
        take(session, result)
        session.notes.append(f"{len(found)} by onnxruntime.quantization")


def is_refused(session: PassSession, chosen: Sequence[Candidate]) -> bool:
    """Whether the model lists its initializers among its inputs, which has been recorded for all nodes then."""
    if (session.model.proto.ir_version or 0) >= FIRST_IR_WITH_OPTIONAL_INPUT_LISTING:
        return False
    session.coverage.extend(Covered(label(each.node), op_key(each.node), "missed", reason=_LISTED) for each in chosen)
    return True


def _work(request: Request, session: PassSession, preparation: _Preparation, model: bytes, folder: Path) -> str:
    arguments = {
        "root": Model.SESSION_FOLDER,
        "folder": str(folder),
        "outputs": list(preparation.outputs),
        "per_channel": request.per_channel,
        "reduce_range": request.reduce_range,
        "symmetric": request.symmetric,
        "weight": request.weight,
    }
    return str(call(session, _FUNCTION, model, arguments))


def _covered(before: Model, after: Model, preparation: _Preparation) -> Iterator[tuple[str, Covered]]:
    """The nodes that are quantized now, by the output that they had."""
    was, now = _makers(before), _makers(after)
    old, new = _initializers(before), _initializers(after)
    counted: set[str] = set()
    for output, (name, op) in preparation.outputs.items():
        if output not in now or output not in was or now[output].op_type == was[output].op_type:
            continue
        weights = [item for item in was[output].input if f"{item}_quantized" in new and item in old]
        fresh = [item for item in weights if item not in counted]
        counted.update(fresh)
        errors = [_error(before.tensor(old[item]), after, new, item) for item in weights]
        parts = [new[f"{item}{part}"] for item in fresh for part in _PARTS if f"{item}{part}" in new]
        entry = Covered(
            name,
            op,
            "quantized",
            weight=", ".join(weights),
            became=f"{now[output].op_type} of onnxruntime.quantization",
            bytes_before=sum(before.tensor(old[item]).nbytes for item in fresh),
            bytes_after=sum(after.tensor(part).nbytes for part in parts),
            error=max((error for error in errors if error is not None), default=None),
        )
        yield output, entry


_PARTS: Final = ("_quantized", "_scale", "_zero_point")


def _error(weight: np.ndarray[Any, Any], after: Model, new: dict[str, TensorProto], name: str) -> float | None:
    """Root mean square of what the levels stand for, relative to the weight's; slice by slice along the first axis."""
    levels, scale, zero_point = (after.tensor(new[f"{name}{part}"]) for part in _PARTS)
    noise = signal = 0.0
    if levels.shape != weight.shape or levels.ndim == 0 or scale.size not in (1, levels.shape[-1]):
        return None  # a form that is not known here
    for start in range(0, len(weight), 1024):
        part = weight[start : start + 1024].astype(np.float64)
        found = (levels[start : start + 1024].astype(np.float64) - zero_point) * scale.astype(np.float64)
        noise += float(np.square(found - part).sum())
        signal += float(np.square(part).sum())
    return float(np.sqrt(noise / signal)) if signal else 0.0


def _makers(model: Model) -> dict[str, NodeProto]:
    return {name: node for node in all_nodes(model.proto) for name in node.output if name}


def _initializers(model: Model) -> dict[str, TensorProto]:
    return {tensor.name: tensor for graph in all_graphs(model.proto) for tensor in graph.initializer}
