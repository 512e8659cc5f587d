"""The names of dimensions: which are the model's, which were made up, and which have turned out to be something better."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Final

from rewright.model.view import MADE_UP_SYMBOL
from rewright.shapes import dimensions, terms
from rewright.shapes.dimensions import Polynomial, Size, symbol, terms_of

_UNNAMED: Final = f"{MADE_UP_SYMBOL}dim"
_numbers: Iterator[int] = count()  # one for the process, so that a name never stands for two dimensions


class NameTable:
    """Makes names up, and replaces them where sizes must be equal.

    Attributes:
        known: names that gave way, with what they stand for.
        declared: what the model calls dimensions where that is no plain name.
        unsettled: whether facts may still hold such names.
    """

    def __init__(self) -> None:
        self.declared: set[str] = set()
        self.known: dict[str, Size] = {}
        self.unsettled = False
        self._fixed: set[str] = set()
        self._made_in: dict[str, Any] = {}

    def fresh(self, graph: Any) -> Polynomial:
        """A new name, which means something in ``graph`` and its bodies."""
        name = f"{_UNNAMED}{next(_numbers)}"
        while name in self._fixed:
            name = f"{_UNNAMED}{next(_numbers)}"
        self._made_in[name] = graph
        return symbol(name)

    def fix(self, size: Size) -> None:
        """The names in it stay: a signature uses them."""
        self._fixed.update(names_in(size))

    def is_meant_in(self, graph: Any, size: Size) -> bool:
        """Whether no name in the size was made up in another graph."""
        return all(self._made_in.get(name, graph) is graph for name in names_in(size))

    def equate(self, one: Size, other: Size, graph: Any, anywhere: bool) -> None:
        """Both sizes are equal: a name gives way to what is known better. Names of other graphs do so only with ``anywhere``."""
        if one == other or (isinstance(one, int) and isinstance(other, int)):
            return
        difference = dimensions.add(one, other, -1)
        if difference is None or isinstance(difference, int):
            return
        best: tuple[int, str, Size] | None = None
        for names, factor in difference.terms:
            if len(names) != 1 or names[0] in self._fixed or not (anywhere or self._made_in.get(names[0]) is graph):
                continue
            name = names[0]
            rest = dimensions.size_from({held: count for held, count in difference.terms if held != names})
            value = dimensions.divide(rest, -factor) if rest is not None and _divides(rest, factor) else None
            if value is None or terms.mentions(value, {name: None}):
                continue
            worth = self._worth(name)
            if self._gives_way(name, worth, value) and (best is None or worth > best[0]):
                best = worth, name, value
        if best is not None:
            self._substitute(best[1], best[2])

    def _gives_way(self, name: str, worth: int, value: Size) -> bool:
        """To what says more; of two made-up names, or two functions, to the shorter one, so that there is no circle."""
        rank = self._rank(value)
        return worth > rank or (worth == rank and worth > 1 and (len(name), name) > (len(str(value)), str(value)))

    def _worth(self, name: str) -> int:
        """How readily a name gives way: made-up names most, then functions, the signature's never."""
        if isinstance(name, terms.Term):
            return 3 if any(held.startswith(MADE_UP_SYMBOL) for held in names_in(symbol(name))) else 2
        if name in self._fixed:
            return 0
        return 4 if name.startswith(MADE_UP_SYMBOL) else 1

    def _rank(self, size: Size) -> int:
        """The worth of the vaguest name in it."""
        return max((self._worth(name) for held, _ in terms_of(size).items() for name in held), default=-1)

    def _substitute(self, name: str, value: Size) -> None:
        resolved = self.resolved(value)
        if terms.mentions(resolved, {name: None}) or (isinstance(resolved, int) and resolved < 0):
            return
        one = {name: resolved}
        for held, size in list(self.known.items()):
            if terms.mentions(size, one):
                self.known[held] = terms.substituted(size, one) or size
        self.known[name] = resolved
        self.unsettled = True

    def resolved(self, size: Size) -> Size:
        """The size without names that gave way."""
        if isinstance(size, int) or not terms.mentions(size, self.known):
            return size
        found = terms.substituted(size, self.known)
        return size if found is None else found


def names_in(size: Size) -> Iterator[str]:
    """Every symbol in the size, those inside functions included."""
    if not isinstance(size, int):
        for held, _ in size.terms:
            for name in held:
                if isinstance(name, terms.Term):
                    for argument in name.arguments:
                        yield from names_in(argument)
                else:
                    yield name


def _divides(size: Size, factor: int) -> bool:
    return all(count % factor == 0 for count in terms_of(size).values())
