"""The ``shape-simplification`` pass."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.elements import make_constant, make_node, make_variable
from rewright.model.facts import attribute, constant_of, is_constant, is_small_constant, producer
from rewright.model.graph import state_of
from rewright.model.names import scope_of
from rewright.model.order import node_has_bodies
from rewright.passes.cleanup.bypass import bypass, remove_unused, take_out
from rewright.passes.cleanup.equal_sizes import merge_equal_sizes
from rewright.passes.cleanup.shape_numbers import fold_numbers
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession
from rewright.shapes.dimensions import Size
from rewright.shapes.items import Items
from rewright.shapes.layout import reaches, slice_ranges
from rewright.shapes.walk import shapes_of

_FIRST_IR_WITH_FREE_INITIALIZERS: Final = 4
_SHAPE_IS_AN_INPUT: Final = 5
_SLICE_HAS_INPUTS: Final = 10
_AXES_ARE_INPUTS: Final = 13


class ShapeSimplification(GraphPass):
    """Evaluates shape arithmetic with symbols for dimensions, and replaces what it proves.

    1. Small integer vectors are followed element by element through Shape, Gather, Slice, Concat, Unsqueeze, arithmetic,
       comparison, Where, Cast and their like. An element is a number, a size made of dimensions, or unknown. Dimensions are equal
       if they are the same symbol, or the same axis of the same value; nothing is assumed from numbers that happen to agree.
    2. The computed target of a Reshape becomes a constant if each entry is a number or provably the input's dimension at
       that index, which is written 0. ``allowzero`` goes; where it is set and the target has a 0 of its own, the node stays.
    3. One entry may be anything if all others are positive numbers: it is what remains, and is written -1. It is never written
       beside a 0, because such a Reshape fails on empty tensors. A -1 that the export wrote stays. A target that only puts ones
       between the input's dimensions becomes an Unsqueeze instead, as masks have it.
    4. Reshapes of a Reshape that nothing else uses read the first one's input, if each 0 of their targets can be said of it.
    5. Expand to dimensions that the value has goes; so does Slice from 0 to the dimension's own end, and Where of which the
       condition is known throughout and the chosen value has the result's dimensions.
    6. An integer or boolean vector that is wholly known becomes an initializer.
    7. Scalars and vectors of int64 whose elements are all known and equal are computed once: later ones, those in branches of If
       included, read the first one, unless that one takes more nodes and would go itself. Bodies of loops are left alone. Only
       names that the model's inputs give, or that are made up here, show that sizes are equal: what a model merely declares of a
       computed value may be wrong.
    8. Arithmetic that nothing uses after that goes with its last consumer.

    As in all of this, the dimensions of a Reshape with a computed target are those that the target says, which holds for tensors
    that have elements.

    Outputs of a graph keep their names and producers. Functions are left alone (inline them first), and so are models below IR
    version 4, whose signature new initializers would change.
    """

    name = "shape-simplification"
    keeps_facts = True
    ort = Deferral(
        optimizers=("ReshapeFusion", "PreShapeNodeElimination"),
        classes=("FusionReshape", "FusionShape"),
        anchors=("Shape",),
    )

    def run(self, session: PassSession) -> None:
        view = session.view
        if view.model.proto.ir_version < _FIRST_IR_WITH_FREE_INITIALIZERS:
            session.notes.append(f"shapes stay computed: IR version {view.model.proto.ir_version} lists initializers as inputs")
            return
        session.ensure_facts()
        simplifier = _Simplifier(session)
        simplifier.graph(view.graph)
        fold_numbers(session)
        session.editor.finish()
        merge_equal_sizes(session)
        session.editor.finish()
        simplifier.collapse(view.graph)
        simplifier.report()


class _Simplifier:
    def __init__(self, session: PassSession) -> None:
        self.session = session
        self.opset = session.view.opset_of(session.view.graph)
        self.shapes = shapes_of(session.view)
        self._refused: list[tuple[Any, str]] = []

    def report(self) -> None:
        """Records the Reshapes that keep a computed target."""
        for node, reason in self._refused:
            self.session.reject(node, reason)

    def graph(self, graph: Any) -> None:
        """Rules 2, 3 and 5 in a graph and its bodies."""
        for node in list(graph.nodes):
            if not getattr(node, "alive", True):
                continue
            if node_has_bodies(node):
                for body in node.subgraphs():
                    self.graph(body)
            elif domain_of(node):
                continue
            elif node.op == "Reshape" and self.opset >= _SHAPE_IS_AN_INPUT:
                self._reshape(graph, node)
            elif node.op in ("Expand", "Slice") and self._changes_nothing(node):
                bypass(self.session, node, node.inputs[0])
            elif node.op == "Where" and (chosen := self._chosen(node)) is not None:
                bypass(self.session, node, chosen)

    def collapse(self, graph: Any) -> None:
        """Rule 4, after the walk: only then is it known what reads a Reshape beside the next one."""
        editor = self.session.editor
        needed: dict[int, Any] = {}
        pending = list(reversed(graph.nodes))
        while pending:
            node = pending.pop()
            if node_has_bodies(node):
                for body in node.subgraphs():
                    self.collapse(body)
            if not getattr(node, "alive", True) or not self._is_reshape(node) or id(node.inputs[0]) in needed:
                continue
            between = node.inputs[0]
            first = producer(between)
            if first is None or not self._is_reshape(first):
                continue
            users = editor.consumers(between)
            targets = self._collapsed(users, first)
            if targets is None:
                needed[id(between)] = between
                continue
            for user, entries in zip(users, targets, strict=True):
                pending.append(self._replace(editor.graph_of(user), user, first.inputs[0], entries))
            needed.pop(id(first.inputs[0]), None)  # its readers are others now

    def _is_reshape(self, node: Any) -> bool:
        return node.op == "Reshape" and not domain_of(node) and self.opset >= _SHAPE_IS_AN_INPUT and len(node.inputs) > 1

    def _reshape(self, graph: Any, node: Any) -> Any:
        """Rules 2 and 3. Returns the node that stands there afterwards."""
        dims, target = self.shapes.dims(node.inputs[0]), self.shapes.items(node.inputs[1])
        allowzero = bool(attribute(node, "allowzero", 0))
        if not is_constant(node.inputs[1]):
            if target is None or not target.is_vector:
                self._refused.append((node, "its target is not shape arithmetic that can be followed"))
                return node
            if target.array() is None:
                entries = _entries(dims, target, allowzero)
                if isinstance(entries, str):
                    axes = _inserted_ones(dims, target)
                    if axes is not None:
                        return self._replace(graph, node, node.inputs[0], axes, "Unsqueeze")
                    self._refused.append((node, entries))
                    return node
                node = self._replace(graph, node, node.inputs[0], entries)
        return node

    def _collapsed(self, users: list[Any], first: Any) -> list[list[int]] | None:
        """The targets with which all that reads ``first`` can read what it reads; None if that cannot be said of one."""
        between, targets = first.outputs[0], []
        if self.session.editor.is_graph_output(between):
            return None
        for user in users:
            if not self._is_reshape(user) or user.inputs[0] is not between:
                return None
            target = self._collapsed_target(user, first)
            if target is None:
                return None
            targets.append(target)
        return targets

    def _collapsed_target(self, node: Any, first: Any) -> list[int] | None:
        held = constant_of(node.inputs[1]) if is_small_constant(node.inputs[1], 64) else None
        if held is None or (attribute(node, "allowzero", 0) and (held == 0).any()):
            return None
        dims, source = self.shapes.dims(node.inputs[0]), self.shapes.dims(first.inputs[0])
        entries: list[int] = []
        for index, entry in enumerate(int(item) for item in held.reshape(-1)):
            if entry != 0:
                entries.append(entry)
                continue
            copied = dims[index] if dims is not None and index < len(dims) else None
            if copied is not None and source is not None and index < len(source) and source[index] == copied:
                entries.append(0)
            elif isinstance(copied, int) and copied > 0:
                entries.append(copied)
            else:
                return None
        return entries

    def _replace(self, graph: Any, node: Any, source: Any, operand: list[int], op: str = "Reshape") -> Any:
        """Puts a Reshape to ``operand``, or an Unsqueeze of these axes, in the place of ``node``."""
        session, output = self.session, node.outputs[0]
        name = node.name or session.names.fresh(f"{output.name}/{op}")
        inputs = [source]
        if op == "Reshape" or self.opset >= _AXES_ARE_INPUTS:
            base = "shape" if op == "Reshape" else "axes"
            constant = make_constant(session.names.fresh(f"{scope_of(node)}/{base}"), np.asarray(operand, np.int64))
            state_of(graph).initializers[constant.name] = constant
            inputs.append(constant)
        made = make_node(op, name, "", inputs, [make_variable(f"{output.name}/reshaped")])
        if len(inputs) == 1:
            made.attrs["axes"] = operand
        session.editor.insert([made], node)
        feeders = take_out(session, node)
        session.editor.take_output(output, made)
        session.record(graph, [node, *remove_unused(session, feeders)], [made])
        return made

    def _chosen(self, node: Any) -> Any | None:
        """The value that a Where always gives, where broadcasting does not change it."""
        condition = self.shapes.numbers(node, 0)
        if not condition or len(set(condition)) > 1:
            return None
        source = node.inputs[1 if condition[0] else 2]
        dims = self.shapes.dims(source)
        return source if dims is not None and dims == self.shapes.dims(node.outputs[0]) else None

    def _changes_nothing(self, node: Any) -> bool:
        """Rule 5."""
        dims = self.shapes.dims(node.inputs[0])
        if dims is None or len(node.inputs) < 2:
            return False
        if node.op == "Expand":
            wanted = self.shapes.items(node.inputs[1])
            if wanted is None or not wanted.is_vector or len(wanted.items) > len(dims):
                return False
            aligned = dims[len(dims) - len(wanted.items) :]
            return all(item is not None and item in (1, dim) for item, dim in zip(wanted.items, aligned, strict=True))
        ranges = slice_ranges(self.shapes, node) if self.opset >= _SLICE_HAS_INPUTS else None
        return ranges is not None and all(
            start == 0 and step == 1 and reaches(end, dims[axis]) for axis, (start, end, step) in ranges.items()
        )


def _entries(dims: list[Size] | None, target: Items, allowzero: bool) -> list[int] | str:
    """The constant that can stand for the target of a Reshape, or why there is none."""
    entries: list[int] = []
    unproven: list[int] = []
    for index, item in enumerate(target.items):
        if isinstance(item, int):
            if item < -1 or (item == 0 and allowzero):
                return f"entry {index} of its target is {item}" + (" and allowzero is set" if item == 0 else "")
            entries.append(item)
        elif item is not None and dims is not None and index < len(dims) and dims[index] == item:
            entries.append(0)
        else:
            unproven.append(index)
            entries.append(-1)
    if unproven and (len(unproven) > 1 or any(entry <= 0 for index, entry in enumerate(entries) if index != unproven[0])):
        return f"entry {unproven[0]} of its target is neither a number nor proven to be the input's dimension there"
    return entries


def _inserted_ones(dims: list[Size] | None, target: Items) -> list[int] | None:
    """The axes that an Unsqueeze inserts to give the target, if it consists of the input's dimensions and ones."""
    axes: list[int] = []
    matched = 0
    for index, item in enumerate(target.items):
        if dims is not None and matched < len(dims) and item == dims[matched]:
            matched += 1
        elif item == 1:
            axes.append(index)
        else:
            return None
    return axes if dims is not None and matched == len(dims) and axes else None
