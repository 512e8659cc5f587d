"""The text form of a chain: `O2, attention{heads=12}, quantize-dynamic{per_channel=true, exclude=["/lm_head/*"]}`.

    chain   = [pass {"," pass}]
    pass    = word ["{" {word "=" value} "}"]
    value   = word | string | "[" {value} "]" | "{" {(word | string) "=" value} "}"

Inside brackets and braces, commas and blanks both separate, and a comma at the end is allowed. A word is a run of
characters other than blanks and `, = { } [ ] " '`. As a value it means what it looks like: `true`, `false`, `null`, an
integer, a float (`1e-5`, `.5`, `inf`, `-inf`, `nan`), or else a string. A string is quoted by either kind of quote and
has JSON's escapes. The text is data: nothing in it is ever imported or evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from rewright.model.errors import UsageError

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

_TOKEN = re.compile(r"\s*(?:(?P<mark>[,={}\[\]])|(?P<quote>[\"'])|(?P<word>[^\s,={}\[\]\"']+)|(?P<end>\Z))")
_QUOTED = {quote: re.compile(rf"[^{quote}\\]+|\\(?:u[0-9a-fA-F]{{4}}|.)|{quote}", re.DOTALL) for quote in "\"'"}
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", '"': '"', "'": "'"}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf)|nan")
_BARE = re.compile(r"[A-Za-z_/.*:][A-Za-z0-9_/.*:+-]*")
_KEYWORDS: Mapping[str, Value] = {"true": True, "false": False, "null": None}
_DEEPEST = 32


@dataclass(frozen=True)
class PassText:
    """One pass as written: its name, its options, and where each stands in the text."""

    name: str
    options: dict[str, Value]
    text: str
    name_at: int
    braced: bool = False
    options_at: dict[str, int] = field(default_factory=dict)


class _Token(NamedTuple):
    kind: str  # a mark itself, or "word", "string", "end"
    value: str
    at: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"'{self.value}'"


def parse_chain(text: str) -> list[PassText]:
    """Read chain text.

    Raises:
        UsageError: with the column and a caret under it.
    """
    return _Parser(text).chain()


def parse_value(text: str) -> Value:
    """Read one value: `0.5`, `true`, `[a, b]`, `/lm_head/*`. Text that is no single value is an error."""
    return _Parser(text).lone_value()


def format_pass(name: str, options: Mapping[str, Value]) -> str:
    """The canonical text of one pass: `gelu`, `attention{heads=12, scale=0.125}`."""
    return name + format_value(dict(options)) if options else name


def format_value(value: Value) -> str:
    """The canonical text of one value. `parse_value` gives the value back."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and isinstance(_word_value(value), str) else _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_format_key(key)}={format_value(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(format_value, value)) + "]"


def pointed_error(message: str, text: str, at: int, hint: str = "") -> UsageError:
    """An error about one place in chain text: the line and column in the message, a caret under it in the hint."""
    line_start = text.rfind("\n", 0, at) + 1
    line = text[line_start:].partition("\n")[0].rstrip()
    column = at - line_start
    row = f"line {text.count(chr(10), 0, at) + 1}, " if "\n" in text.strip() else ""
    left = max(0, column - 60)
    ellipsis = "..." if left else ""
    shown = ellipsis + line[left : column + 60].replace("\t", " ")
    caret = " " * (len(ellipsis) + column - left) + "^"
    return UsageError(f"chain text, {row}column {column + 1}: {message}", f"{hint}\n    {shown}\n    {caret}")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.depth = 0
        self.token = self._scan()

    def chain(self) -> list[PassText]:
        passes: list[PassText] = []
        while self.token.kind != "end":
            passes.append(self._pass())
            if self.token.kind != "end":
                self._expect(",", "between passes" if self.token.kind == "word" else "after a pass")
        return passes

    def lone_value(self) -> Value:
        value = self._value()
        self._expect("end", "after the value")
        return value

    def _pass(self) -> PassText:
        name = self._expect("word", "where a pass or level name should be")
        if self.token.kind != "{":
            return PassText(name.value, {}, self.text, name.at)
        options, places = self._options("an option", ("word",))
        return PassText(name.value, options, self.text, name.at, True, places)

    def _value(self) -> Value:
        if self.token.kind == "word":
            return _word_value(self._next().value)
        if self.token.kind == "string":
            return self._next().value
        if self.token.kind == "{":
            return self._options("a key", ("word", "string"))[0]
        if self.token.kind == "[":
            return self._list()
        raise self._error(f"a value is missing before {self.token}.")

    def _list(self) -> list[Value]:
        self._open()
        values: list[Value] = []
        while self.token.kind != "]":
            values.append(self._value())
            if self.token.kind == ",":
                self._next()
        self._close("]")
        return values

    def _options(self, noun: str, key_kinds: tuple[str, ...]) -> tuple[dict[str, Value], dict[str, int]]:
        self._open()
        values: dict[str, Value] = {}
        places: dict[str, int] = {}
        while self.token.kind != "}":
            if self.token.kind not in key_kinds:
                raise self._error(f"expected {noun} or '}}', found {self.token}.")
            key = self._next()
            if key.value in values:
                raise pointed_error(f"'{key.value}' is given twice.", self.text, key.at)
            self._expect("=", f"after '{key.value}'")
            values[key.value], places[key.value] = self._value(), key.at
            if self.token.kind == ",":
                self._next()
        self._close("}")
        return values, places

    def _open(self) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._error(f"values are nested more than {_DEEPEST} deep.")
        self._next()

    def _close(self, mark: str) -> None:
        self.depth -= 1
        self._expect(mark, "at the end of the value")

    def _expect(self, kind: str, where: str) -> _Token:
        if self.token.kind != kind:
            wanted = {"word": "a name", "end": "nothing more"}.get(kind, f"'{kind}'")
            raise self._error(f"expected {wanted} {where}, found {self.token}.")
        return self._next()

    def _next(self) -> _Token:
        token = self.token
        if token.kind != "end":
            self.token = self._scan()
        return token

    def _error(self, message: str) -> UsageError:
        return pointed_error(message, self.text, self.token.at)

    def _scan(self) -> _Token:
        found = _TOKEN.match(self.text, self.position)
        assert found is not None  # the four alternatives cover every character and the end
        kind = str(found.lastgroup)
        value, at = found[kind], found.start(kind)
        self.position = found.end()
        if kind == "mark":
            return _Token(value, value, at)
        if kind == "quote":
            return _Token("string", self._string(value, at), at)
        return _Token(kind, value, at)

    def _string(self, quote: str, at: int) -> str:
        parts: list[str] = []
        while (found := _QUOTED[quote].match(self.text, self.position)) is not None:
            piece = found[0]
            self.position = found.end()
            if piece == quote:
                # a pair of \u escapes may spell one character
                return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            parts.append(self._escaped(piece, found.start()) if piece[0] == "\\" else piece)
        raise pointed_error(f"the string has no closing {quote}.", self.text, at)

    def _escaped(self, piece: str, at: int) -> str:
        if len(piece) > 2:
            return chr(int(piece[2:], 16))
        if piece[1] not in _ESCAPES:
            raise pointed_error(f"{piece} is no escape.", self.text, at, "Write a backslash as \\\\.")
        return _ESCAPES[piece[1]]


def _word_value(word: str) -> Value:
    if word in _KEYWORDS:
        return _KEYWORDS[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) else word


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_./*:-]+", key) else _quoted(key)
