"""Sizes as polynomials: a dimension is an integer, a symbol, or a sum of products of symbols with integer coefficients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Final, TypeAlias

from rewright.model.facts import Dim
from rewright.model.view import MADE_UP_SYMBOL, DerivedDim

Monomial: TypeAlias = tuple[str, ...]

_MOST_TERMS: Final = 16


@dataclass(frozen=True)
class Polynomial:
    """A size that is not one number. ``terms`` maps sorted products of symbols to their coefficients; never a constant.

    Symbols stand for dimensions, which are not negative, or for what a function (``terms.py``) makes of other sizes. Two
    polynomials are equal only if their sizes are, for all values of the symbols.
    """

    terms: tuple[tuple[Monomial, int], ...]

    @property
    def is_not_negative(self) -> bool:
        """Whether the size cannot be negative, whatever the symbols are."""
        return all(coefficient >= 0 and not any(map(may_be_negative, names)) for names, coefficient in self.terms)

    @property
    def symbol(self) -> str | None:
        """The name, if the size is one symbol and nothing else."""
        return self.terms[0][0][0] if len(self.terms) == 1 and self.terms[0][1] == 1 and len(self.terms[0][0]) == 1 else None

    def __str__(self) -> str:
        text = ""
        for names, factor in sorted(self.terms, key=lambda term: (not term[0], term)):
            if text:
                text += " - " if factor < 0 else " + "
            elif factor < 0:
                text = "-"
            magnitude = abs(factor)
            text += "*".join(([str(magnitude)] if magnitude != 1 or not names else []) + list(names))
        return text


def may_be_negative(name: str) -> bool:
    """Whether the symbol may stand for a negative number: only what functions give may."""
    return bool(getattr(name, "may_be_negative", False))


Size: TypeAlias = int | Polynomial


class SizeText(DerivedDim):
    """A dimension that was derived: a string among the dimensions of a shape, which knows the size that it writes."""

    __slots__ = ("size",)

    size: Polynomial

    def __new__(cls, text: str, size: Polynomial) -> SizeText:
        """The text of ``size``."""
        made = super().__new__(cls, text)
        made.size = size
        return made


def symbol(name: str) -> Polynomial:
    """The size that ``name`` stands for."""
    return Polynomial((((name,), 1),))


def size_of(dim: Dim) -> Size:
    """The size that a known dimension of a shape stands for.

    A name that the model itself gives is a symbol, whatever it looks like: nobody holds a model to what its names say. One
    that is no plain identifier is quoted, so that it is told apart from what the same words would mean here.
    """
    if isinstance(dim, int):
        return dim
    if isinstance(dim, SizeText):
        return dim.size
    if dim is None:
        raise ValueError("the dimension is not known")
    return _named(dim)


@lru_cache(maxsize=4096)
def _named(dim: str) -> Polynomial:
    return symbol(dim if dim.isidentifier() else f'"{dim}"')


@lru_cache(maxsize=4096)
def dim_of(size: Size) -> int | SizeText:
    """The size as a dimension of a shape. Equal texts mean equal sizes."""
    if isinstance(size, int):
        return size
    name = size.symbol
    text = name.strip('"') if name is not None else str(size)
    if MADE_UP_SYMBOL in text and not text.startswith(MADE_UP_SYMBOL):
        text = f"{MADE_UP_SYMBOL}({text})"  # made of made-up names, which must not leave the view
    return SizeText(text, size)


def same_size(one: Dim, other: Dim) -> bool:
    """Whether two dimensions are provably equal."""
    return one is not None and other is not None and size_of(one) == size_of(other)


def product_of(dims: Iterable[Dim]) -> Size | None:
    """The product of dimensions; None if one is not known, or it grows out of bounds."""
    known = list(dims)
    return None if None in known else product([size_of(dim) for dim in known])


def is_vague(dim: Dim) -> bool:
    """Whether the dimension is unknown, or has a name that inference made up."""
    return dim is None or (isinstance(dim, str) and dim.startswith(MADE_UP_SYMBOL))


def not_negative(size: Size) -> bool:
    """Whether the size cannot be negative."""
    return size >= 0 if isinstance(size, int) else size.is_not_negative


def never_one(size: Size) -> bool:
    """Whether the size is certainly not 1, so that broadcasting keeps it."""
    if isinstance(size, int):
        return size != 1
    constant = next((factor for names, factor in size.terms if not names), 0)
    divisor = 0
    for names, factor in size.terms:
        if names:
            divisor = gcd(divisor, factor)
    return (1 - constant) % divisor != 0 or (size.is_not_negative and constant > 1)


def terms_of(size: Size) -> dict[Monomial, int]:
    """The coefficients by product of symbols; the constant's product is empty."""
    if isinstance(size, int):
        return {(): size} if size else {}
    return dict(size.terms)


def size_from(terms: Mapping[Monomial, int]) -> Size | None:
    """The size with these coefficients; None if they are too many."""
    kept = {names: factor for names, factor in terms.items() if factor}
    if not kept.keys() - {()}:
        return kept.get((), 0)
    return Polynomial(tuple(sorted(kept.items()))) if len(kept) <= _MOST_TERMS else None


def add(left: Size, right: Size, sign: int = 1) -> Size | None:
    """``left + sign * right``; None if it grows out of bounds."""
    if isinstance(left, int) and isinstance(right, int):
        return left + sign * right
    terms = terms_of(left)
    for names, factor in terms_of(right).items():
        terms[names] = terms.get(names, 0) + sign * factor
    return size_from(terms)


def multiply(left: Size, right: Size) -> Size | None:
    """The product; None if it grows out of bounds."""
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    if left == 1:
        return right
    if right == 1:
        return left
    terms: dict[Monomial, int] = {}
    for names, factor in terms_of(left).items():
        for others, other in terms_of(right).items():
            merged = tuple(sorted(names + others))
            terms[merged] = terms.get(merged, 0) + factor * other
    return size_from(terms)


def product(sizes: Iterable[Size]) -> Size | None:
    """The product of all sizes."""
    result: Size = 1
    for size in sizes:
        step = multiply(result, size)
        if step is None:
            return None
        result = step
    return result


def divide(dividend: Size, divisor: Size) -> Size | None:
    """The quotient as ONNX's integer Div gives it (truncated), where it is certain; None else, and for a divisor of 0."""
    if isinstance(divisor, int) and isinstance(dividend, int):
        if divisor == 0:
            return None
        magnitude = abs(dividend) // abs(divisor)
        return magnitude if (dividend < 0) == (divisor < 0) else -magnitude
    by = terms_of(divisor)
    if len(by) > 1:
        return _divide_by_sum(dividend, divisor)
    if not by:
        return None
    ((names, factor),) = by.items()
    quotient: dict[Monomial, int] = {}
    for held, coefficient in terms_of(dividend).items():
        rest = without(held, names)
        if rest is None or coefficient % factor:
            return None
        quotient[rest] = coefficient // factor
    return size_from(quotient)


def without(names: Monomial, factors: Monomial) -> Monomial | None:
    """The product ``names`` divided by the product ``factors``; None if it is not divisible."""
    rest = list(names)
    for name in factors:
        if name not in rest:
            return None
        rest.remove(name)
    return tuple(rest)


def _divide_by_sum(dividend: Size, divisor: Size) -> Size | None:
    """Long division of polynomials, if nothing is left over."""
    lead, factor = max(terms_of(divisor).items(), key=_degree)
    quotient: dict[Monomial, int] = {}
    rest: Size = dividend
    for _ in range(_MOST_TERMS):
        if rest == 0:
            return size_from(quotient)
        names, coefficient = max(terms_of(rest).items(), key=_degree)
        left = without(names, lead)
        if left is None or coefficient % factor:
            return None
        quotient[left] = coefficient // factor
        step = multiply(divisor, size_from({left: coefficient // factor}) or 0)
        difference = add(rest, step, -1) if step is not None else None
        if difference is None:
            return None
        rest = difference
    return None


def _degree(term: tuple[Monomial, int]) -> tuple[int, Monomial]:
    return len(term[0]), term[0]
