"""float16 by ONNX Runtime's own converter, in another process: it is told what to leave, and what it gives back is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from onnx import ModelProto, TensorProto

from rewright.model.carrier import Model, all_nodes
from rewright.passes.coverage import Covered
from rewright.passes.ort.carrying import take, with_shapes
from rewright.passes.ort.exchange import NotCarriedOut, call, exchanged
from rewright.passes.precision.keeping import Keeping
from rewright.passes.selection import Candidate
from rewright.passes.session import PassSession, label, op_key

_CONVERT: Final = "rewright.passes.precision.deferred:convert"
_LEFT: Final = "ONNX Runtime's converter left it, and does not say why"
_MOST_NOTES: Final = 3


def hand_over(session: PassSession, keeping: Keeping, nodes: Sequence[Any], wanted: Sequence[Candidate]) -> None:
    """Lets ONNX Runtime convert what ``keeping`` leaves to it, and records a site and what became of each wanted node.

    The converter returns nodes in an order that no checker accepts; they are sorted. Weights are read into memory.
    """
    source = session.view.to_model()
    narrow = [node for node in nodes if keeping.is_narrow(node)]
    made, described = _converted(session, source, {_first(node) for node in narrow}) if narrow else (None, set[str]())
    if made is not None and made.fingerprint() != source.fingerprint():
        take(session, made)
    halves = _made_in_half(made, described) if made is not None else set()
    for each in wanted:
        name, op, reason = label(each.node), op_key(each.node), keeping.reasons.get(id(each.node), _LEFT)
        if not keeping.roles[id(each.node)].is_choice and id(each.node) not in keeping.reasons:
            continue
        if keeping.is_narrow(each.node) and _first(each.node) in halves:
            session.coverage.append(Covered(name, op, "quantized", became="float16"))
        else:
            session.coverage.append(Covered(name, op, "missed", reason=reason))


def _converted(session: PassSession, source: Model, narrow: set[str]) -> tuple[Model | None, set[str]]:
    """What the converter makes of the model, and the values that are float16 in it."""
    halves: set[str] = set()
    kept = [name for node in all_nodes(source.proto) if (name := next(filter(None, node.output), "")) not in narrow]

    def work(model: bytes, folder: Path) -> str:
        arguments = {"root": Model.SESSION_FOLDER, "folder": str(folder), "kept": kept}
        reply = call(session, _CONVERT, with_shapes(session, model), arguments)
        session.notes.extend(dict.fromkeys(reply["notes"][:_MOST_NOTES]))
        halves.update(reply["halves"])
        return str(reply["path"])

    try:
        made = exchanged(source, work)
    except NotCarriedOut as error:
        session.notes.append(f"onnxruntime.transformers.float16 changed nothing: {error}")
        return None, set()
    return (None if made is None else _described(made, halves)), halves


def _described(made: Model, halves: set[str]) -> Model:
    """Corrects what the model says of its values, which is what it said before they were converted."""
    proto = ModelProto()
    proto.CopyFrom(made.proto)
    for value in proto.graph.value_info:
        if value.name in halves:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return made.with_proto(proto)


def _first(node: Any) -> str:
    return next((tensor.name for tensor in node.outputs if tensor.name), "")


def _made_in_half(model: Model, halves: set[str]) -> set[str]:
    """The values that were there before and are computed in float16 now, also those that are cast back behind that."""
    casts = {node.output[0]: node for node in all_nodes(model.proto) if node.op_type == "Cast" and node.output}
    return halves | {name for name, cast in casts.items() if cast.input and cast.input[0] in halves}
