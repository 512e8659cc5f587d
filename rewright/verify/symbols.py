"""Symbolic dimensions: which symbols a model has, what they stand for, and sizes to try.

A symbol has one size throughout an input set. Exporters also write expressions ("past_sequence_length + 1"); they are
evaluated from their syntax tree, and nothing else in them is ever executed.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rewright.verify.roles import Dim, InputRole

Sizes = Mapping[str, int]

BATCH_SIZES: Final = (2, 3, 1, 2)
LENGTHS: Final = (7, 5, 4, 6)
"""Short, different from the batch sizes, and below the size of any real model's position table."""
PAST_LENGTHS: Final = (3, 5, 2, 4)
IMAGE_SIZES: Final = (32, 64, 48, 32)
WAVEFORM_LENGTHS: Final = (1600, 2000, 1200, 1600)

_FUNCTIONS: Final[dict[str, Callable[..., float]]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "ceiling": math.ceil,
    "max": max,
    "min": min,
    "int": int,
}
_OPERATORS: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    ast.FloorDiv: lambda left, right: left // right,
    ast.Mod: lambda left, right: left % right,
}


@dataclass(frozen=True)
class Fallback:
    """Sizes for a second try, when the model could not run with the first ones: the same for all symbols of a sort."""

    batch: int
    length: int
    image: int


FALLBACKS: Final = (
    Fallback(1, 5, 32),
    Fallback(1, 7, 64),
    Fallback(2, 4, 32),
    Fallback(2, 8, 64),
    Fallback(1, 3, 32),
    Fallback(1, 2, 64),
    Fallback(2, 64, 224),
    Fallback(1, 512, 224),
    Fallback(2, 3200, 128),
)


def dimension_symbol(dim: Dim, axis: int) -> str:
    """The symbol of a dimension that has no fixed size; unnamed ones are the same along an axis of all inputs."""
    return str(dim) if dim else f"?{axis}"


def symbols_of(roles: Iterable[InputRole]) -> dict[str, str]:
    """Every base symbol of the inputs, with what it stands for: batch, length, past, image or waveform.

    Symbols that are expressions of others are taken apart.
    """
    plain: dict[str, str] = {}
    expressions: list[tuple[ast.expr, str]] = []
    for role in roles:
        for axis, dim in enumerate(role.dims):
            if isinstance(dim, int):
                continue
            symbol = dimension_symbol(dim, axis)
            sort = _sort(symbol, axis, role)
            expression = parse_expression(symbol)
            if expression is not None:
                expressions.append((expression, sort))
            elif plain.get(symbol) in (None, "length"):
                plain[symbol] = sort
    for expression, sort in expressions:
        for name in _names(expression):
            plain.setdefault(name, "past" if "past" in name else sort)
    return plain


def sizes(symbols: Mapping[str, str], trial: int) -> dict[str, int]:
    """A size for every base symbol; symbols of one sort get different ones, so that mixing them up shows."""
    chosen: dict[str, int] = {}
    seen: dict[str, int] = {}
    for symbol, sort in symbols.items():
        rank = seen[sort] = seen.get(sort, -1) + 1
        table = _TABLES[sort]
        # Symbols of the batch sort are kept together: a second one is as a rule the same batch under another name.
        chosen[symbol] = table[(trial + (0 if sort == "batch" else rank)) % len(table)]
    return with_totals(chosen, symbols)


def fallback_sizes(symbols: Mapping[str, str], fallback: Fallback) -> dict[str, int]:
    """The sizes of a second try; see `Fallback`."""
    by_sort = {"batch": fallback.batch, "image": fallback.image, "waveform": max(fallback.length, 400)}
    chosen = {symbol: by_sort.get(sort, fallback.length) for symbol, sort in symbols.items()}
    return with_totals(chosen, symbols)


def resolve(dims: Sequence[Dim], chosen: Sizes, least: int = 1) -> tuple[int, ...] | None:
    """The shape for these sizes; None where an expression has no whole value of at least `least`."""
    shape = []
    for axis, dim in enumerate(dims):
        if isinstance(dim, int):
            shape.append(dim)
            continue
        symbol = dimension_symbol(dim, axis)
        expression = parse_expression(symbol)
        size = chosen[symbol] if expression is None else evaluate(expression, chosen)
        if size is None or size < least:
            return None
        shape.append(size)
    return tuple(shape)


def parse_expression(symbol: str) -> ast.expr | None:
    """The syntax tree of an arithmetic dimension; None for a plain name, however odd ("batch-size", "Concat.3")."""
    if symbol.isidentifier() or symbol.startswith("?"):
        return None
    try:
        tree = ast.parse(symbol, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return None
    is_written_as_one = any(mark in symbol for mark in " *(") or any(part.isdigit() for part in _words(symbol))
    names = set(_names(tree))
    return tree if is_written_as_one and names and _is_arithmetic(tree) else None


def evaluate(expression: ast.expr, chosen: Sizes) -> int | None:
    """The value of an arithmetic dimension; None when it is not a whole number or a symbol has no size."""
    try:
        value = _evaluate(expression, chosen)
    except (KeyError, ZeroDivisionError, TypeError, ValueError, OverflowError):
        return None
    return int(value) if value == int(value) else None


def _evaluate(node: ast.expr, chosen: Sizes) -> float:
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.Name(id=name):
            return chosen[name]
        case ast.BinOp(left=left, op=operator, right=right):
            return _OPERATORS[type(operator)](_evaluate(left, chosen), _evaluate(right, chosen))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, chosen)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name.lower()](*(_evaluate(argument, chosen) for argument in arguments))
    raise ValueError(f"not arithmetic: {ast.dump(node)}")


def _is_arithmetic(tree: ast.expr) -> bool:
    allowed = (ast.BinOp, ast.UnaryOp, ast.USub, ast.Constant, ast.Name, ast.Load, ast.Call, *_OPERATORS)
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    known = all(isinstance(function, ast.Name) and function.id.lower() in _FUNCTIONS for function in called)
    return known and all(isinstance(node, allowed) for node in ast.walk(tree))


def _names(tree: ast.expr) -> list[str]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called]


def _words(symbol: str) -> list[str]:
    return "".join(letter if letter.isalnum() or letter == "_" else " " for letter in symbol).split()


def _sort(symbol: str, axis: int, role: InputRole) -> str:
    lowered = symbol.lower()
    if "past" in lowered:
        return "past"
    if "batch" in lowered:
        return "batch"
    if role.kind == "image" and axis >= 2:
        return "image"
    if role.kind == "waveform" and axis == len(role.dims) - 1:
        return "waveform"
    if axis == 0 and role.kind != "shape" and not any(part in lowered for part in ("seq", "len", "token")):
        return "batch"
    return "length"


def with_sides(roles: Iterable[InputRole], chosen: Sizes, which: int = 0) -> dict[str, int]:
    """The sizes with those of images that the model's position embeddings are for: of several candidates the one at `which`."""
    sides = {
        symbol: role.sides[which]
        for role in roles
        if which < len(role.sides)
        for axis, dim in enumerate(role.dims)
        if axis >= 2 and (symbol := dimension_symbol(dim, axis)) in chosen
    }
    return {**chosen, **sides}


def with_totals(chosen: dict[str, int], symbols: Mapping[str, str]) -> dict[str, int]:
    """Give `total_sequence_length` and its like the sum that they name: the past plus what is new."""
    past = [size for symbol, size in chosen.items() if symbols[symbol] == "past"]
    new = [size for symbol, size in chosen.items() if symbols[symbol] == "length" and "total" not in symbol.lower()]
    if past and new:
        for symbol in chosen:
            if "total" in symbol.lower() and symbols[symbol] in ("length", "past"):
                chosen[symbol] = past[0] + new[0]
    return chosen


_TABLES: Final = {
    "batch": BATCH_SIZES,
    "length": LENGTHS,
    "past": PAST_LENGTHS,
    "image": IMAGE_SIZES,
    "waveform": WAVEFORM_LENGTHS,
}
