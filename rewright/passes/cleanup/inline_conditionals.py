"""The ``inline-conditionals`` pass."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs
from onnx import GraphProto

from rewright.model.edit import domain_of, index_of
from rewright.model.facts import constant_of, is_constant, is_small_constant, producer
from rewright.model.graph import state_of, walk_bodies
from rewright.model.order import captured
from rewright.passes.cleanup.bypass import remove_unused, share_facts
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession, label

_FIRST_IR_WITH_FREE_INITIALIZERS: Final = 4
_IDENTITY_TAKES_ANYTHING: Final = 16
_BRANCHES: Final = ("else_branch", "then_branch")


class InlineConditionals(GraphPass):
    """Puts the branch that is always taken in the place of an If whose condition is constant, so that other passes see through.

    1. The condition is constant if it is an initializer that no caller can override, or a Constant node; what is computed from
       constants and known shapes only is made so by ``constant-folding``. It has one boolean element.
    2. The branch's nodes move to where the If stands, in their order, and stay what they are. Its initializers become those of
       the graph around it, in functions and below IR version 4 Constant nodes. Values that it captures are in sight there too.
    3. A name that anything else in the model has as well gets a number.
    4. What the If returned keeps its name where a node of the branch computes it. A branch may also return a captured value, an
       initializer, or a value twice: then whatever used the If's output reads that, and outputs of a graph become its Identity.
    5. The other branch goes, with what only it used. Ifs within the branch that stays are inlined likewise; so are those in
       functions and in bodies of other nodes.
    6. A branch that holds what cannot be moved (sparse initializers, or inputs, which the specification rules out) stays.

    Source: ONNX If (since opset 1; bodies capture by name).
    """

    name = "inline-conditionals"
    ort = Deferral(optimizers=("ConstantFolding",), anchors=("If",), weights="folded")

    def run(self, session: PassSession) -> None:
        # Outer ones first: the inner ones of a branch that stays have moved when their turn comes, the others are gone.
        found = [node for graph in session.view.graphs() for node in graph.nodes if node.op == "If" and domain_of(node) == ""]
        inliner: _Inliner | None = None
        for node in found:
            if not getattr(node, "alive", True):
                continue
            taken = _taken(session, node)
            if isinstance(taken, str):
                session.reject(node, taken)
                continue
            inliner = inliner or _Inliner(session)
            inliner.inline(node, taken)
        if inliner is not None:
            session.view.facts_stale = True


def _taken(session: PassSession, node: Any) -> Any | str:
    """The branch that is always taken, or why there is none that could be inlined."""
    if len(node.inputs) != 1:
        return f"it has {len(node.inputs)} inputs instead of a condition"
    problem = _problem_with(node.inputs[0])
    if problem:
        return f"its condition '{node.inputs[0].name}' {problem}"
    name = _BRANCHES[bool(constant_of(node.inputs[0]).reshape(-1)[0])]  # type: ignore[union-attr]
    body = node.attrs.get(name)
    if not isinstance(body, gs.Graph) or len(body.outputs) < len(node.outputs):
        return f"its {name} does not give its outputs"
    if body.inputs:
        return f"its {name} declares the input '{body.inputs[0].name}'"
    source = state_of(body).proto
    if isinstance(source, GraphProto) and source.sparse_initializer:
        return f"its {name} holds sparse initializers"
    if session.view.opset_of(session.editor.graph_of(node)) < _IDENTITY_TAKES_ANYTHING:
        for tensor in node.outputs:
            if tensor.type != "tensor_type" and session.editor.is_graph_output(tensor):
                return f"its output '{tensor.name}' is no tensor, and Identity takes tensors only before opset 16"
    return body


def _problem_with(condition: Any) -> str:
    """Why the value is not a known boolean, or an empty string."""
    if not is_constant(condition):
        maker = producer(condition)
        return f"is computed at run time by {maker.op} '{label(maker)}'" if maker is not None else "is an input"
    value = constant_of(condition) if is_small_constant(condition, 1) else None
    if value is None:
        # The value of a Constant node in a function may be an attribute of the call.
        return "is given by the caller of the function" if not isinstance(condition, gs.Constant) else "has several elements"
    if value.size != 1 or value.dtype != np.bool_:
        return f"is not one boolean, but {value.dtype.name} of shape {list(value.shape)}"
    return ""


class _Inliner:
    """Moves branches; knows how often each name is given, so that what moves gets a name of its own."""

    def __init__(self, session: PassSession) -> None:
        self._session = session
        self._editor = session.editor
        self._values: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        for graph in session.view.graphs():
            self._count(graph, 1)
        functions = session.view.functions
        self._without_initializers = {id(graph) for top in functions for graph in (top, *walk_bodies(top))}
        if session.view.model.proto.ir_version < _FIRST_IR_WITH_FREE_INITIALIZERS:
            self._without_initializers = {id(graph) for graph in session.view.graphs()}

    def inline(self, node: Any, body: Any) -> None:
        """Puts the branch ``body`` of the If ``node`` in its place. Records the site."""
        session, editor = self._session, self._editor
        graph = editor.graph_of(node)
        others = [inner for other in node.subgraphs() if other is not body for inner in (other, *walk_bodies(other))]
        dead = [item for other in others for item in other.nodes]
        for other in others:
            self._count(other, -1)
        feeders = [maker for tensor in (*node.inputs, *captured(node)) if (maker := producer(tensor)) is not None]
        returned = list(body.outputs)
        self._move_initializers(body, graph)
        moved = editor.dissolve(body, node)
        for item in moved:
            item.name = self._own(item.name, self._nodes)
            for tensor in item.outputs:
                tensor.name = self._own(tensor.name, self._values)
        editor.remove(node)
        added = self._hand_over(node, returned, {id(item) for item in moved})
        session.record(graph, [node, *dead, *remove_unused(session, feeders)], added)

    def _hand_over(self, node: Any, returned: list[Any], moved: set[int]) -> list[Any]:
        """Lets what used the If's outputs use what the branch returns; returns the Identities that this needs."""
        editor, added = self._editor, []
        stands_for: dict[int, Any] = {}
        for output, inner in zip(node.outputs, returned, strict=False):
            value = stands_for.get(id(inner), inner)
            maker = producer(value)
            if not output.name:
                continue
            if maker is not None and id(maker) in moved and value is inner and not editor.is_graph_output(value):
                editor.take_output(output, maker, index_of(maker.outputs, value))
                share_facts(self._session, value, output)
                stands_for[id(inner)] = output
            else:
                share_facts(self._session, output, value)
                added += editor.redirect(output, value, node)
        return added

    def _move_initializers(self, body: Any, graph: Any) -> None:
        held = state_of(body).initializers
        for constant in held.values():
            constant.name = self._own(constant.name, self._values)
            if id(graph) not in self._without_initializers:
                state_of(graph).initializers[constant.name] = constant
        held.clear()

    def _count(self, graph: Any, step: int) -> None:
        for tensor in (*graph.inputs, *state_of(graph).initializers.values()):
            self._values[tensor.name] += step
        for node in graph.nodes:
            self._nodes[node.name] += step
            for tensor in node.outputs:
                self._values[tensor.name] += step

    def _own(self, name: str, taken: Counter[str]) -> str:
        """The name, if nothing else has it, else a new one. Absent names stay absent."""
        if not name or taken[name] <= 1:
            return name
        taken[name] -= 1
        number = self._numbers[name] + 1
        while taken[f"{name}_{number}"]:
            number += 1
        self._numbers[name] = number
        taken[f"{name}_{number}"] += 1
        return f"{name}_{number}"
