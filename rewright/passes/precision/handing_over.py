"""float16 by ONNX Runtime's own converter, in another process: it is told what to leave, and what it gives back is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from onnx import NodeProto, TensorProto

from rewright.model.carrier import Model, all_graphs, all_nodes
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
    made = _converted(session, source, {_first(node) for node in narrow}) if narrow else None
    if made is not None and made.fingerprint() != source.fingerprint():
        take(session, made)
    halves = _made_in_half(made) if made is not None else set()
    for each in wanted:
        name, op, reason = label(each.node), op_key(each.node), keeping.reasons.get(id(each.node), _LEFT)
        if not keeping.roles[id(each.node)].is_choice and id(each.node) not in keeping.reasons:
            continue
        if keeping.is_narrow(each.node) and _first(each.node) in halves:
            session.coverage.append(Covered(name, op, "quantized", became="float16"))
        else:
            session.coverage.append(Covered(name, op, "missed", reason=reason))


def _converted(session: PassSession, source: Model, narrow: set[str]) -> Model | None:
    kept = [name for node in all_nodes(source.proto) if (name := next(filter(None, node.output), "")) not in narrow]

    def work(model: bytes, folder: Path) -> str:
        arguments = {"root": Model.SESSION_FOLDER, "folder": str(folder), "kept": kept}
        reply = call(session, _CONVERT, with_shapes(session, model), arguments)
        session.notes.extend(dict.fromkeys(reply["notes"][:_MOST_NOTES]))
        return str(reply["path"])

    try:
        return exchanged(source, work)
    except NotCarriedOut as error:
        session.notes.append(f"onnxruntime.transformers.float16 changed nothing: {error}")
        return None


def _first(node: Any) -> str:
    return next((tensor.name for tensor in node.outputs if tensor.name), "")


def _made_in_half(model: Model) -> set[str]:
    """The values that were there before and are made in float16 now; a cast to their old type is told from them by its op."""
    described = {value.name: value.type.tensor_type.elem_type for graph in all_graphs(model.proto) for value in graph.value_info}
    casts = {node.output[0]: node for node in all_nodes(model.proto) if node.op_type == "Cast" and node.output}
    found = {name for name, kind in described.items() if kind == TensorProto.FLOAT16}
    return found | {name for name, cast in casts.items() if _reads_half(cast, described)}


def _reads_half(cast: NodeProto, described: dict[str, int]) -> bool:
    return bool(cast.input) and described.get(cast.input[0]) == TensorProto.FLOAT16
