"""What the attention passes share: going over the softmaxes, proving, writing, and recording what stood in the way."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pydantic import Field

from rewright.model.edit import domain_of, index_of
from rewright.model.facts import attribute
from rewright.model.names import scope_of
from rewright.passes.attention.axes import Unproven, number
from rewright.passes.attention.reach import out_of_reach
from rewright.passes.attention.recognition import Attention, recognise
from rewright.passes.attention.writing import Shared, Writer
from rewright.passes.cleanup.bypass import remove_unused, take_out
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.shapes.dimensions import Size


class AttentionPass(GraphPass):
    """Replaces the attention around each softmax by what ``write`` makes of it."""

    keeps_facts = True

    heads: int | None = Field(
        default=None, ge=1, description="How many heads you expect. The graph decides; a difference is noted."
    )
    hidden_size: int | None = Field(
        default=None, ge=1, description="The width you expect, heads times head size; noted likewise."
    )
    shape_inference: bool = Field(default=True, description="Infer shapes first. Without, only what the model states is known.")

    @abstractmethod
    def write(self, writer: Writer) -> Value:
        """The nodes for one attention; their result as (batch, rows, heads x value size).

        Raises:
            Unproven: the op cannot stand for this attention.
        """

    def ort_options(self) -> dict[str, Any]:
        return {"num_heads": self.heads or 0, "hidden_size": self.hidden_size or 0}

    def run(self, session: PassSession) -> None:
        if self.shape_inference:
            session.ensure_facts()
        for graph in list(session.view.graphs()):
            shared = Shared(graph)
            for node in [node for node in graph.nodes if node.op == "Softmax" and not domain_of(node)]:
                if getattr(node, "alive", True):
                    self._try(session, graph, node, shared)

    def _try(self, session: PassSession, graph: Any, softmax: Any, shared: Shared) -> None:
        opset = session.view.opset_of(graph)
        builder = Builder(session.names, scope_of(softmax), opset)
        writer: Writer | None = None
        try:
            attention = recognise(softmax, session.editor, opset)
            writer = Writer(attention, builder, shared, session.target)
            attention.scores = out_of_reach(writer)
            made = self.write(writer)
            self._compare(session, attention)
            old, new = writer.result(made)
            measured = [(node, writer.sizes(layout)) for node, layout in attention.measures if node.inputs[0] is not old]
            for node in builder.nodes:
                reason = session.refusal(node)
                if reason is not None:
                    raise Unproven(reason, softmax)
        except Unproven as unproven:
            session.editor.discard(builder.nodes)
            for key in writer.made if writer is not None else ():
                shared.values.pop(key, None)
            session.reject(softmax, unproven.reason + _at(unproven.where, softmax))
            return
        session.notes.extend(note for note in writer.assumptions if note not in session.notes)
        put_in_place(session, graph, old, new, builder)
        for node, sizes in measured:
            if getattr(node, "alive", True):
                self._measure(session, graph, node, sizes, writer)

    def _compare(self, session: PassSession, attention: Attention) -> None:
        """Notes where a hint is not what the graph says; the graph is right."""
        roles = attention.roles
        for name, hint, found in (
            ("heads", self.heads, number(roles.heads)),
            ("hidden_size", self.hidden_size, number(roles.heads + roles.size)),
        ):
            if hint is not None and hint != found:
                note = f"the option {name}={hint} is not what the graph says, {found}, and changes nothing"
                if note not in session.notes:
                    session.notes.append(note)

    def _measure(self, session: PassSession, graph: Any, node: Any, sizes: list[Size], writer: Writer) -> None:
        """Lets what used the shape of a value that is gone use lengths that are read off elsewhere."""
        start, end = attribute(node, "start", 0), attribute(node, "end")
        builder = writer.op = Builder(session.names, scope_of(node), session.view.opset_of(graph))
        # Lengths that other sites made may stand behind this node.
        writer.shared = Shared(graph)
        made = builder.Concat(*(writer.length(size) for size in sizes[start:end]), axis=0)
        put_in_place(session, graph, node.outputs[0], made, builder)


def put_in_place(session: PassSession, graph: Any, old: Any, new: Value, builder: Builder) -> None:
    """Lets ``new``, an output of the last node that ``builder`` made, stand for ``old``; what only ``old`` needed goes."""
    root, last = old.inputs[0], builder.nodes[-1]
    session.editor.insert(builder.nodes, at=root)
    feeders = take_out(session, root)
    session.editor.take_output(old, last, index_of(last.outputs, new.tensor))
    session.record(graph, [root, *remove_unused(session, feeders)], builder.nodes)


def _at(where: Any, softmax: Any) -> str:
    if where is None or where is softmax:
        return ""
    if hasattr(where, "op"):
        return f" at {where.op} '{where.name}'"
    return ""
