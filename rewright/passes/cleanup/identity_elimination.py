"""The ``identity-elimination`` pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx

from rewright.model.edit import domain_of
from rewright.model.elements import make_node, make_variable
from rewright.model.facts import Dim, attribute, constant_of, dtype_of, is_small_constant, producer, shape_of
from rewright.model.names import scope_of
from rewright.passes.cleanup.bypass import bypass
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession

Shape = tuple[Dim, ...]

_TO_THE_END: Final = 2**31 - 1
"""The operator's documentation asks for INT_MAX where a Slice runs to the end of a dimension of unknown size."""

_AXES_ARE_INPUTS: Final = 13
_ARITHMETIC_BROADCASTS_LIKE_NUMPY: Final = 7


class IdentityElimination(GraphPass):
    """Removes nodes that give their input back, bit for bit, and merges Transposes that follow each other.

    1. Identity goes. So do Dropout in inference whose mask is unused, Cast and CastLike to the dtype that the value has, and
       Concat of one input. Dropout whose ``training_mode`` is not constant false stays.
    2. Reshape and Expand go where the output's shape is proven to be the input's: by constant targets (0 and -1 as the
       operator defines them, ``allowzero`` observed) or by equal dimensions. A single unknown dimension is enough to refuse.
    3. Slice goes where every step is 1 and every range is proven to be whole.
    4. Transpose goes if its permutation changes nothing. Two in a row become one, ``perm[i] = first[second[i]]``, or none.
       A missing ``perm`` means reversal; without a known rank such a node stays. Equal permutations are not inverses. The
       first one stays if something else uses it.
    5. Squeeze and Unsqueeze go as a pair with the same constant axes; a Squeeze without axes stays.
    6. ``x * 1``, ``x / 1``, ``x - 0`` go for a constant of one element that does not widen x. ``x + 0.0`` stays, because it turns
       -0.0 into 0.0 (``x - 0.0`` and ``x + -0.0`` do not); for integers ``x + 0`` goes.

    An output of a graph keeps its name: the node before takes it over. Where an output is an input, a constant, a captured value
    or another output, an Identity is what ONNX asks for, and stays.
    """

    name = "identity-elimination"
    keeps_facts = True
    ort = Deferral(
        optimizers=(
            "EliminateIdentity",
            "NoopElimination",
            "CastElimination",
            "CastChainElimination",
            "EliminateSlice",
            "ExpandElimination",
            "EliminateDropout",
        ),
    )

    def run(self, session: PassSession) -> None:
        session.ensure_facts()
        for graph in list(session.view.graphs()):
            opset = session.view.opset_of(graph)
            rules = _Rules(session, opset)
            for node in list(graph.nodes):
                if not getattr(node, "alive", True):
                    continue
                if node.op in _RULES and not domain_of(node) and node.inputs and node.outputs:
                    source = _RULES[node.op](rules, node)
                    if source is not None and (reason := bypass(session, node, source)) is not None:
                        session.reject(node, reason)


class _Rules:
    """Each method returns the value that the node's first output equals, or None."""

    def __init__(self, session: PassSession, opset: int) -> None:
        self._session = session
        self._opset = opset

    def identity(self, node: Any) -> Any | None:
        return node.inputs[0]

    def dropout(self, node: Any) -> Any | None:
        training = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        if training is not None:
            value = constant_of(training)
            if value is None or bool(value.any()):
                return self._refuse(node, "training_mode is not constant false")
        elif self._opset < 7 and not attribute(node, "is_test", 0):
            return self._refuse(node, "is_test is not set")
        if len(node.outputs) > 1 and node.outputs[1].name and self._session.editor.is_used(node.outputs[1]):
            return self._refuse(node, "its mask is used")
        return node.inputs[0]

    def cast(self, node: Any) -> Any | None:
        to = attribute(node, "to")
        known = dtype_of(node.inputs[0])
        same = isinstance(to, int) and known is not None and onnx.helper.tensor_dtype_to_np_dtype(to) == known
        return node.inputs[0] if same else None

    def cast_like(self, node: Any) -> Any | None:
        known, like = dtype_of(node.inputs[0]), dtype_of(node.inputs[1])
        return node.inputs[0] if known is not None and known == like else None

    def concat(self, node: Any) -> Any | None:
        return node.inputs[0] if len(node.inputs) == 1 else None

    def reshape(self, node: Any) -> Any | None:
        shape = shape_of(node.inputs[0])
        if shape is None:
            return None
        if _same_shape(shape, shape_of(node.outputs[0])):
            return node.inputs[0]
        if len(node.inputs) > 1 and _same_shape(shape, _shape_read_by(node.inputs[1])):
            return node.inputs[0]
        target = _ints(node.inputs[1]) if len(node.inputs) > 1 else None
        if target is None or len(target) != len(shape):
            return None
        copies = not attribute(node, "allowzero", 0)
        inferred = target.count(-1)
        kept = [(wanted == 0 and copies) or wanted == dim for wanted, dim in zip(target, shape, strict=True)]
        return node.inputs[0] if inferred <= 1 and sum(kept) >= len(target) - inferred and _rest_kept(target, kept) else None

    def expand(self, node: Any) -> Any | None:
        shape = shape_of(node.inputs[0])
        if shape is None:
            return None
        if _same_shape(shape, shape_of(node.outputs[0])):
            return node.inputs[0]
        if _same_shape(shape, _shape_read_by(node.inputs[1])):
            return node.inputs[0]
        wanted = _ints(node.inputs[1])
        if wanted is None or len(wanted) > len(shape):
            return None
        aligned = shape[len(shape) - len(wanted) :]
        return node.inputs[0] if all(w in (1, dim) for w, dim in zip(wanted, aligned, strict=True)) else None

    def slice(self, node: Any) -> Any | None:
        starts, ends = self._setting(node, "starts", 1), self._setting(node, "ends", 2)
        axes, steps = self._setting(node, "axes", 3, True), self._setting(node, "steps", 4, True)
        if (isinstance(steps, list) and any(step != 1 for step in steps)) or steps is None:
            return None
        shape = shape_of(node.inputs[0])
        if _same_shape(shape, shape_of(node.outputs[0])):
            return node.inputs[0]
        if not isinstance(starts, list) or not isinstance(ends, list) or axes is None:
            return None
        positions = axes if isinstance(axes, list) else list(range(len(starts)))
        for start, end, axis in zip(starts, ends, positions, strict=True):
            dim = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
            whole_end = end >= _TO_THE_END or (isinstance(dim, int) and end >= dim)
            if not whole_end or not (start == 0 or (isinstance(dim, int) and start <= -dim)):
                return None
        return node.inputs[0]

    def transpose(self, node: Any) -> Any | None:
        own = self._perm(node)
        if own is not None and own == list(range(len(own))):
            return node.inputs[0]
        first = producer(node.inputs[0])
        if first is None or first.op != "Transpose" or domain_of(first):
            return None
        before = self._perm(first)
        if own is None and before is not None and attribute(node, "perm") is None:
            own = list(reversed(range(len(before))))
        if before is None and own is not None and attribute(first, "perm") is None:
            before = list(reversed(range(len(own))))
        if own is None or before is None or len(own) != len(before):
            return self._refuse(node, "a permutation is not given and the rank is unknown")
        merged = [before[axis] for axis in own]
        if merged == list(range(len(merged))):
            return first.inputs[0]
        self._merge_transposes(node, first, merged)
        return None

    def squeeze(self, node: Any) -> Any | None:
        return self._undoes(node, "Unsqueeze")

    def unsqueeze(self, node: Any) -> Any | None:
        return self._undoes(node, "Squeeze")

    def multiply(self, node: Any) -> Any | None:
        return self._neutral(node, (1, 0), lambda value: bool(value == 1))

    def divide(self, node: Any) -> Any | None:
        return self._neutral(node, (1,), lambda value: bool(value == 1))

    def subtract(self, node: Any) -> Any | None:
        return self._neutral(node, (1,), lambda value: bool(value == 0) and not _is_negative_zero(value))

    def add(self, node: Any) -> Any | None:
        found = self._neutral(node, (1, 0), lambda value: _is_negative_zero(value) if _is_float(value) else bool(value == 0))
        if found is None and any(_is_zero(tensor) for tensor in node.inputs):
            return self._refuse(node, "x + 0.0 is not x where x is -0.0, or the zero widens x")
        return found

    def _refuse(self, node: Any, reason: str) -> Any | None:
        self._session.reject(node, reason)
        return None

    def _setting(self, node: Any, name: str, index: int, optional: bool = False) -> list[int] | str | None:
        """The constant values of a Slice's input or attribute; "absent" if it may be and is; None if it is not known."""
        if self._opset < 10:
            held = attribute(node, name)
            return [int(item) for item in held] if isinstance(held, list) else "absent" if optional else None
        if len(node.inputs) <= index or not node.inputs[index].name:
            return "absent" if optional else None
        return _ints(node.inputs[index])

    def _perm(self, node: Any) -> list[int] | None:
        perm = attribute(node, "perm")
        if perm is not None:
            return [int(axis) for axis in perm] if isinstance(perm, list) else None
        shape = shape_of(node.inputs[0]) or shape_of(node.outputs[0])
        return list(reversed(range(len(shape)))) if shape is not None else None

    def _merge_transposes(self, node: Any, first: Any, perm: list[int]) -> None:
        session, editor = self._session, self._session.editor
        graph, output = editor.graph_of(node), node.outputs[0]
        name = session.names.fresh(f"{scope_of(node)}/Transpose")
        merged = make_node("Transpose", name, "", [first.inputs[0]], [make_variable(session.names.fresh(name))])
        merged.attrs["perm"] = perm
        editor.insert([merged], node)
        editor.remove(node)
        editor.take_output(output, merged)
        unused = [] if any(editor.is_used(tensor) for tensor in first.outputs) else [first]
        session.record(graph, [node, *editor.remove_with_dead_producers(unused)], [merged])

    def _undoes(self, node: Any, other: str) -> Any | None:
        before = producer(node.inputs[0])
        if before is None or before.op != other or domain_of(before):
            return None
        own, theirs = self._axes(node), self._axes(before)
        if own is None or theirs is None:
            return self._refuse(node, f"the axes of {node.op} or {other} are not given, or not constant")
        return before.inputs[0] if sorted(own) == sorted(theirs) else None

    def _axes(self, node: Any) -> list[int] | None:
        """The constant axes; both ops of a pair count them in the same rank, so that equal numbers are equal axes."""
        if self._opset < _AXES_ARE_INPUTS:
            held = attribute(node, "axes")
            return [int(axis) for axis in held] if isinstance(held, list) else None
        return _ints(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1].name else None

    def _neutral(self, node: Any, sides: tuple[int, ...], is_neutral: Callable[[Any], bool]) -> Any | None:
        if self._opset < _ARITHMETIC_BROADCASTS_LIKE_NUMPY:
            return None
        for side in sides:
            tensor, source = node.inputs[side], node.inputs[1 - side]
            value = constant_of(tensor) if is_small_constant(tensor, 1) else None
            if value is None or value.size != 1 or value.dtype.kind in "OSU" or not is_neutral(value.reshape(())[()]):
                continue
            shape = shape_of(source)
            if value.ndim == 0 or (shape is not None and len(shape) >= value.ndim):
                return source
            self._refuse(node, "the neutral constant gives the value more axes, or its rank is unknown")
        return None


_RULES: Final[dict[str, Callable[[_Rules, Any], Any | None]]] = {
    "Identity": _Rules.identity,
    "Dropout": _Rules.dropout,
    "Cast": _Rules.cast,
    "CastLike": _Rules.cast_like,
    "Concat": _Rules.concat,
    "Reshape": _Rules.reshape,
    "Expand": _Rules.expand,
    "Slice": _Rules.slice,
    "Transpose": _Rules.transpose,
    "Squeeze": _Rules.squeeze,
    "Unsqueeze": _Rules.unsqueeze,
    "Mul": _Rules.multiply,
    "Div": _Rules.divide,
    "Sub": _Rules.subtract,
    "Add": _Rules.add,
}


def _same_shape(one: Shape | None, other: Shape | None) -> bool:
    return one is not None and one == other and None not in one


def _shape_read_by(tensor: Any) -> Shape | None:
    """The shape that a Shape node without ``start`` and ``end`` gives as ``tensor``."""
    node = producer(tensor)
    if node is None or node.op != "Shape" or domain_of(node) or attribute(node, "start") or attribute(node, "end") is not None:
        return None
    return shape_of(node.inputs[0])


def _rest_kept(target: list[int], kept: list[bool]) -> bool:
    """Whether the entries that are not proven equal are just the one -1, which then is what remains."""
    return all(equal or wanted == -1 for wanted, equal in zip(target, kept, strict=True))


def _ints(tensor: Any) -> list[int] | None:
    """The elements of a small constant vector of integers."""
    if not is_small_constant(tensor, 64):
        return None
    value = constant_of(tensor)
    return [int(item) for item in value.reshape(-1)] if value is not None and value.dtype.kind in "iu" else None


def _is_zero(tensor: Any) -> bool:
    value = constant_of(tensor) if is_small_constant(tensor, 1) else None
    return value is not None and value.size == 1 and value.dtype.kind not in "OSU" and bool((value == 0).all())


def _is_float(value: Any) -> bool:
    return bool(np.asarray(value).dtype.kind not in "iub")


def _is_negative_zero(value: Any) -> bool:
    return _is_float(value) and bool(value == 0) and bool(np.signbit(np.asarray(value).astype(np.float64)))
