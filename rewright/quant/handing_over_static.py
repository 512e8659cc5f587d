"""Static quantization by ``onnxruntime.quantization``, in another process: what it is given, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import NodeProto

from rewright.model.carrier import Model
from rewright.model.elements import make_constant
from rewright.model.tensors import spill
from rewright.passes.coverage import Covered
from rewright.passes.ort.carrying import take
from rewright.passes.ort.exchange import NotCarriedOut, call, exchanged
from rewright.passes.session import PassSession, label, op_key
from rewright.quant.calibration.ranges import Ranges
from rewright.quant.integer_products import product_of
from rewright.quant.integer_weights import MissedError
from rewright.quant.selection import Candidate
from rewright.quant.static_conversion import StaticConversion
from rewright.quant.static_layers import filters_of
from rewright.quant.weights import Weight, weight_of

if TYPE_CHECKING:
    from rewright.quant.quantize_static import QuantizeStatic

_FUNCTION: Final = "rewright.quant.deferred_static:quantize_static"
_LEFT: Final = "ONNX Runtime's quantizer left it, and does not say why"
_MATRIX: Final = 2
_OPTIONS: Final = ("activation", "activation_symmetric", "weight", "symmetric", "per_channel", "reduce_range", "quantize_bias")


def hand_over(request: QuantizeStatic, session: PassSession) -> None:
    """Lets ONNX Runtime quantize the chosen nodes by our ranges, and records sites and coverage by comparing before and after."""
    aside = PassSession(session.current, session.model, session.target, isolation=session.isolation, bounds=session.bounds)
    aside.ensure_facts()
    chosen = request.chosen(aside)
    ranges = request.found_ranges(aside, chosen)
    session.coverage.extend(aside.coverage)
    session.notes.extend(aside.notes)
    wanted: dict[str, tuple[str, str]] = {}
    made: dict[Any, Any] = {}
    for candidate in chosen:
        entry = label(candidate.node), op_key(candidate.node)
        try:
            _prepare(aside, candidate, ranges, made)
        except MissedError as missed:
            session.coverage.append(Covered(*entry, "missed", reason=missed.reason))
        else:
            wanted[str(candidate.node.outputs[0].name)] = entry
    if not wanted:
        return
    prepared = aside.view.to_model()

    def work(model: bytes, folder: Path) -> str:
        arguments = {
            **{name: getattr(request, name) for name in _OPTIONS},
            "root": Model.SESSION_FOLDER,
            "folder": str(folder),
            "outputs": list(wanted),
            "ops": sorted({op for _, op in wanted.values()}),
            "ranges": {name: list(ends) for name, ends in ranges.values.items()},
        }
        return str(call(session, _FUNCTION, model, arguments))

    try:
        result = exchanged(prepared, work)
    except NotCarriedOut as error:
        session.notes.append(f"onnxruntime.quantization changed nothing: {error}")
        result = None
    found = {} if result is None else {entry.node: entry for entry in _covered(prepared, result, wanted)}
    for name, op in wanted.values():
        session.coverage.append(found.get(name) or Covered(name, op, "missed", reason=_LEFT))
    if result is not None and found:
        take(session, result)
        session.notes.append(f"{len(found)} by onnxruntime.quantization")


def _prepare(session: PassSession, candidate: Candidate, ranges: Ranges, made: dict[Any, Any]) -> None:
    """Makes the weight an initializer: the quantizer knows none behind a Transpose.

    Raises:
        MissedError: the quantizer does not do it, or not soundly.
    """
    node, kind = candidate.node, op_key(candidate.node)
    if candidate.graph is not session.view.graph:
        raise MissedError("it is in a body or a function, whose values calibration does not see")
    values = [node.inputs[0]]
    if kind in ("MatMul", "Gemm"):
        product = product_of(node)
        if product.use is None:
            raise MissedError("the weight has more than two dimensions")
    elif kind == "Conv":
        filters_of(node)
        values.append(node.outputs[0])
    elif kind in ("Add", "Mul"):
        if any(weight_of(tensor) is not None for tensor in node.inputs):
            raise MissedError("an operand is constant")
        values = [*node.inputs, *node.outputs]
    else:
        raise MissedError(f"ONNX Runtime's static quantizer does not do {node.op}")
    check = StaticConversion.checking(session, ranges)
    for tensor in values:
        check.require(tensor)
    if kind not in ("Add", "Mul"):
        _materialize(session, node, weight_of(node.inputs[1]), made)


def _materialize(session: PassSession, node: Any, weight: Weight | None, made: dict[Any, Any]) -> None:
    if weight is None or (not weight.steps and hasattr(node.inputs[1], "values")):
        return
    if weight.key not in made:
        constant = make_constant(session.names.fresh(f"{weight.name}_as_read"), np.ascontiguousarray(weight.values()))
        spill(constant, session.view.model.files)
        made[weight.key] = constant
    node.inputs[1] = made[weight.key]


def _covered(before: Model, after: Model, wanted: dict[str, tuple[str, str]]) -> Iterator[Covered]:
    """The nodes both of whose first operands come from DequantizeLinear now."""
    was = {name: node for node in before.proto.graph.node for name in node.output}
    now = {node.name: node for node in after.proto.graph.node if node.name}
    makers = {name: node for node in after.proto.graph.node for name in node.output}
    old = {tensor.name: tensor for tensor in before.proto.graph.initializer}
    new = {tensor.name: tensor for tensor in after.proto.graph.initializer}
    counted: set[str] = set()
    for output, (name, op) in wanted.items():
        node = makers.get(output) or now.get(was[output].name)
        if node is not None and node.op_type != op:
            node = now.get(was[output].name)
        if node is None or not all(_is_restored(makers, item) for item in node.input[:2]):
            continue
        weight = was[output].input[1]
        parts: Sequence[str] = ()
        if weight in old and weight not in counted:
            counted.add(weight)
            parts = [item for item in makers[node.input[1]].input if item in new]
        yield Covered(
            name,
            op,
            "quantized",
            weight=weight if weight in old else "",
            became="QDQ of onnxruntime.quantization",
            bytes_before=after.files.array(old[weight]).nbytes if parts else 0,
            bytes_after=sum(after.tensor(new[item]).nbytes for item in parts),
        )


def _is_restored(makers: dict[str, NodeProto], name: str) -> bool:
    return name in makers and makers[name].op_type == "DequantizeLinear"
