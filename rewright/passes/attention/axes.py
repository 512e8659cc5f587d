"""Axes as products of atoms, so that every sequence of Reshape and Transpose that means the same layout is the same.

Each axis of a value is a tuple of atoms, the outermost first; an axis of length 1 has none. A Transpose permutes axes, a
Reshape regroups atoms. Where a Reshape cuts through an atom, the atom is split, in every layout of the site at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any, Final, TypeAlias

from rewright.model.facts import Dim, shape_of
from rewright.shapes import dimensions
from rewright.shapes.dimensions import Polynomial, Size, divide, multiply, product, symbol

_unnamed: Final = count()


class Unproven(Exception):  # noqa: N818  (control flow, never seen by a user)
    """The shapes do not say what would have to be known. ``where`` is the value or node that the reason is about."""

    def __init__(self, reason: str, where: Any = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where


Axis: TypeAlias = "tuple[Atom, ...]"
Layout: TypeAlias = "tuple[Axis, ...]"


class Atom:
    """A factor of an axis.

    Attributes:
        size: how many elements, a number or a polynomial in dimension symbols.
        start, inner: for an axis of which only a part is used: where the part begins, and the atoms that it has (none for a
            single element). ``start`` is None for an atom that is used whole.
    """

    __slots__ = ("inner", "size", "start")

    def __init__(self, size: Size, start: int | None = None, inner: Axis = ()) -> None:
        self.size = size
        self.start = start
        self.inner = inner

    def __repr__(self) -> str:
        return f"<{self.size}>" if self.start is None else f"<{self.size} from {self.start}: {self.inner}>"


class Axes:
    """The atoms of one site."""

    def __init__(self) -> None:
        self._parts: dict[Atom, Axis] = {}

    def resolve(self, layout: Layout) -> Layout:
        """The layout in terms of atoms that are not split any further."""
        return tuple(self.atoms(axis) for axis in layout)

    def atoms(self, axis: Iterable[Atom]) -> Axis:
        """An axis in terms of atoms that are not split any further."""
        found: list[Atom] = []
        for atom in axis:
            parts = self._parts.get(atom)
            if parts is None:
                found.append(atom)
            else:
                found.extend(self.atoms(parts))
        return tuple(found)

    def used(self, axis: Iterable[Atom]) -> Axis:
        """The atoms of an axis along which elements are used: a part by its own atoms, in place of the whole."""
        found: list[Atom] = []
        for atom in self.atoms(axis):
            found.extend((atom,) if atom.start is None else self.atoms(atom.inner))
        return tuple(found)

    def seed(self, tensor: Any) -> Layout:
        """A layout of a value of which only the shape is known: one atom for each axis."""
        return tuple(() if size == 1 else (Atom(size),) for size in sizes_of(tensor))

    def regroup(self, layout: Layout, sizes: Sequence[Size], where: Any = None) -> Layout:
        """The layout of the same elements, in the same order, over axes of the given sizes.

        Raises:
            Unproven: the sizes do not say how the atoms are grouped.
        """
        atoms = self.atoms(atom for axis in layout for atom in axis)
        inner = [(index, size) for index, size in enumerate(sizes) if size != 1]
        starts = {held: index for index, held in enumerate(_prefixes([atom.size for atom in atoms]))}
        result: list[Axis] = [() for _ in sizes]
        first_atom = first_size = 0
        for index, prefix in enumerate(_prefixes([size for _, size in inner])):
            if index == 0 or prefix not in starts or prefix is None:
                continue
            last_atom = starts[prefix]
            self._fill(result, atoms[first_atom:last_atom], inner[first_size:index], where)
            first_atom, first_size = last_atom, index
        if first_atom != len(atoms) or first_size != len(inner):
            raise Unproven(f"the shapes do not say how {_described(atoms)} becomes {_listed(sizes)}", where)
        return tuple(result)

    def _fill(self, result: list[Axis], atoms: Axis, sizes: list[tuple[int, Size]], where: Any) -> None:
        """Deals the atoms out to axes of the given sizes, the outermost first; cuts atoms where an axis ends within one."""
        if len(sizes) == 1:
            result[sizes[0][0]] = atoms
            return
        pending = list(reversed(atoms))
        for index, size in sizes[:-1]:
            taken: list[Atom] = []
            left: Size = size
            while left != 1:
                atom = pending.pop() if pending else None
                rest = divide(left, atom.size) if atom is not None else None
                if atom is None:
                    raise Unproven(f"the axes {_described(atoms)} are regrouped across each other", where)
                if rest is None or multiply(rest, atom.size) != left:
                    atom, rest = self._cut(atom, left, pending, atoms, where), 1
                taken.append(atom)
                left = rest
            result[index] = tuple(taken)
        result[sizes[-1][0]] = tuple(reversed(pending))

    def _cut(self, atom: Atom, size: Size, pending: list[Atom], atoms: Axis, where: Any) -> Atom:
        """The outer part, of the given size, of an atom; the inner one goes back to those that are pending."""
        rest = divide(atom.size, size)
        if rest is None or multiply(rest, size) != atom.size or atom.start is not None:
            raise Unproven(f"the axes {_described(atoms)} are regrouped across each other", where)
        outer, inner = Atom(size), Atom(rest)
        self._parts[atom] = (outer, inner)
        pending.append(inner)
        return outer


def sizes_of(tensor: Any) -> list[Size]:
    """The lengths of a value's axes; unknown ones are told apart from everything else.

    Raises:
        Unproven: the rank is not known.
    """
    shape = shape_of(tensor)
    if shape is None:
        raise Unproven(f"the rank of '{tensor.name}' is not known", tensor)
    return [size_of(dim) for dim in shape]


def size_of(dim: Dim) -> Size:
    """A dimension of a fact as a size; one that is not known is told apart from everything else."""
    return symbol(f"unknown{next(_unnamed)}") if dim is None else dimensions.size_of(dim)


def length(axis: Axis) -> Size | None:
    """How many elements an axis has."""
    return product([atom.size for atom in axis])


def number(axis: Axis) -> int | None:
    """The length of an axis, if it is a number."""
    found = length(axis)
    return found if isinstance(found, int) else None


def _prefixes(sizes: Sequence[Size]) -> list[Size | None]:
    """The products of the first 0, 1, ... sizes."""
    found: list[Size | None] = [1]
    for size in sizes:
        found.append(None if found[-1] is None else multiply(found[-1], size))
    return found


def _described(atoms: Axis) -> str:
    return " x ".join(_text(atom.size) for atom in atoms) or "1"


def _listed(sizes: Sequence[Size]) -> str:
    return "(" + ", ".join(_text(size) for size in sizes) + ")"


def _text(size: Size) -> str:
    text = str(size)
    return "?" if isinstance(size, Polynomial) and text.startswith("unknown") else text
