"""The bias of an attention: everything that is added to the scores or selected in them, as one value that is added."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from onnx import TensorProto

from rewright.model.facts import constant_of, dtype_of, is_small_constant
from rewright.passes.attention.axes import Axis, Layout, Unproven, length
from rewright.passes.attention.causal import causal
from rewright.passes.attention.scores import ABSORBING, Term, lowest, unexpanded
from rewright.passes.attention.writing import Writer, fact_of, numbers
from rewright.pattern.values import Value

_MOST_ELEMENTS: Final = 1 << 22
_SELECTING: Final = ("keep-where", "mask-where")
_BY_ROUNDING: Final = -1e30
_STILL_MASKING: Final = -1e6


def bias(writer: Writer) -> Value | None:
    """The bias as (1 or batch, 1 or heads, 1 or rows, 1 or columns), or None if nothing is added.

    Each step is repeated on the bias alone: what was added is added, and where scores were selected, the bias is.

    Raises:
        Unproven: added to the scores, the numbers that masked them would not give the same.
    """
    attention = writer.attention
    made: Value | None = None
    key: tuple[Any, ...] = ("bias", attention.kind)
    loose = False
    _check_half_precision(writer)
    for term in map(unexpanded, _absorbing(attention.scores.terms)):
        if (term.kind == "multiply" and made is None) or _is_nothing(term):
            continue
        key = (*key, term.kind, term.number, _mark(writer, term))
        made = _step(writer, term, made, key)
        loose = loose or term.loose
    if made is not None and loose:
        writer.shared.loose.add(id(made.tensor))
    return made


def _is_nothing(term: Term) -> bool:
    """Whether the term adds zeros."""
    if term.kind not in ("add", "subtract") or not is_small_constant(term.value, _MOST_ELEMENTS):
        return False
    value = constant_of(term.value)
    return value is not None and not np.any(value)


def _check_half_precision(writer: Writer) -> None:
    """Refuses a finite number for masked scores in float16, unless each row keeps a key.

    Kernels add in float32, where -65504 absorbs no score: a row that is masked as a whole would not be uniform.
    """
    attention = writer.attention
    chosen = [term for term in attention.scores.terms if term.kind in _SELECTING and np.isfinite(term.number)]
    if attention.kind != np.float16 or not chosen:
        return
    found = causal(writer)
    if found is None or found.rest:
        reason = f"masked scores become {chosen[0].number:g}, which does not mask in float16, and a row may be masked as a whole"
        raise Unproven(reason, chosen[0].node)


def _absorbing(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The terms, with numbers for masked scores that absorb any score by rounding when it is added to them.

    -1e9 does not. Where nothing but it is in the place of scores, the lowest number may be: next to other scores both weigh
    nothing, and rows that are masked as a whole are uniform. What else is added would tell them apart.

    Raises:
        Unproven: it would.
    """
    weak = [term for term in terms if term.kind in _SELECTING and _BY_ROUNDING < term.number <= ABSORBING]
    if not weak:
        return terms
    number = f"masked scores become {weak[0].number:g}"
    if any(term.kind in ("add", "subtract") for term in terms):
        raise Unproven(f"{number}, which what else is added to the scores may outweigh", weak[0].node)
    final: set[float] = set()
    for index, term in enumerate(terms):
        if term.kind in _SELECTING and np.isfinite(term.number):
            later = [other.number for other in terms[index:] if other.kind == "multiply"]
            final.add(term.number * float(np.prod(later)))
    if len(final) > 1:
        raise Unproven(f"{number}, and elsewhere another number", weak[0].node)
    if max(final) > _STILL_MASKING:
        raise Unproven(f"{number}, which is then scaled to {max(final):g}: that does not mask", weak[0].node)
    least = float(np.finfo(np.float32).min)
    return tuple(
        replace(term, number=least) if term.kind in _SELECTING and np.isfinite(term.number) else term
        for term in terms
        if term.kind != "multiply"
    )


def whole(writer: Writer, made: Value) -> Value:
    """The bias with all rows and columns; the kernels repeat it over batch and heads only."""
    roles = writer.attention.roles
    shape = made.shape or ()
    sizes = [1, 1, *(length(axis) or 1 for axis in (roles.rows, roles.columns))]
    loose = id(made.tensor) in writer.shared.loose
    missing = [axis for axis in (2, 3) if (loose or shape[axis] == 1) and sizes[axis] != 1]
    if not missing:
        return made
    key = ("whole", id(made.tensor), *((axis, sizes[axis]) for axis in missing))  # self- and cross-attention share masks
    if key not in writer.shared.values:
        target = [sizes[axis] if axis in missing else 1 for axis in range(4)]
        if all(isinstance(size, int) for size in target):
            lengths = writer.op.constant(np.array(target, np.int64), "shape")
        else:
            lengths = writer.op.Concat(*(writer.length(size) for size in target), axis=0)
        expanded = writer.op.Expand(made, lengths)
        expanded.tensor.shape = [*(shape[:2]), *map(fact_of, sizes[2:])]
        expanded.tensor.dtype = made.dtype
        _keep(writer, key, expanded)
    return writer.shared.values[key]


def _step(writer: Writer, term: Term, made: Value | None, key: tuple[Any, ...]) -> Value | None:
    if key in writer.shared.values:
        return writer.shared.values[key]
    op = writer.op
    dtype = writer.attention.kind
    if term.kind == "multiply":
        made = op.Mul(made, op.constant(np.asarray(term.number, dtype), "scale"))
    elif term.kind == "at-least":
        made = None if made is None else op.Max(made, op.constant(np.asarray(term.number, dtype), "least"))
    else:
        if term.kind in ("add", "subtract") and dtype_of(term.value) != dtype:
            raise Unproven(f"what is added to the scores, '{term.value.name}', has another type than queries and keys", term.node)
        value = _laid_out(writer, term)
        if term.kind == "add":
            made = value if made is None else op.Add(made, value)
        elif term.kind == "subtract":
            made = op.Neg(value) if made is None else op.Sub(made, value)
        else:
            if value.dtype is None or value.dtype.kind != "b":
                value = op.Cast(value, to=int(TensorProto.BOOL))
            masked = op.constant(_masked(term.number, dtype), "masked")
            kept = made if made is not None else op.constant(np.zeros((), dtype), "kept")
            made = op.Where(value, kept, masked) if term.kind == "keep-where" else op.Where(value, masked, kept)
    if made is not None:
        _keep(writer, key, made)
    return made


def _masked(number: float, dtype: Any) -> np.ndarray[Any, Any]:
    """-inf stays, and nothing else becomes it, also in a shorter type than that of the scores."""
    return np.asarray(-np.inf if number == -np.inf else max(number, lowest(dtype)), dtype)


def _keep(writer: Writer, key: tuple[Any, ...], value: Value) -> None:
    writer.shared.values[key] = value
    writer.made[key] = value


def _mark(writer: Writer, term: Term) -> tuple[Any, ...]:
    """What tells a term apart from others: the value, where its axes lie, and what they are a part of."""
    if term.value is None:
        return ()
    writer.shared.held.append(term.value)
    roles, axes = writer.attention.roles, writer.axes.resolve(term.layout)
    present = {atom for axis in axes for atom in axis}
    partial = (
        axis for axis in (roles.batch, roles.heads, roles.rows, roles.columns) if present & set(axis) and set(axis) - present
    )
    lengths = tuple(tuple(atom.size for atom in axis) for axis in partial)
    return (id(term.value), lengths, *(_places(writer, axis) for axis in axes))


def _places(writer: Writer, axis: Axis) -> tuple[tuple[int, int], ...]:
    roles = writer.attention.roles
    targets = (roles.batch, roles.heads, roles.rows, roles.columns)
    found = []
    for atom in axis:
        place = next(((role, target.index(atom)) for role, target in enumerate(targets) if atom in target), None)
        if place is None:
            raise Unproven("a bias has an axis that the scores do not have", writer.attention.softmax)
        found.append(place)
    return tuple(found)


def _laid_out(writer: Writer, term: Term) -> Value:
    """The term's value with four axes: batch, heads, rows, columns, each whole or of length 1."""
    roles = writer.attention.roles
    layout = writer.axes.resolve(term.layout)
    _places(writer, tuple(atom for axis in layout for atom in axis))
    present = {atom for axis in layout for atom in axis}
    targets = (roles.batch, roles.heads, roles.rows, roles.columns)
    partial = [axis for axis in targets if present & set(axis) and not set(axis) <= present]
    value = Value(term.value)
    if value.is_constant and is_small_constant(term.value, _MOST_ELEMENTS) and not partial:
        return _constant(writer, term, layout, targets)
    if term.loose:
        return _as_it_is(writer, term, value, targets)
    # A scalar or a vector has fewer axes than the layout that it is broadcast to.
    layout = layout[len(layout) - (value.rank or 0) :] if value.rank is not None else layout
    return writer.spread(value, layout, targets, whole=False)


def _as_it_is(writer: Writer, term: Term, value: Value, targets: tuple[Axis, ...]) -> Value:
    """A value of which some axes may be whole or of length 1: it can be combined with others, but not be relaid.

    Raises:
        Unproven: it would have to be.
    """
    if writer.axes.resolve(term.level) != targets:
        raise Unproven(f"which axes '{term.value.name}' has is not known", term.node)
    missing = list(range(4 - (value.rank or 0)))
    if not missing:
        return value
    made: Value
    if writer.opset >= 13:
        made = writer.op.Unsqueeze(value, writer.op.constant(np.array(missing, np.int64), "axes"))
    else:
        made = writer.op.Unsqueeze(value, axes=missing)
    return made


def _constant(writer: Writer, term: Term, layout: Layout, targets: tuple[Axis, ...]) -> Value:
    array = np.asarray(constant_of(term.value))
    atoms = [atom for axis in layout for atom in axis]
    order = [atom for axis in targets for atom in axis if atom in atoms]
    fine = array.reshape(numbers(atoms))
    shape = [int(np.prod(numbers(axis), dtype=np.int64)) if set(axis) & set(atoms) else 1 for axis in targets]
    if order == atoms and array.shape == tuple(shape):
        return Value(term.value)
    made: Value = writer.op.constant(fine.transpose([atoms.index(atom) for atom in order]).reshape(shape), "bias")
    return made
