"""Which summand of an embedding is the words, which the positions, which the segments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, dtype_of, is_constant, is_small_constant, producer, shape_of
from rewright.passes.fusion.positions import KEEP_ORDER, Positions, Run
from rewright.shapes.dimensions import Size
from rewright.shapes.layout import slice_ranges

MOST_TERMS: Final = 4
_LONGEST_CHAIN: Final = 8
_MOST_TABLE_ELEMENTS: Final = 1 << 26
Array = np.ndarray[Any, Any]


class Refusal(Exception):  # noqa: N818  (control flow, never seen by a user)
    """The site does not qualify."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Row:
    """A summand that takes rows of a table.

    Attributes:
        table: the constant, of two dimensions.
        ids: which rows, by shape (B, S), (1, S) or (S); None for the rows 0 to S - 1.
        is_vector: the ids are of shape (S).
        is_per_batch: the ids are of shape (B, S).
        start: with ``ids`` None, the row of the table that position 0 takes.
        uniform: the one row that all ids name, if they do.
    """

    table: Any
    ids: Any | None
    is_vector: bool = False
    is_per_batch: bool = True
    start: int = 0
    uniform: int | None = None

    @property
    def rows(self) -> int:
        """How many rows the table has."""
        return math.prod(dim for dim in (shape_of(self.table) or (0,))[:-1] if isinstance(dim, int))


@dataclass(frozen=True)
class Roles:
    """The summands by role; ``position_table`` replaces that of ``position`` where it is not taken as it is."""

    word: Row
    position: Row
    segment: Row | None
    position_table: Array | None
    hidden_size: int


def is_lookup(term: Any) -> bool:
    """Whether the value is a Gather, however it is reshaped."""
    node = producer(_unwrapped(term)[0])
    return node is not None and node.op == "Gather" and not domain_of(node)


def lookups(terms: Sequence[Any], positions: Positions) -> Roles:
    """The roles of the summands.

    Raises:
        Refusal: a summand has none, or a shape is not proven.
    """
    if len(terms) >= MOST_TERMS and sum(map(is_lookup, terms)) >= MOST_TERMS:
        raise Refusal(f"{len(terms)} embeddings are added, and the op adds three")
    for term in terms:
        _check_kind(term)
    positions.learn(terms)
    word_term, shape = _words(terms, positions)
    word = _row(word_term, shape, positions, is_word=True)
    place = next(place for place, term in enumerate(terms) if term is word_term)
    others = [*terms[:place], *terms[place + 1 :]]  # the same value may be a summand twice
    vectors = [_vector(term, shape[-1]) for term in others]
    rows = [_row(term, shape, positions) for term, vector in zip(others, vectors, strict=True) if vector is None]
    return _assigned(word, rows, [vector for vector in vectors if vector is not None], int(shape[2]))  # type: ignore[arg-type]


def _check_kind(term: Any) -> None:
    inner, _ = _unwrapped(term)
    node = producer(inner)
    if is_constant(inner) or (node is not None and node.op in ("Gather", "Slice") and not domain_of(node)):
        return
    what = "an input of the graph" if node is None else f"the result of {node.op} '{node.name}'"
    raise Refusal(f"the summand '{term.name}' is {what}, not an embedding")


def _words(terms: Sequence[Any], positions: Positions) -> tuple[Any, list[Size]]:
    """The summand of shape (B, S, H) with ids of their own that has the most rows, and the shape."""
    found: list[tuple[bool, int, int, Any, list[Size]]] = []
    for place, term in enumerate(terms):
        node, dims = producer(_unwrapped(term)[0]), positions.dims(term)
        if node is None or node.op != "Gather" or domain_of(node) or dims is None or len(dims) != 3:
            continue
        shape = shape_of(node.inputs[0])
        if not shape or not isinstance(shape[0], int) or not isinstance(dims[2], int):
            continue
        if positions.run(node.inputs[1]) is None and positions.uniform(node.inputs[1]) is None:
            is_whole = all(_fits(positions.dims(other), dims, positions) for other in terms)
            found.append((is_whole, shape[0], -place, term, dims))
    if not found:
        raise Refusal("no summand is proven to be a lookup by ids of two dimensions")
    is_whole, _, _, term, dims = max(found, key=lambda item: item[:3])
    if not is_whole:
        odd = next(other for other in terms if not _fits(positions.dims(other), dims, positions))
        raise Refusal(
            f"the summand '{odd.name}' {_described(odd)} is not proven to fit the shape {_described(term)} of '{term.name}'"
        )
    return term, dims


def _described(term: Any) -> str:
    shape = shape_of(term)
    return "of unknown rank" if shape is None else str(tuple("?" if dim is None else dim for dim in shape)).replace("'", "")


def _fits(dims: list[Size] | None, whole: list[Size], positions: Positions) -> bool:
    """Whether a value of these dimensions can be added to one of ``whole`` without changing its shape."""
    if dims is None or len(dims) > len(whole):
        return False
    return all(dim == 1 or positions.is_size(dim, full) for dim, full in zip(dims[::-1], whole[::-1], strict=False))


def _unwrapped(term: Any) -> tuple[Any, bool]:
    """What the value holds before it was repeated or reshaped, and whether it was reshaped."""
    is_reshaped, allowed = False, KEEP_ORDER | {"Expand"}
    for _ in range(_LONGEST_CHAIN):
        node = producer(term)
        if node is None or node.op not in allowed or domain_of(node) or not node.inputs:
            break
        if node.op in KEEP_ORDER and node.op != "Identity":
            is_reshaped, allowed = True, KEEP_ORDER
        term = node.inputs[0]
    return term, is_reshaped


def _vector(term: Any, size: Size) -> Array | None:
    """A constant of the last axis's length, or None."""
    inner, _ = _unwrapped(term)
    shape = shape_of(inner)
    if not is_constant(inner) or not shape or shape[-1] != size or any(dim != 1 for dim in shape[:-1]):
        return None
    value = constant_of(inner)
    return None if value is None else value.reshape(-1)


def _row(term: Any, shape: list[Size], positions: Positions, is_word: bool = False) -> Row:
    inner, is_reshaped = _unwrapped(term)
    before = _before_expand(term)
    dims = positions.dims(before)
    if dims is None or not _fits(dims, shape, positions):
        raise Refusal(f"the value '{before.name}' {_described(before)} is not proven to fit the shape of the words")
    if is_constant(inner):
        return _ready(inner, dims, shape)
    node = cast(Any, producer(inner))
    if node.op == "Slice":
        return _sliced(node, dims, shape, positions)
    table, ids = node.inputs
    _check_table(table, attribute(node, "axis", 0), shape[2])
    if not is_word:
        row = _consecutive(table, positions.run(ids), dims, shape, positions)
        if row is not None:
            return row
    uniform = positions.uniform(ids)
    rows = (shape_of(table) or (0,))[0]
    if uniform is not None and isinstance(rows, int) and not -rows <= uniform < rows:
        raise Refusal(f"the ids '{ids.name}' are {uniform}, and the table has {rows} rows")
    return _looked_up(Row(table, ids, uniform=uniform), dims, shape, positions, is_reshaped)


def _before_expand(term: Any) -> Any:
    node = producer(term)
    while node is not None and node.op in ("Expand", "Identity") and not domain_of(node):
        term = node.inputs[0]
        node = producer(term)
    return term


def _check_table(table: Any, axis: int, size: Size) -> None:
    shape = shape_of(table)
    if not is_constant(table):
        raise Refusal(f"the table '{table.name}' is not a constant")
    if shape is None or len(shape) != 2 or axis not in (0, -2) or shape[1] != size:
        raise Refusal(f"the table '{table.name}' has the shape {shape} and is read along axis {axis}, not by rows of {size}")


def _consecutive(table: Any, run: Run | None, dims: list[Size], shape: list[Size], positions: Positions) -> Row | None:
    """Rows by the numbers of ``run``, if these are ``start`` to ``start + S - 1`` in each row of the batch."""
    if run is None or not isinstance(run.start, int) or run.start < 0 or not positions.is_size(run.length, shape[1]):
        return None
    rows = (shape_of(table) or (0,))[0]
    if run.start and (not isinstance(rows, int) or rows - run.start < 1 or not _is_readable(table)):
        return None
    is_laid_out = len(dims) == 2 or (len(dims) == 3 and (dims[0] == 1 or (not run.is_one_row and dims[0] == shape[0])))
    return Row(table, None, start=run.start) if is_laid_out else None


def _looked_up(row: Row, dims: list[Size], shape: list[Size], positions: Positions, is_reshaped: bool) -> Row:
    """The row with ids in the form that the op takes; ids that were reshaped for a lookup that is shaped back are followed."""
    wanted, ids = dims[:-1], cast(Any, row.ids)
    for _ in range(_LONGEST_CHAIN):
        held = positions.dims(ids)
        if held == wanted:
            break
        node = producer(ids)
        if not is_reshaped or node is None or node.op not in KEEP_ORDER or domain_of(node):
            break
        ids = node.inputs[0]
    held = positions.dims(ids)
    dtype = dtype_of(ids)
    if row.uniform is not None:
        return replace(row, ids=ids if held == shape[:2] else None)
    if dtype is None or dtype.kind not in "iu":
        raise Refusal(f"the type of the ids '{ids.name}' is not known")
    if held is not None and len(held) == 2 and positions.is_size(held[1], shape[1]) and held[0] in (shape[0], 1):
        return replace(row, ids=ids, is_per_batch=held[0] == shape[0])
    if held == [shape[1]]:
        return replace(row, ids=ids, is_per_batch=False, is_vector=True)
    raise Refusal(f"the ids '{ids.name}' {_described(ids)} are not proven to have the shape of the words' ids")


def _sliced(node: Any, dims: list[Size], shape: list[Size], positions: Positions) -> Row:
    """Rows of the table from a constant one on, up to S of them."""
    table = node.inputs[0]
    held, ranges = positions.dims(table), slice_ranges(positions.shapes, node)
    if not _is_readable(table) or held is None or ranges is None or len(held) < 2 or set(ranges) != {len(held) - 2}:
        raise Refusal(f"the table of positions '{table.name}' is not a constant that is sliced by rows")
    start, end, step = ranges[len(held) - 2]
    rows, size = held[-2], held[-1]
    if not isinstance(start, int) or not isinstance(rows, int) or not 0 <= start < rows - 1 or step != 1:
        raise Refusal(f"the rows of '{table.name}' are taken from {start} on in steps of {step}")
    is_whole = len(dims) > 1 and positions.is_size(dims[-2], shape[1])
    if any(dim != 1 for dim in [*held[:-2], *dims[:-2]]) or size != shape[2] or not is_whole:
        raise Refusal(f"the rows of '{table.name}' up to {end} are not proven to be one for each word")
    return Row(table, None, start=start)


def _ready(table: Any, dims: list[Size], shape: list[Size]) -> Row:
    """Rows that are already there, one for each of a constant number of positions."""
    if len(dims) < 2 or dims[-2:] != shape[1:] or any(dim != 1 for dim in dims[:-2]) or not _is_readable(table):
        raise Refusal(f"the constant '{table.name}' has the shape {shape_of(table)}, which is not one row for each word")
    return Row(table, None)


def _is_readable(table: Any) -> bool:
    return is_constant(table) and is_small_constant(table, _MOST_TABLE_ELEMENTS)


def _assigned(word: Row, rows: Iterable[Row], vectors: list[Array], size: int) -> Roles:
    pending = list(rows)
    uniform = [row for row in pending if row.uniform is not None]
    pending = [row for row in pending if row.uniform is None]
    if len(pending) > 2:
        raise Refusal("more than three embeddings are added, and the op adds three")
    if not pending:
        raise Refusal("no embedding of positions is added")
    # Positions may be left out or be shared by the batch, segments may not; else the larger table is that of the positions.
    position, *rest = sorted(pending, key=lambda row: (row.ids is not None, row.is_per_batch, -row.rows))
    segment = rest[0] if rest else None
    if segment is not None and (segment.ids is None or not segment.is_per_batch):
        raise Refusal("two embeddings are the same for the whole batch, and the op takes one")
    if _is_readable(position.table):
        vectors += [_table(row)[row.uniform or 0] for row in uniform]
        return Roles(word, position, segment, _position_table(position, vectors, size), size)
    if vectors or len(uniform) > 1 or (uniform and (segment is not None or uniform[0].ids is None)):
        raise Refusal(f"the table '{position.table.name}' cannot take up the vector that is added to every word")
    return Roles(word, position, segment if segment is not None or not uniform else uniform[0], None, size)


def _table(row: Row) -> Array:
    value = constant_of(row.table)
    if value is None:
        raise Refusal(f"the table '{row.table.name}' cannot be read")
    return value


def _position_table(row: Row, vectors: list[Array], size: int) -> Array | None:
    """The rows from ``start`` on, each with the vectors added; None if that is the table as it is."""
    if not vectors and not row.start and len(shape_of(row.table) or ()) == 2:
        return None
    table = _table(row).reshape(-1, size)[row.start :]
    total = table.astype(np.float32) if table.dtype.itemsize < 4 else table
    for vector in vectors:
        total = total + vector
    return np.ascontiguousarray(total.astype(table.dtype))
