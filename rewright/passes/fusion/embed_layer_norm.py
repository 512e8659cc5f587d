"""The ``embed-layer-norm`` pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.names import scope_of
from rewright.ops.embedding import EPSILON
from rewright.passes.deferral import Deferral
from rewright.passes.fusion.embedding_roles import MOST_TERMS, Refusal, Roles, Row, is_lookup, lookups
from rewright.passes.fusion.positions import Positions
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession
from rewright.pattern.builder import Builder
from rewright.pattern.values import NodeRef, Value

_DOMAIN: Final = "com.microsoft"
_LAYER_NORMALIZATION_EPSILON: Final = 1e-5
_INT32: Final = 6
_AXES_ARE_INPUTS: Final = 13


class EmbedLayerNorm(GraphPass):
    """Sum of looked-up embeddings and its normalisation -> com.microsoft.EmbedLayerNormalization.

    output = (s - mean(s)) / sqrt(var(s) + epsilon) * gamma + beta over the last axis, with
    s = word_embedding[input_ids] + position_embedding[position_ids] + segment_embedding[segment_ids].

    1. Anchors: LayerNormalization over a sum, and SkipLayerNormalization; the summands in any order. Where the sum is used
       elsewhere too, it becomes the third output. Epsilon is written out (the op's default is 1e-12, not 1e-5); a missing beta
       becomes zeros.
    2. Words: a Gather of rows of a constant table, by ids of shape (B, S). Each int64 value of ids gets one Cast to int32.
    3. Positions: ids that are proven to be 0 to S - 1 are left out, from a Range or from the Slice of a constant, with a constant
       start other than 0 the table begins at that row; also a Slice of the table, or the S rows themselves. Any other ids, as an
       input or RoBERTa's, become ``position_ids`` if their shape is proven to be (B, S), (1, S) or (S).
    4. Segments: a third Gather by ids of shape (B, S), or none (DistilBERT). Where the ids are one number throughout (token types
       that the export left out), and for constant vectors, the row is added to the position table: that table is small, is
       replaced by its sum, and the op then needs neither segment ids nor a value that only its shape matters of.
    5. Refused: summands that are none of these (a fourth embedding, a scaled one, an earlier layer's output), tables that are not
       constant, shapes that are not proven, a mean or deviation that is used, a dtype without kernel.
    6. Assumed, because no export can prove it of its inputs: ids are not negative. Gather counts such ids from the end; the CPU
       kernel of the op fails on them, and that of CUDA does not look.

    Not in a level: ask for it after ``O2``. It saves nodes; ONNX Runtime's CPU kernel takes a third longer than the lookups and
    the normalisation by themselves, a small part of a model's time. ``mask_index`` is not produced.
    Source: ONNX Runtime contrib operator EmbedLayerNormalization; Devlin et al., "BERT".
    """

    name = "embed-layer-norm"
    exactness = "reassociating"
    emits = ("com.microsoft.EmbedLayerNormalization",)
    after = ("layer-norm", "skip-layer-norm")
    keeps_facts = True
    ort = Deferral(
        optimizers=("EmbedLayerNormFusion",),
        classes=("FusionEmbedLayerNormalization",),
        makes=("com.microsoft::EmbedLayerNormalization",),
        anchors=("LayerNormalization", "com.microsoft::SkipLayerNormalization"),
        weights="read",
    )

    def run(self, session: PassSession) -> None:
        session.ensure_facts()
        positions = Positions(session)
        for graph in list(session.view.graphs()):
            fusion = _Fusion(session, graph, positions)
            for node in list(graph.nodes):
                if getattr(node, "alive", True) and _is_anchor(node):
                    fusion.visit(node)


def _is_anchor(node: Any) -> bool:
    domain = domain_of(node)
    return (node.op == "LayerNormalization" and not domain) or (node.op == "SkipLayerNormalization" and domain == _DOMAIN)


@dataclass(frozen=True)
class _Norm:
    """A normalisation over a sum: the node, the sum where it is a value of its own, its summands, and the parameters."""

    node: Any
    adds: tuple[Any, ...]
    total: Any | None
    terms: tuple[Any, ...]
    gamma: Value
    beta: Value | None
    epsilon: float


class _Fusion:
    """The sites of one graph."""

    def __init__(self, session: PassSession, graph: Any, positions: Positions) -> None:
        self._session = session
        self._editor = session.editor
        self._graph = graph
        self._positions = positions
        self._places: dict[int, int] = {}
        self._casts: dict[int, tuple[int, Value]] = {}

    def visit(self, node: Any) -> None:
        """Fuses what ``node`` normalises, or records why not if that contains a looked-up embedding."""
        norm = self._norm(node)
        if norm is None or not any(is_lookup(term) for term in norm.terms):
            return
        builder = Builder(self._session.names, scope_of(node), self._session.view.opset_of(self._graph))
        casts = dict(self._casts)
        try:
            self._check(norm)
            roles = lookups(norm.terms, self._positions)
            self._check_parameters(norm, roles.hidden_size)
            self._replace(norm, roles, builder)
        except Refusal as refusal:
            self._editor.discard(builder.nodes)
            self._casts = casts
            self._session.reject(node, refusal.reason)

    def _norm(self, node: Any) -> _Norm | None:
        reference = NodeRef(node)
        if node.op == "SkipLayerNormalization":
            given = [node.inputs[0], node.inputs[1], *(tensor for tensor in node.inputs[4:5] if tensor.name)]
            total, default = node.outputs[3] if len(node.outputs) > 3 and node.outputs[3].name else None, EPSILON
            scale, bias, adds = reference.input(2), reference.input(3), []
        else:
            total, default = node.inputs[0], _LAYER_NORMALIZATION_EPSILON
            scale, bias = reference.input(1), reference.input(2)
            producers = [feeder for feeder in total.inputs if feeder.op == "Add" and not domain_of(feeder)]
            if not producers or self._editor.graph_of(producers[0]) is not self._graph:
                return None
            given, adds = list(producers[0].inputs), producers
        if scale is None:
            return None
        terms = self._summands(given, adds)
        return _Norm(node, tuple(adds), total, terms, scale, bias, float(reference.attribute("epsilon", default)))

    def _summands(self, given: list[Any], adds: list[Any]) -> tuple[Any, ...]:
        """The values that are added, through sums that nothing else uses; ``adds`` gets those sums."""
        terms: list[Any] = []
        pending = given[::-1]
        while pending and len(terms) + len(pending) <= MOST_TERMS:
            tensor = pending.pop()
            feeder = tensor.inputs[0] if tensor.inputs else None
            if feeder is None or feeder.op != "Add" or domain_of(feeder) or not self._is_private(tensor):
                terms.append(tensor)
            else:
                adds.append(feeder)
                pending.extend(feeder.inputs[::-1])
        return (*terms, *pending[::-1])

    def _is_private(self, tensor: Any) -> bool:
        return not self._editor.is_graph_output(tensor) and len(self._editor.consumers(tensor)) == 1

    def _check(self, norm: _Norm) -> None:
        node = NodeRef(norm.node)
        used = norm.node.outputs[1:3]
        if any(tensor.name and self._editor.is_used(tensor) for tensor in used):
            raise Refusal("the mean or the deviation of the normalisation is used")
        if node.op == "LayerNormalization" and node.attribute("axis", -1) not in (-1, 2):  # of three, as the roles prove
            raise Refusal(f"the normalised axes begin at {node.attribute('axis', -1)}, not at the last")
        if node.attribute("stash_type", 1) != 1:
            raise Refusal("stash_type is not float")

    def _check_parameters(self, norm: _Norm, size: int) -> None:
        for name, value in (("gamma", norm.gamma), ("beta", norm.beta)):
            if value is not None and value.shape != (size,):
                raise Refusal(f"{name} has the shape {value.shape}, not ({size},) ('{value.name}')")
            if value is not None and value.tensor.inputs and not value.is_constant:
                raise Refusal(f"{name} is computed ('{value.name}')")

    def _replace(self, norm: _Norm, roles: Roles, op: Builder) -> None:
        """Puts the op in the place of the normalisation, and takes away what then computes nothing any more."""
        matched = {id(norm.node), *map(id, norm.adds)}
        users = [] if norm.total is None else self._editor.consumers(norm.total)
        is_total_used = norm.total is not None and (
            self._editor.is_graph_output(norm.total) or any(id(user) not in matched for user in users)
        )
        # Who else reads the sum may stand before the normalisation.
        at = norm.adds[0] if is_total_used and norm.adds else norm.node
        fused = self._node(norm, roles, op, is_total_used, at)
        reason = self._session.refusal(fused)
        if reason is not None:
            raise Refusal(reason)
        feeders = [feeder for node in (norm.node, *norm.adds[:1]) for tensor in node.inputs for feeder in tensor.inputs]
        self._editor.insert(op.nodes, at)
        removed = [norm.node, *norm.adds[:1]] if is_total_used else [norm.node]
        for node in removed:
            self._editor.remove(node)
        self._editor.take_output(norm.node.outputs[0], fused, 0)
        if is_total_used:
            self._editor.take_output(norm.total, fused, 2)
        unused = (feeder for feeder in feeders if not any(self._editor.is_used(tensor) for tensor in feeder.outputs))
        removed += self._editor.remove_with_dead_producers(feeder for feeder in unused if getattr(feeder, "alive", True))
        for term in norm.terms:
            removed += self._measure_ids(term, op)
        self._session.record(self._graph, removed, op.nodes)

    def _measure_ids(self, term: Any, op: Builder) -> list[Any]:
        """Where a lookup is left only because its batch and sequence length are asked for, its ids are asked instead."""
        gather = term.inputs[0] if term.inputs else None
        if gather is None or gather.op != "Gather" or domain_of(gather) or self._editor.is_graph_output(term):
            return []
        users = self._editor.consumers(term)
        if not users or Value(gather.inputs[1]).rank != 2 or not all(self._reads_two_dimensions(user) for user in users):
            return []
        for user in users:
            # Two lengths are another value than three, and get a name of their own.
            sliced = {name: NodeRef(user).attribute(name) for name in ("start", "end")}
            made: Value = op.Shape(Value(gather.inputs[1]), **sliced)
            self._editor.insert(op.nodes[-1:], user)
            self._editor.redirect(user.outputs[0], made.tensor, user)
            self._editor.remove(user)
        return [*users, *self._editor.remove_with_dead_producers([gather])]

    def _reads_two_dimensions(self, node: Any) -> bool:
        """Whether the node is a Shape of which only the first two dimensions are read."""
        if node.op != "Shape" or domain_of(node) or self._editor.is_graph_output(node.outputs[0]):
            return False
        shape = NodeRef(node)
        if shape.attribute("end") is not None or shape.attribute("start", 0):
            return shape.attribute("start", 0) in (0, 1) and shape.attribute("end") in (1, 2)
        for user in map(NodeRef, self._editor.consumers(node.outputs[0])):
            index = user.input(1)
            if user.op != "Gather" or user.domain or index is None or index.scalar not in (0, 1) or user.input(0) == index:
                return False
        return True

    def _node(self, norm: _Norm, roles: Roles, op: Builder, is_total_used: bool, at: Any) -> Any:
        dtype = Value(roles.word.table).dtype
        beta = norm.beta if norm.beta is not None else op.constant(np.zeros(roles.hidden_size, dtype), "beta")
        table = op.constant(roles.position_table, "position_embedding") if roles.position_table is not None else None
        inputs = [
            self._ids(roles.word, op, at),
            self._ids(roles.segment, op, at),
            Value(roles.word.table),
            Value(roles.position.table) if table is None else table,
            None if roles.segment is None else Value(roles.segment.table),
            norm.gamma,
            beta,
            None,
            self._ids(roles.position, op, at),
        ]
        outputs = (True, False, True) if is_total_used else (True, False)
        op.EmbedLayerNormalization(*inputs, domain=_DOMAIN, epsilon=norm.epsilon, outputs=outputs)
        return op.nodes[-1]

    def _ids(self, row: Row | None, op: Builder, at: Any) -> Value | None:
        """The ids as int32 of two dimensions, cast once for all sites that come later in the graph."""
        if row is None or row.ids is None:
            return None
        source = Value(row.ids)
        cast = source.producer
        if cast is not None and cast.op == "Cast" and not cast.domain and cast.inputs[0].dtype == np.int32:
            source = cast.inputs[0]  # widened for nothing
        if source.dtype != np.int32:
            source = self._cast(source, op, at)
        if row.is_vector:
            axes = op.constant(np.zeros(1, np.int64), "axes")
            source = (
                op.Unsqueeze(source, axes) if self._session.view.opset_of(self._graph) >= 13 else op.Unsqueeze(source, axes=[0])
            )
        return source

    def _cast(self, source: Value, op: Builder, at: Any) -> Value:
        if not self._places:
            self._places = {id(node): place for place, node in enumerate(self._graph.nodes)}
        place = self._places[id(at)]
        held = self._casts.get(id(source.tensor))
        if held is not None and held[0] <= place:
            return held[1]
        made: Value = op.Cast(source, to=_INT32)
        self._casts[id(source.tensor)] = (place, made)
        return made
