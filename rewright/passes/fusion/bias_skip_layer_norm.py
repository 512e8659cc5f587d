"""The ``bias-skip-layer-norm`` pass."""

from __future__ import annotations

from typing import Any, Final

from rewright.model import facts
from rewright.model.edit import domain_of
from rewright.model.elements import make_node, make_variable
from rewright.model.names import scope_of
from rewright.ops.microsoft import DOMAIN
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession
from rewright.pattern.values import Value

_OP: Final = "SkipLayerNormalization"
_GAMMA, _BIAS, _MOST_INPUTS = 2, 4, 5


class BiasSkipLayerNorm(GraphPass):
    """SkipLayerNormalization(x @ w + bias, skip) -> SkipLayerNormalization with the bias as its fifth input.

    output = (s - mean(s)) / sqrt(var(s) + epsilon) * gamma + beta, with s = x @ w + skip + bias over the last axis.

    1. Either operand may be the sum, and the bias either operand of that; its MatMul must be right there, without a Cast.
    2. The bias must be a constant vector of gamma's length, and the product's last axis known to have that length too.
    3. Refused: a node that has a bias already, and a sum that something else needs (its Add would stay).

    Source: ONNX Runtime contrib operator SkipLayerNormalization, whose sum output includes the bias.
    """

    name = "bias-skip-layer-norm"
    exactness = "reassociating"
    emits = ("com.microsoft.SkipLayerNormalization",)
    after = ("skip-layer-norm",)
    keeps_facts = True
    ort = Deferral(
        optimizers=("BiasSkipLayerNormFusion",),
        classes=("FusionBiasSkipLayerNormalization",),
        makes=("com.microsoft::SkipLayerNormalization",),
        anchors=("com.microsoft::SkipLayerNormalization",),
    )

    def run(self, session: PassSession) -> None:
        session.ensure_facts()
        for graph in session.view.graphs():
            for node in list(graph.nodes):
                if node.op == _OP and domain_of(node) == DOMAIN:
                    _take_bias(session, graph, node)


def _take_bias(session: PassSession, graph: Any, node: Any) -> None:
    reasons: list[str] = []
    for index in (0, 1):
        add = facts.producer(node.inputs[index])
        if add is None or add.op != "Add" or domain_of(add):
            continue
        for product, bias in ((0, 1), (1, 0)):
            x, vector = Value(add.inputs[product]), Value(add.inputs[bias])
            reason = _obstacle(session, graph, node, add, x, vector)
            if reason is None:
                _rewrite(session, graph, node, add, index, x, vector)
                return
            reasons.append(reason)
    told = [reason for reason in reasons if reason]
    if told or not _has_bias(node):
        session.reject(node, told[0] if told else "no operand is a MatMul with a constant bias")


def _has_bias(node: Any) -> bool:
    return len(node.inputs) >= _MOST_INPUTS and bool(node.inputs[_BIAS].name)


def _obstacle(session: PassSession, graph: Any, node: Any, add: Any, x: Value, bias: Value) -> str | None:
    """Why the bias can not be taken: None if it can, "" if there is nothing like a bias."""
    producer = x.producer
    if not bias.is_constant or producer is None or producer.op != "MatMul" or producer.domain:
        return ""
    if _has_bias(node):
        return "the node has a bias already"
    total = add.outputs[0]
    if session.editor.is_graph_output(total) or session.editor.consumers(total) != [node]:
        return f"the value '{total.name}' is used elsewhere too"
    if session.editor.graph_of(add) is not graph:
        return f"the value '{total.name}' is computed outside of this graph"
    size = Value(node.inputs[_GAMMA]).shape
    if bias.shape is None or bias.shape != size or len(bias.shape) != 1:
        return f"the bias '{bias.name}' has the shape {bias.shape}, and gamma {size}"
    if x.dim(-1) != bias.shape[0]:
        return f"the last axis of '{x.name}' is not known to have the length {bias.shape[0]}"
    return None


def _rewrite(session: PassSession, graph: Any, node: Any, add: Any, index: int, x: Value, bias: Value) -> None:
    inputs = list(node.inputs)
    inputs[index] = x.tensor
    inputs += [make_variable("") for _ in range(_MOST_INPUTS - len(inputs))]
    inputs[_BIAS] = bias.tensor
    name = session.names.fresh(f"{scope_of(node)}/{_OP}" if scope_of(node) else _OP)
    outputs = list(node.outputs)
    made = make_node(
        _OP, name, DOMAIN, inputs, [make_variable(f"{name}_output_{i}" if t.name else "") for i, t in enumerate(outputs)]
    )
    made.attrs = dict(node.attrs)
    editor = session.editor
    editor.insert([made], at=node)
    editor.remove(node)
    editor.remove(add)
    for position, tensor in enumerate(outputs):
        if tensor.name:
            editor.take_output(tensor, made, position)
    session.record(graph, [add, node], [made])
