"""Chains in YAML and TOML files: one plain form, `{"chain": [text | {pass: {option: value}}]}`, and its two spellings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import tomli_w
import yaml

from rewright.model.errors import UsageError
from rewright.registry.grammar import Value

Entry: TypeAlias = "str | dict[str, dict[str, Value]]"
ChainData: TypeAlias = dict[str, list[Entry]]

_FORM = 'A chain file holds one list: chain: [O1, {attention: {heads: 12}}, "gelu{backend=ort}"].'


def entries(data: object) -> Iterator[str | Mapping[str, Mapping[str, object]]]:
    """Check the plain form and yield its entries.

    Raises:
        UsageError: the data has another form; the message names the entry.
    """
    if not isinstance(data, Mapping) or list(data) != ["chain"] or not isinstance(data["chain"], list):
        raise UsageError("this is no chain.", _FORM)
    for number, entry in enumerate(data["chain"], 1):
        if isinstance(entry, str):
            yield entry
            continue
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise UsageError(f"entry {number} of the chain is {entry!r}.", "Write a text, or one pass with its options.")
        ((name, options),) = entry.items()
        if not isinstance(name, str) or not isinstance(options, (Mapping, type(None))):
            raise UsageError(f"entry {number} of the chain gives {name} the options {options!r}.", "Options are a map.")
        yield {name: {str(option): value for option, value in (options or {}).items()}}


def read(path: str | PathLike[str]) -> object:
    """The content of a chain file: its text, or what a `.yaml`, `.yml` or `.toml` file holds.

    Raises:
        UsageError: the file cannot be read or is malformed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"it cannot be read ({error.strerror}).", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"it is not UTF-8 text ({error.reason} at byte {error.start}).", _FORM) from error
    if path.suffix.lower() in (".yaml", ".yml"):
        return parse_yaml(text)
    return parse_toml(text) if path.suffix.lower() == ".toml" else text


def dump_yaml(data: ChainData) -> str:
    """YAML text of plain chain data."""
    # the dumper would write a value that occurs twice as an anchor and an alias
    return yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, default_flow_style=False)


def parse_yaml(text: str) -> object:
    """What a YAML document holds: plain data only, and no key given twice."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    # a date out of range is a ValueError, and brackets without end exhaust the parser's stack
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"the YAML is malformed: {' '.join(str(error).split())}.", _FORM) from error


def dump_toml(data: ChainData) -> str:
    """TOML text of plain chain data. Raises UsageError where an option is null, which TOML cannot say."""
    if _holds_null(data):
        raise UsageError("an option of this chain is null, which TOML cannot say.", "Save the chain as YAML or text.")
    return tomli_w.dumps(data)


def parse_toml(text: str) -> object:
    """What a TOML document holds."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"the TOML is malformed: {error}.", 'chain = ["O1", { attention = { heads = 12 } }]') from error


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class _StrictLoader(yaml.SafeLoader):
    """Refuses what YAML would lose without a word: of two equal keys it keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key_node.value}' is given twice", key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _holds_null(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    return any(map(_holds_null, value)) if isinstance(value, list) else value is None
