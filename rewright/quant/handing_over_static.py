"""Static quantization by ``onnxruntime.quantization``, in another process: what it is given, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import NodeProto

from rewright.model.carrier import Model
from rewright.model.elements import make_constant
from rewright.model.facts import attribute, constant_of, shape_of
from rewright.model.tensors import spill
from rewright.passes.coverage import Covered
from rewright.passes.ort.carrying import take
from rewright.passes.ort.exchange import NotCarriedOut, call, exchanged
from rewright.passes.session import PassSession, label, op_key
from rewright.quant.affine import rounding_error
from rewright.quant.handing_over import is_refused
from rewright.quant.integer_products import product_of
from rewright.quant.integer_weights import MissedError
from rewright.quant.selection import Candidate
from rewright.quant.static_conversion import StaticConversion
from rewright.quant.static_layers import NOT_LOADED, filters_of
from rewright.quant.weights import Weight, weight_of

if TYPE_CHECKING:
    from rewright.quant.quantize_static import QuantizeStatic

_FUNCTION: Final = "rewright.quant.deferred_static:quantize_static"
_LEFT: Final = "ONNX Runtime's quantizer left it, and does not say why"
_BIAS: Final = 2
_LINEAR: Final = ("QuantizeLinear", "DequantizeLinear")
_OPTIONS: Final = (
    "activation",
    "activation_symmetric",
    "weight",
    "symmetric",
    "per_channel",
    "reduce_range",
    "quantize_bias",
    "weight_pairs",
    "dedicated_pairs",
)

Entry = tuple[str, str]
"""How records call a node, and its op."""


def hand_over(request: QuantizeStatic, session: PassSession) -> None:
    """Lets ONNX Runtime quantize the chosen nodes by our ranges, and records sites and coverage by comparing before and after."""
    aside = PassSession(session.current, session.model, session.target, isolation=session.isolation, bounds=session.bounds)
    aside.ensure_facts()
    chosen = request.chosen(aside)
    if is_refused(session, chosen):
        return
    work = request.conversion(aside, chosen)
    session.coverage.extend(aside.coverage)
    session.notes.extend(aside.notes)
    wanted: dict[str, Entry] = {}
    made: dict[Any, Any] = {}
    for candidate in chosen:
        entry = label(candidate.node), op_key(candidate.node)
        try:
            _prepare(work, candidate, made)
        except MissedError as missed:
            session.coverage.append(Covered(*entry, "missed", reason=missed.reason))
        else:
            wanted[str(candidate.node.outputs[0].name)] = entry
    if not wanted:
        return
    aside.editor.finish()
    prepared = aside.view.to_model()
    try:
        result = exchanged(prepared, lambda model, folder: _quantized(request, session, work, wanted, model, folder))
    except NotCarriedOut as error:
        session.notes.append(f"onnxruntime.quantization changed nothing: {error}")
        result = None
    found = {} if result is None else dict(_covered(prepared, result, wanted))
    for output, entry in wanted.items():
        session.coverage.append(found.get(output) or Covered(*entry, "missed", reason=_LEFT))
    if result is not None and found:
        take(session, result)
        session.notes.append(f"{len(found)} by onnxruntime.quantization")


def _quantized(
    request: QuantizeStatic, session: PassSession, work: StaticConversion, wanted: dict[str, Entry], model: bytes, folder: Path
) -> str:
    arguments = {
        **{name: getattr(request, name) for name in _OPTIONS},
        "contrib_ops": work.moves_wrongly(work.session.view.opset_of(work.session.view.graph)),
        "root": Model.SESSION_FOLDER,
        "folder": str(folder),
        "outputs": list(wanted),
        "ops": sorted({op for _, op in wanted.values()}),
        "ranges": {name: list(ends) for name, ends in work.ranges.values.items()},
    }
    return str(call(session, _FUNCTION, model, arguments))


def _prepare(work: StaticConversion, candidate: Candidate, made: dict[Any, Any]) -> None:
    """Makes the weight an initializer: the quantizer knows none behind a Transpose.

    Raises:
        MissedError: the quantizer does not do it, or not soundly.
    """
    node, kind = candidate.node, op_key(candidate.node)
    if candidate.graph is not work.session.view.graph:
        raise MissedError("it is in a body or a function, whose values calibration does not see")
    op = work.builder(candidate)
    work.require_linear(op)
    if kind in ("Conv", "Add", "Mul") and work.leaves_results(op):
        raise MissedError(NOT_LOADED)
    if kind in ("MatMul", "Gemm"):
        if product_of(node).use is None:
            raise MissedError("the weight has more than two dimensions")
        _refuse_bias(node)
        values = [node.inputs[0]]
    elif kind == "Conv":
        filters_of(node)
        values = [node.inputs[0], node.outputs[0]]
    elif kind in ("Add", "Mul"):
        if any(weight_of(tensor) is not None for tensor in node.inputs):
            raise MissedError("an operand is constant")
        values = [*node.inputs, *node.outputs]
    else:
        raise MissedError(f"ONNX Runtime's static quantizer does not do {node.op}")
    for tensor in values:
        work.require(tensor)
    if kind not in ("Add", "Mul"):
        _materialize(work.session, node, weight_of(node.inputs[1]), made)


def _refuse_bias(node: Any) -> None:
    """
    Raises:
        MissedError: the quantizer makes another number of it, also where it leaves it in floats.
    """
    if len(node.inputs) <= _BIAS or not node.inputs[_BIAS].name or constant_of(node.inputs[_BIAS]) is None:
        return
    if attribute(node, "beta", 1.0) != 1.0:
        raise MissedError("ONNX Runtime's quantizer loses what the bias is multiplied by")
    bias, weight = shape_of(node.inputs[_BIAS]), shape_of(node.inputs[1])
    columns = None if weight is None else weight[0 if attribute(node, "transB", 0) else 1]
    if bias is None or bias != (columns,):
        raise MissedError("ONNX Runtime's quantizer takes each bias for a vector with a number for each column")


def _materialize(session: PassSession, node: Any, weight: Weight | None, made: dict[Any, Any]) -> None:
    if weight is None or (not weight.steps and hasattr(node.inputs[1], "values")):
        return
    if weight.key not in made:
        constant = make_constant(session.names.fresh(f"{weight.name}_as_read"), np.ascontiguousarray(weight.values()))
        spill(constant, session.view.model.files)
        made[weight.key] = constant
    node.inputs[1] = made[weight.key]


def _covered(before: Model, after: Model, wanted: dict[str, Entry]) -> Iterator[tuple[str, Covered]]:
    """The nodes both of whose first operands come from DequantizeLinear now, by the output that they had."""
    was = {name: node for node in before.proto.graph.node for name in node.output}
    makers = {name: node for node in after.proto.graph.node for name in node.output}
    old = {tensor.name: tensor for tensor in before.proto.graph.initializer}
    new = {tensor.name: tensor for tensor in after.proto.graph.initializer}
    counted: set[str] = set()
    for output, entry in wanted.items():
        node = _behind_linear(makers, output)
        if node is None or node.op_type != entry[1] or not all(_is_restored(makers, item) for item in node.input[:2]):
            continue
        weight = was[output].input[1]
        nbytes, error = (0, 0), None
        if weight in old:
            floats, parts = before.tensor(old[weight]), [after.tensor(new[item]) for item in _parts(makers, node.input[1])]
            levels, scale, zero_point = parts
            axis = next((each.i for each in makers[node.input[1]].attribute if each.name == "axis"), 1)
            if levels.dtype != floats.dtype:
                error = rounding_error(floats, levels, scale, zero_point, axis if scale.ndim else None)
            if weight not in counted:
                nbytes = floats.nbytes, sum(part.nbytes for part in parts)
            counted.add(weight)
        yield (
            output,
            Covered(
                *entry,
                "quantized",
                weight=weight if weight in old else "",
                became="QDQ of onnxruntime.quantization",
                bytes_before=nbytes[0],
                bytes_after=nbytes[1],
                error=error,
            ),
        )


def _behind_linear(makers: dict[str, NodeProto], name: str) -> NodeProto | None:
    """What makes a value, before it went through integers."""
    node = makers.get(name)
    while node is not None and node.op_type in _LINEAR:
        node = makers.get(node.input[0])
    return node


def _is_restored(makers: dict[str, NodeProto], name: str) -> bool:
    return name in makers and makers[name].op_type == "DequantizeLinear"


def _parts(makers: dict[str, NodeProto], name: str) -> list[str]:
    """Levels, scale and zero point of a weight; the floats instead of the levels where it is rounded at run time."""
    found = list(makers[name].input)
    if found[0] in makers:
        found[0] = makers[found[0]].input[0]
    return found
