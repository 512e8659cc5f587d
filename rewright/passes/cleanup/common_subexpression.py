"""The ``common-subexpression`` pass."""

from __future__ import annotations

from typing import Any, Final

import onnx_graphsurgeon as gs

from rewright.model.edit import domain_of
from rewright.model.elements import WeightRef
from rewright.model.graph import state_of
from rewright.model.order import node_has_bodies
from rewright.model.tensors import weight_slice
from rewright.passes.cleanup.attributes import attribute_protos
from rewright.passes.cleanup.bypass import share_facts
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession

Key = tuple[Any, ...]

_RANDOM: Final = frozenset(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"))
_DETERMINISTIC_DOMAINS: Final = ("", "ai.onnx.ml", "com.microsoft")
_CONTENT_LIMIT: Final = 1024


class CommonSubexpression(GraphPass):
    """Computes once what is computed several times, and stores equal constants once.

    1. Nodes of the same op, domain, attributes, inputs and set of present outputs are one node: the first. An omitted optional
       input equals an omitted one only; attributes are compared as they are written, so that a default that is spelled out
       differs from an absent one.
    2. Never merged: random ops, Dropout that may train, nodes with bodies, calls of functions, and ops of domains other than
       ONNX's own and com.microsoft, which may have a state.
    3. Constants are one if dtype, shape and bytes are equal: bit by bit up to 1 KiB (so 0.0 and -0.0 differ), and by being the
       same slice of a file above, which reads no weight.
    4. A body sees what its enclosing graphs have computed before it, never what a sibling branch has.
    5. Outputs of a graph keep their names. If both nodes produce outputs, the second becomes an Identity of the first. What a
       body returns stays in the body.
    """

    name = "common-subexpression"
    keeps_facts = True
    ort = Deferral(optimizers=("CommonSubexpressionElimination",))

    def run(self, session: PassSession) -> None:
        view = session.view
        functions = {(function.domain, function.name) for function in view.functions}
        for top in (view.graph, *view.functions):
            _Merger(session, functions).graph(top, [])


class _Merger:
    def __init__(self, session: PassSession, functions: set[tuple[str, str]]) -> None:
        self._session = session
        self._editor = session.editor
        self._functions = functions
        self._stands_for: dict[int, int] = {}  # outputs that a merged node took over, by the value that the keys know
        self._replaced: list[Any] = []  # kept, so that no other value gets their identity

    def graph(self, graph: Any, outer: list[dict[Key, Any]]) -> None:
        """Merges in ``graph`` and its bodies; ``outer`` are the tables of the enclosing graphs, the nearest first."""
        table: dict[Key, Any] = {}
        tables = [table, *outer]
        if self._merge_constants(graph, tables):
            self._session.record(graph, [], [])
        for node in list(graph.nodes):
            if node_has_bodies(node):
                for body in node.subgraphs():
                    self.graph(body, tables)
                continue
            key = self._key(node)
            if key is None:
                continue
            first = next((held[key] for held in tables if key in held), None)
            if first is None:
                table[key] = node
            else:
                self._merge(graph, first, node)

    def _key(self, node: Any) -> Key | None:
        domain = domain_of(node)
        if domain not in _DETERMINISTIC_DOMAINS or node.op in _RANDOM or (domain, node.op) in self._functions:
            return None
        if "Dropout" in node.op and len(node.inputs) > 2:
            return None
        if domain == "com.microsoft" and ("Random" in node.op or "Sampling" in node.op):
            return None
        attributes: tuple[bytes, ...] = ()
        source = getattr(node, "proto", None)
        if source is None or source.attribute or "_attrs" in node.__dict__:
            protos = attribute_protos(node)
            if protos is None:
                return None
            attributes = tuple(sorted(item.SerializeToString(deterministic=True) for item in protos))
        inputs = tuple(self._stands_for.get(id(tensor), id(tensor)) if tensor.name else 0 for tensor in node.inputs)
        while inputs and inputs[-1] == 0:
            inputs = inputs[:-1]
        return (domain, node.op, inputs, attributes, tuple(bool(tensor.name) for tensor in node.outputs))

    def _merge(self, graph: Any, first: Any, node: Any) -> None:
        """Lets the uses of ``node`` read ``first``, unless that gains nothing."""
        editor = self._editor
        returned = any(editor.is_graph_output(tensor) for tensor in node.outputs)
        if returned and (node.op == "Identity" or editor.graph_of(first) is not graph):
            return
        added: list[Any] = []
        renamed: list[tuple[int, Any]] = []
        for index, (old, new) in enumerate(zip(list(node.outputs), list(first.outputs), strict=True)):
            if old.name:
                share_facts(self._session, old, new)
                if editor.is_graph_output(old) and not editor.is_graph_output(new):
                    renamed.append((index, old))
                else:
                    added += editor.redirect(old, new, node)
        editor.remove(node)
        for index, output in renamed:
            replaced = first.outputs[index]
            self._stands_for[id(output)] = self._stands_for.get(id(replaced), id(replaced))
            self._replaced.append(replaced)
            editor.take_output(output, first, index)
        self._session.record(graph, [node], added)

    def _merge_constants(self, graph: Any, tables: list[dict[Key, Any]]) -> int:
        held = state_of(graph).initializers
        defaults = state_of(graph).input_defaults
        merged = 0
        for name, constant in [*held.items(), *((constant.name, constant) for constant in _new_constants(graph, held))]:
            key = _content(constant)
            if key is None:
                continue
            first = next((table[key] for table in tables if key in table), None)
            if first is None:
                tables[0][key] = constant
            elif first is not constant and name not in defaults and not self._editor.is_graph_output(constant):
                self._editor.redirect(constant, first, None)
                if held.get(name) is constant:
                    del held[name]
                merged += 1
        if merged:
            self._session.notes.append(f"merged {merged} equal constants of the graph '{graph.name}'")
        return merged


def _new_constants(graph: Any, held: dict[str, Any]) -> list[Any]:
    """Constants that passes made, which become initializers when the view is exported."""
    known = {id(constant) for constant in held.values()}
    found: dict[int, Any] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and id(tensor) not in known and not isinstance(tensor._values, WeightRef):
                found[id(tensor)] = tensor
    return list(found.values())


def _content(constant: Any) -> Key | None:
    """What makes the constant equal to another; None if that would need reading a large weight, or for strings."""
    held = constant._values
    place = weight_slice(constant)
    if place is not None:
        return ("weight", place, held.tensor.data_type, held.shape)
    if isinstance(held, WeightRef) and held.nbytes > _CONTENT_LIMIT:
        return None
    values = constant.values
    if values.dtype.kind in "OSU" or values.nbytes > _CONTENT_LIMIT:
        return None
    return ("values", values.dtype.name, values.shape, values.tobytes())
