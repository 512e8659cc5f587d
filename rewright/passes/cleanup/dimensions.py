"""Sizes as polynomials: a dimension is an integer, a symbol, or a sum of products of symbols with integer coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

Monomial: TypeAlias = tuple[str, ...]

_MOST_TERMS: Final = 16


@dataclass(frozen=True)
class Polynomial:
    """A size that is not one number. ``terms`` maps sorted products of symbols to their coefficients; never a constant.

    Symbols stand for dimensions, which are not negative. Two polynomials are equal if their sizes are, for all values of the
    symbols; the converse holds too, except where a symbol stands for the result of a division.
    """

    terms: tuple[tuple[Monomial, int], ...]

    @property
    def is_not_negative(self) -> bool:
        """Whether the size cannot be negative, whatever the symbols are."""
        return all(coefficient >= 0 for _, coefficient in self.terms)

    def __str__(self) -> str:
        return " + ".join(
            "*".join(([str(factor)] if factor != 1 or not names else []) + list(names)) for names, factor in self.terms
        )


Size: TypeAlias = int | Polynomial


def symbol(name: str) -> Polynomial:
    """The size that ``name`` stands for."""
    return Polynomial((((name,), 1),))


def _terms(size: Size) -> dict[Monomial, int]:
    if isinstance(size, int):
        return {(): size} if size else {}
    return dict(size.terms)


def _made(terms: dict[Monomial, int]) -> Size | None:
    kept = {names: factor for names, factor in terms.items() if factor}
    if not kept.keys() - {()}:
        return kept.get((), 0)
    return Polynomial(tuple(sorted(kept.items()))) if len(kept) <= _MOST_TERMS else None


def add(left: Size, right: Size, sign: int = 1) -> Size | None:
    """``left + sign * right``; None if it grows out of bounds."""
    terms = _terms(left)
    for names, factor in _terms(right).items():
        terms[names] = terms.get(names, 0) + sign * factor
    return _made(terms)


def multiply(left: Size, right: Size) -> Size | None:
    """The product; None if it grows out of bounds."""
    terms: dict[Monomial, int] = {}
    for names, factor in _terms(left).items():
        for others, other in _terms(right).items():
            product = tuple(sorted(names + others))
            terms[product] = terms.get(product, 0) + factor * other
    return _made(terms)


def product(sizes: list[Size]) -> Size | None:
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
    by = _terms(divisor)
    if len(by) != 1:
        return None
    ((names, factor),) = by.items()
    quotient: dict[Monomial, int] = {}
    for held, coefficient in _terms(dividend).items():
        rest = list(held)
        for name in names:
            if name not in rest:
                return None
            rest.remove(name)
        if coefficient % factor:
            return None
        quotient[tuple(rest)] = coefficient // factor
    return _made(quotient)
