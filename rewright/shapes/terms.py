"""Functions of sizes that are no polynomials: a quotient, a smaller one, what broadcasting makes.

Each is a symbol with arguments, written so that equal texts mean equal sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import gcd
from typing import Final

from rewright.shapes.dimensions import (
    Monomial,
    Polynomial,
    Size,
    add,
    divide,
    multiply,
    never_one,
    not_negative,
    product,
    size_from,
    symbol,
    terms_of,
    without,
)

TO_THE_END: Final = 2**31 - 1
"""The operator's documentation asks for INT_MAX where a Slice runs to the end of a dimension of unknown size."""


class Term(str):
    """The name of a symbol that stands for a function of sizes."""

    __slots__ = ("arguments", "function", "may_be_negative")

    function: str
    arguments: tuple[Size, ...]
    may_be_negative: bool


def _term(function: str, text: str, *arguments: Size) -> Polynomial:
    name = Term(text)
    name.function = function
    name.arguments = arguments
    signs = [never_negative(argument) for argument in arguments]
    name.may_be_negative = not {"min": all(signs), "max": any(signs), "floor": signs[0]}.get(function, function != "div")
    return symbol(name)


def term_of(size: Size | None, function: str) -> Term | None:
    """The size's name, if it is one such function of others."""
    name = size.symbol if isinstance(size, Polynomial) else None
    return name if isinstance(name, Term) and name.function == function else None


@lru_cache(maxsize=4096)
def floor_divide(dividend: Size, divisor: Size) -> Size | None:
    """The largest integer not above ``dividend / divisor``, for a positive divisor; None for one that may be negative."""
    exact = divide(dividend, divisor) if not isinstance(dividend, int) or not isinstance(divisor, int) else None
    if exact is not None:
        return exact
    if not isinstance(divisor, int):
        return _quotient(*_reduced(dividend, divisor)) if never_negative(divisor) and never_negative(dividend) else None
    if divisor <= 0:
        return None
    if isinstance(dividend, int):
        return dividend // divisor
    # floor((c * x + r) / d) is x * (c // d) + floor((c % d * x + r) / d): what is whole comes out.
    whole = size_from({names: factor // divisor for names, factor in dividend.terms})
    rest = size_from({names: factor % divisor for names, factor in dividend.terms})
    if whole is None or rest is None:
        return None
    if isinstance(rest, int):
        return add(whole, rest // divisor)
    common = divisor
    for names, factor in rest.terms:
        if names:
            common = gcd(common, factor)
    rest = size_from({names: factor // common for names, factor in rest.terms})
    divisor //= common
    if rest is None:
        return None
    inner = _inner_quotient(rest, divisor)
    if inner is None:
        inner = rest if divisor == 1 else _quotient(rest, divisor)
    return add(whole, inner)


def _inner_quotient(rest: Size, divisor: int) -> Size | None:
    """floor((floor(p / q) + c) / d) as floor((p + c * q) / (q * d))."""
    terms = terms_of(rest)
    constant = terms.pop((), 0)
    held = term_of(size_from(terms), "floor")
    if held is None or not isinstance(held.arguments[1], int):
        return None
    above, below = held.arguments
    total = add(above, constant * below)  # type: ignore[operator]
    return floor_divide(total, below * divisor) if total is not None else None  # type: ignore[operator]


def _reduced(dividend: Size, divisor: Size) -> tuple[Size, Size]:
    """Both without the number and the symbols that divide them: a divisor of 0 cannot be computed with anyway."""
    common: Monomial | None = None
    number = 0
    for names, factor in (*terms_of(dividend).items(), *terms_of(divisor).items()):
        number = gcd(number, factor)
        common = names if common is None else _shared(common, names)
    by = size_from({common or (): number or 1})
    above, below = (divide(size, by) if by is not None else None for size in (dividend, divisor))
    return (above, below) if above is not None and below is not None else (dividend, divisor)


def _shared(one: Monomial, other: Monomial) -> Monomial:
    shared, rest = [], other
    for name in one:
        left = without(rest, (name,))
        if left is not None:
            shared.append(name)
            rest = left
    return tuple(shared)


def _quotient(dividend: Size, divisor: Size) -> Polynomial:
    above = str(dividend) if isinstance(dividend, int) or len(dividend.terms) == 1 else f"({dividend})"
    below = str(divisor) if isinstance(divisor, int) or divisor.symbol is not None else f"({divisor})"
    return _term("floor", f"floor({above}/{below})", dividend, divisor)


@lru_cache(maxsize=4096)
def truncated_divide(dividend: Size, divisor: Size) -> Size | None:
    """The quotient as ONNX's integer Div gives it, rounded towards 0; None for a divisor of 0."""
    exact = divide(dividend, divisor)
    if exact is not None or divisor == 0:
        return exact
    if never_negative(dividend) and never_negative(divisor):
        return floor_divide(dividend, divisor)
    return _term("div", f"div({dividend}, {divisor})", dividend, divisor)


def ceil_divide(dividend: Size, divisor: int) -> Size | None:
    """The smallest integer not below ``dividend / divisor``, for a positive divisor."""
    above = add(dividend, divisor - 1) if divisor > 0 else None
    return floor_divide(above, divisor) if above is not None else None


@lru_cache(maxsize=4096)
def minimum(one: Size, other: Size) -> Size:
    """The smaller one."""
    return _extreme("min", one, other, -1)


@lru_cache(maxsize=4096)
def maximum(one: Size, other: Size) -> Size:
    """The larger one."""
    return _extreme("max", one, other, 1)


def _extreme(function: str, one: Size, other: Size, sign: int) -> Size:
    held: list[Size] = []
    for size in (one, other):
        term = term_of(size, function)
        held.extend(term.arguments if term is not None else (size,))
    kept: list[Size] = []
    for size in held:
        if any(_is_not_below(rival, size, sign) for rival in kept):
            continue
        kept = [rival for rival in kept if not _is_not_below(size, rival, sign)]
        kept.append(size)
    if len(kept) == 1:
        return kept[0]
    kept.sort(key=lambda size: (isinstance(size, int), str(size)))
    return _term(function, f"{function}({', '.join(map(str, kept))})", *kept)


def _is_not_below(one: Size, other: Size, sign: int) -> bool:
    """Whether ``sign * one >= sign * other``, certainly."""
    difference = add(one, other, -1) if sign > 0 else add(other, one, -1)
    return difference is not None and never_negative(difference)


@lru_cache(maxsize=4096)
def broadcast(one: Size, other: Size) -> Size:
    """The dimension that two make where a node broadcasts them: they are equal, or one of them is 1."""
    if one in (other, 1):
        return other
    if other == 1 or never_one(one):
        return one
    if never_one(other):
        return other
    for size, rival in ((one, other), (other, one)):
        # min(size, 64) is 1 only where the size is: buffers for the longest sequence are sliced like that.
        capped = term_of(rival, "min")
        if capped is not None and len(capped.arguments) == 2 and size in capped.arguments:
            (cap,) = (argument for argument in capped.arguments if argument != size)
            if isinstance(cap, int) and cap > 1:
                return size
        # They can be broadcast if they are equal, or if the rival is 1: the size is what comes out unless it alone is 1. So
        # seq and min(seq, 64) make seq: position embeddings are sliced like that.
        where_one = _solved(size, 1)
        if where_one is not None and substituted(rival, where_one) == 1:
            return size
    held: dict[Size, None] = {}
    for size in (one, other):
        term = term_of(size, "broadcast")
        held.update(dict.fromkeys(term.arguments if term is not None else (size,)))
    kept = sorted(held, key=str)
    return _term("broadcast", f"broadcast({', '.join(map(str, kept))})", *kept)


def _solved(size: Size, value: int) -> dict[str, Size] | None:
    """What the size's only symbol is where the size has this value."""
    terms = terms_of(size)
    constant = terms.pop((), 0)
    if len(terms) != 1:
        return None
    ((names, factor),) = terms.items()
    return {names[0]: (value - constant) // factor} if len(names) == 1 and (value - constant) % factor == 0 else None


@lru_cache(maxsize=4096)
def sliced(start: Size, end: Size, dim: Size) -> Size | None:
    """How many elements a Slice with step 1 takes of a dimension; negative positions count from its end."""
    if isinstance(start, int) and isinstance(end, int) and isinstance(dim, int):
        return len(range(*slice(start, end).indices(dim)))
    to_end = isinstance(end, int) and end >= TO_THE_END
    if to_end and isinstance(start, int) and -TO_THE_END < start < 0:
        return minimum(dim, -start)
    first, last = _position(start, dim), dim if to_end else _position(end, dim)
    if first is None or last is None:
        shown = "end" if to_end else str(end)
        return _term("sliced", f"sliced({start}, {shown}, {dim})", start, end, dim)
    length = add(minimum(last, dim), first, -1)
    return maximum(length, 0) if length is not None else None


def _position(index: Size, dim: Size) -> Size | None:
    """A start or an end as a position that is not negative; it may lie beyond the dimension. None where its sign is open."""
    if never_negative(index):
        return index
    if isinstance(index, int) and index <= -TO_THE_END:
        return 0
    counted = add(dim, index)
    if counted == 0:
        return 0  # whether it is -dim, or 0 because the dimension is
    below = add(-1, index, -1)
    return maximum(counted, 0) if below is not None and counted is not None and never_negative(below) else None


_DEEPEST: Final = 4


@lru_cache(maxsize=4096)
def never_negative(size: Size, depth: int = _DEEPEST) -> bool:
    """Whether the size cannot be negative, which the functions in it may tell."""
    if not_negative(size):
        return True
    if isinstance(size, int) or depth == 0:
        return False
    for names, factor in size.terms:
        if len(names) != 1 or not isinstance(names[0], Term) or names[0].function not in ("min", "max", "floor"):
            continue
        term, rest = names[0], size_from({held: other for held, other in size.terms if held != names})
        if rest is None:
            continue
        if term.function == "floor":
            below = term.arguments[1]
            if factor < 0 and isinstance(below, int):  # rest - floor(a / b) >= (b * rest - a) / b
                above, scaled = multiply(term.arguments[0], factor), multiply(rest, below)
                bound = add(above, scaled) if above is not None and scaled is not None else None
                if bound is not None and never_negative(bound, depth - 1):
                    return True
            continue
        cases = [_with(rest, factor, argument) for argument in term.arguments]
        holds = [case is not None and never_negative(case, depth - 1) for case in cases]
        if any(holds) if (factor > 0) == (term.function == "max") else all(holds):
            return True
    return False


def _with(rest: Size, factor: int, argument: Size) -> Size | None:
    scaled = multiply(factor, argument)
    return add(rest, scaled) if scaled is not None else None


_MAKERS: Final[dict[str, Callable[..., Size | None]]] = {
    "floor": floor_divide,
    "min": minimum,
    "max": maximum,
    "broadcast": broadcast,
    "div": truncated_divide,
    "sliced": sliced,
}


def substituted(size: Size, known: Mapping[str, Size]) -> Size | None:
    """The size with symbols replaced, inside functions too; None if it grows out of bounds."""
    if isinstance(size, int):
        return size
    total: Size | None = 0
    for names, factor in size.terms:
        factors = [_replaced(name, known) for name in names]
        if None in factors:
            return None
        part = product([factor, *(item for item in factors if item is not None)])
        total = add(total, part) if part is not None and total is not None else None
    return total


def _replaced(name: str, known: Mapping[str, Size]) -> Size | None:
    found = known.get(name)
    if found is not None:
        return found
    if not isinstance(name, Term) or not mentions(symbol(name), known):
        return symbol(name)
    arguments = [substituted(argument, known) for argument in name.arguments]
    if None in arguments:
        return None
    if name.function == "sliced":
        return _MAKERS[name.function](*arguments)
    first, *others = (argument for argument in arguments if argument is not None)
    result: Size | None = first
    for argument in others:
        result = _MAKERS[name.function](result, argument) if result is not None else None
    return result


def mentions(size: Size, names: Mapping[str, object]) -> bool:
    """Whether one of ``names`` occurs in the size."""
    if isinstance(size, int):
        return False
    for held, _ in size.terms:
        for name in held:
            if name in names or (isinstance(name, Term) and any(mentions(argument, names) for argument in name.arguments)):
                return True
    return False
