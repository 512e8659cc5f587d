"""What became of each softmax, normalisation and activation of a model, followed by name through the sites of a run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import onnx
from onnx import NodeProto, TensorProto

from rewright.model.carrier import Model, all_graphs
from rewright.report.model import Fate, FateKind, PassReport, SiteReport
from rewright.report.wording import UNSAID, says_little

_KINDS: Final[dict[str, FateKind]] = {
    **dict.fromkeys(("Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"), "attention"),
    **dict.fromkeys(
        (
            "LayerNormalization",
            "SimplifiedLayerNormalization",
            "RMSNormalization",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
            "EmbedLayerNormalization",
            "GroupNormalization",
            "InstanceNormalization",
        ),
        "normalisation",
    ),
    **dict.fromkeys(
        ("Erf", "Tanh", "Sigmoid", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "HardSwish", "Mish", "Swish"), "activation"
    ),
}
_SIGNS: Final[dict[FateKind, tuple[str, ...]]] = {
    "attention": ("Attention",),
    "normalisation": ("Normalization",),
    "activation": ("Gelu", "Swish"),
}
"""Which of the ops that a site adds carries on what the removed one was for."""


def fates(model: Model, passes: Sequence[PassReport]) -> list[Fate]:
    """A record for each softmax, normalisation and activation of ``model``, in order, bodies included, functions not.

    A decomposed normalisation is represented by the ReduceMean of its squares.

    Args:
        model: the model before the passes.
        passes: what they did, in order.
    """
    found = [Fate(kind=kind, node=_label(node), op=_op(node), graph=graph) for kind, node, graph in _anchors(model)]
    current: dict[str, list[Fate]] = defaultdict(list)
    for fate in found:
        current[fate.node].append(fate)
    told: dict[int, list[str]] = defaultdict(list)
    for record in passes:
        for site in record.sites:
            if site.status == "kept":
                _follow(record, site, current, told)
            else:
                _undone(record, site, current, told)
        for rejection in record.rejections:
            for fate in current.get(rejection.node, ()):
                told[id(fate)].append(f"{record.name}: {rejection.reason}")
    for fate in found:
        reasons = told[id(fate)]
        if fate.outcome == "became":
            reasons = [reason for reason in reasons if UNSAID not in reason]
        fate.reason = next((reason for reason in reasons if not says_little(reason)), reasons[0] if reasons else "")
    return found


def _follow(record: PassReport, site: SiteReport, current: dict[str, list[Fate]], told: dict[int, list[str]]) -> None:
    """Moves what the site removed to the name of what it became."""
    moved = [fate for name in site.removed for fate in current.pop(name, ())]
    for fate in moved:
        places = _heirs(fate.kind, site.ops_added)
        fate.passes.append(record.name)
        fate.backends.append(record.backend)
        told[id(fate)].clear()
        if not places:
            fate.outcome, fate.became, fate.name = "removed", "", ""
            continue
        ops = dict.fromkeys(site.ops_added[place] for place in places)
        fate.became = " or ".join(ops)
        fate.outcome = "left" if fate.became == fate.op else "became"
        # A backend that changes a whole model at once does not say which of its nodes stands for which.
        fate.name = site.added[places[0]] if len(places) == 1 else ""
        if fate.name:
            current[fate.name].append(fate)


def _undone(record: PassReport, site: SiteReport, current: dict[str, list[Fate]], told: dict[int, list[str]]) -> None:
    """Remembers why the checks took back what the pass made of the nodes."""
    reason = next((change.reason for change in record.undone if site.id in change.sites), record.reason)
    for name in site.removed:
        for fate in current.get(name, ()):
            told[id(fate)].append(f"{record.name}: undone by the checks: {reason}")


def _heirs(kind: FateKind, ops: Sequence[str]) -> list[int]:
    """The places of the ops that carry on: those that look like the kind, are of the kind, or else are no standard ops."""
    signed = [place for place, op in enumerate(ops) if any(sign in op for sign in _SIGNS[kind])]
    alike = [place for place, op in enumerate(ops) if _KINDS.get(op.rpartition("::")[2]) == kind]
    return signed or alike or [place for place, op in enumerate(ops) if "::" in op]


def _anchors(model: Model) -> Iterator[tuple[FateKind, NodeProto, str]]:
    for graph in all_graphs(model.proto):
        producers = {name: node for node in graph.node for name in node.output}
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            kind = _KINDS.get(node.op_type) if node.domain in ("", "ai.onnx", "com.microsoft") else None
            if kind is None and node.op_type == "ReduceMean" and _is_square(producers.get(node.input[0]), constants, producers):
                kind = "normalisation"
            if kind is not None:
                yield kind, node, graph.name


def _is_square(node: NodeProto | None, constants: dict[str, TensorProto], producers: dict[str, NodeProto]) -> bool:
    """Whether the node is x * x, or x to the power of 2 (or of what is not at hand)."""
    if node is None or len(node.input) != 2:
        return False
    if node.op_type == "Mul":
        return node.input[0] == node.input[1]
    return node.op_type == "Pow" and _exponent(node.input[1], constants, producers) in (2.0, None)


def _exponent(name: str, constants: dict[str, TensorProto], producers: dict[str, NodeProto]) -> float | None:
    """The only element of a constant, or None where it is not at hand."""
    node = producers.get(name)
    held = constants.get(name) or next((item.t for item in node.attribute if item.name == "value") if node else iter(()), None)
    if held is None or held.data_location == TensorProto.EXTERNAL or math.prod(held.dims) != 1:
        return None
    return float(onnx.numpy_helper.to_array(held).reshape(-1)[0])


def _label(node: NodeProto) -> str:
    """The name by which sites and rejections call the node."""
    return node.name or next(filter(None, node.output), node.op_type)


def _op(node: NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
