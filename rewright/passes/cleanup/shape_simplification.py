"""The ``shape-simplification`` pass."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from rewright.model.edit import domain_of
from rewright.model.elements import make_constant, make_node, make_variable
from rewright.model.facts import attribute, constant_of, infer_outputs, is_constant, is_small_constant, producer, shape_of
from rewright.model.graph import state_of
from rewright.model.names import scope_of
from rewright.model.order import node_has_bodies
from rewright.model.view import MADE_UP_SYMBOL
from rewright.passes.cleanup.bypass import become_constants, bypass, remove_unused, take_out
from rewright.passes.cleanup.dimensions import Size
from rewright.passes.cleanup.shape_values import Items, ShapeValues
from rewright.passes.cleanup.symbolic_shapes import reaches, slice_ranges, symbolic_dims
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession

_FIRST_IR_WITH_FREE_INITIALIZERS: Final = 4
_SHAPE_IS_AN_INPUT: Final = 5
_SLICE_HAS_INPUTS: Final = 10
_BROADCASTS_LIKE_NUMPY: Final = 7
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
    4. Reshape of a Reshape that nothing else uses reads the first one's input, if each 0 of its target can be said of it.
    5. Expand to dimensions that the value has goes; so does Slice from 0 to the dimension's own end.
    6. An integer or boolean vector that is wholly known becomes an initializer.
    7. Arithmetic that nothing uses after that goes with its last consumer.

    Outputs of a graph keep their names and producers. Functions are left alone (inline them first), and so are models below IR
    version 4, whose signature new initializers would change.
    """

    name = "shape-simplification"

    def run(self, session: PassSession) -> None:
        view = session.view
        if view.model.proto.ir_version < _FIRST_IR_WITH_FREE_INITIALIZERS:
            session.notes.append(f"shapes stay computed: IR version {view.model.proto.ir_version} lists initializers as inputs")
            return
        session.ensure_facts()
        sweep = _Sweep(session)
        sweep.graph(view.graph)
        sweep.fold_numbers()


class _Sweep:
    """One walk in topological order. What it learns about a value's shape reaches the nodes behind it at once."""

    def __init__(self, session: PassSession) -> None:
        self._session = session
        self._opset = session.view.opset_of(session.view.graph)
        self._values = ShapeValues(self._opset)
        self._improved: dict[int, Any] = {}
        self._numbers: dict[int, tuple[Any, np.ndarray[Any, Any]]] = {}

    def graph(self, graph: Any) -> None:
        """Walks a graph and its bodies."""
        for tensor in graph.inputs:
            if None in (shape_of(tensor) or ()):
                self._values.dims_of(tensor)
                self._improved[id(tensor)] = tensor
        for node in list(graph.nodes):
            if not getattr(node, "alive", True):
                continue
            if node_has_bodies(node):
                for body in node.subgraphs():
                    self.graph(body)
            elif not domain_of(node) and node.outputs:
                self._node(graph, node)

    def _node(self, graph: Any, node: Any) -> None:
        if any(id(tensor) in self._improved for tensor in node.inputs):
            self._infer_again(node)
        self._improve(node)
        if node.op == "Reshape" and self._opset >= _SHAPE_IS_AN_INPUT:
            node = self._reshape(graph, node)
        if node.op in ("Expand", "Slice") and self._changes_nothing(node):
            source = node.inputs[0]
            if bypass(self._session, node, source) is None:
                self._improved[id(source)] = source
                return
        found = self._values.visit(node)
        array = found.array() if found is not None else None
        if array is not None and not self._session.editor.is_graph_output(node.outputs[0]):
            self._numbers[id(node)] = (node, array)

    def fold_numbers(self) -> None:
        """Rule 6: the values at the border of what is known become initializers; what is behind the border goes."""
        editor = self._session.editor
        for node, array in self._numbers.values():
            alive = getattr(node, "alive", True)
            if alive and any(id(user) not in self._numbers for user in editor.consumers(node.outputs[0])):
                become_constants(self._session, node, {id(node.outputs[0]): array})

    def _infer_again(self, node: Any) -> None:
        """Repeats onnx's inference for one node whose inputs are better known than when the model was inferred."""
        before = [(tensor, shape_of(tensor)) for tensor in node.outputs if tensor.name]
        if not any(shape is None or any(_is_vague(dim) for dim in shape) for _, shape in before):
            return
        for tensor, shape in before:
            if shape is not None:
                tensor.shape = [None if _is_vague(dim) else dim for dim in shape]
        infer_outputs(node, self._opset)
        given = {dim for tensor in node.inputs for dim in shape_of(tensor) or ()}
        for tensor, shape in before:
            now = shape_of(tensor)
            if now is None:
                continue
            known = shape if shape is not None and len(shape) == len(now) else (None,) * len(now)
            # Symbols that this inference made up mean nothing outside it; the model-wide one's do.
            tensor.shape = [
                old if new is None or (_is_vague(new) and new not in given) else new for old, new in zip(known, now, strict=True)
            ]
            if tuple(tensor.shape) != shape:
                self._improved[id(tensor)] = tensor

    def _improve(self, node: Any) -> None:
        """Notes the dimensions of the node's output where they were not known, or known by a made-up name only."""
        tensor = node.outputs[0]
        before = shape_of(tensor)
        if not isinstance(tensor, gs.Variable) or (before is not None and not any(map(_is_vague, before))):
            return
        if (node.op == "Slice" and self._opset < _SLICE_HAS_INPUTS) or self._opset < _BROADCASTS_LIKE_NUMPY:
            return
        sizes = symbolic_dims(node, self._values)
        if sizes is None or (before is not None and len(before) != len(sizes)):
            return
        old = before if before is not None else (None,) * len(sizes)
        facts = [self._values.fact(size) for size in sizes]
        after = [new if new is not None and _is_vague(dim) else dim for dim, new in zip(old, facts, strict=True)]
        if before is None or tuple(after) != before:
            tensor.shape = after
            self._improved[id(tensor)] = tensor

    def _reshape(self, graph: Any, node: Any) -> Any:
        """Rules 2 to 4. Returns the node that stands there afterwards."""
        dims, target = self._values.dims_of(node.inputs[0]), self._values.of(node.inputs[1])
        allowzero = bool(attribute(node, "allowzero", 0))
        if not is_constant(node.inputs[1]):
            if target is None or not target.is_vector:
                self._session.reject(node, "its target is not shape arithmetic that can be followed")
                return node
            if target.array() is None:
                entries = _entries(dims, target, allowzero)
                if isinstance(entries, str):
                    axes = _inserted_ones(dims, target)
                    if axes is not None:
                        return self._replace(graph, node, node.inputs[0], axes, "Unsqueeze")
                    self._session.reject(node, entries)
                    return node
                node = self._replace(graph, node, node.inputs[0], entries)
        first = producer(node.inputs[0])
        if first is not None and first.op == "Reshape" and not domain_of(first):
            collapsed = self._collapsed(node, first)
            if collapsed is not None:
                node = self._replace(graph, node, first.inputs[0], collapsed)
        return node

    def _collapsed(self, node: Any, first: Any) -> list[int] | None:
        """The target with which ``node`` can read what ``first`` reads."""
        editor, between = self._session.editor, node.inputs[0]
        if editor.is_graph_output(between) or len(editor.consumers(between)) != 1 or len(first.inputs) < 2:
            return None
        held = constant_of(node.inputs[1]) if is_small_constant(node.inputs[1], 64) else None
        if held is None or (attribute(node, "allowzero", 0) and (held == 0).any()):
            return None
        dims, source = self._values.dims_of(between), self._values.dims_of(first.inputs[0])
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
        session, output = self._session, node.outputs[0]
        name = node.name or session.names.fresh(f"{output.name}/{op}")
        inputs = [source]
        if op == "Reshape" or self._opset >= _AXES_ARE_INPUTS:
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

    def _changes_nothing(self, node: Any) -> bool:
        """Rule 5."""
        dims = self._values.dims_of(node.inputs[0])
        if dims is None or len(node.inputs) < 2:
            return False
        if node.op == "Expand":
            wanted = self._values.of(node.inputs[1])
            if wanted is None or not wanted.is_vector or len(wanted.items) > len(dims):
                return False
            aligned = dims[len(dims) - len(wanted.items) :]
            return all(item is not None and item in (1, dim) for item, dim in zip(wanted.items, aligned, strict=True))
        ranges = slice_ranges(node, self._values) if self._opset >= _SLICE_HAS_INPUTS else None
        return ranges is not None and all(
            start == 0 and step == 1 and reaches(end, dims[axis]) for axis, (start, end, step) in ranges.items()
        )


def _is_vague(dim: Any) -> bool:
    """Whether the dimension is unknown, or has a name that inference made up."""
    return dim is None or (isinstance(dim, str) and dim.startswith(MADE_UP_SYMBOL))


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
