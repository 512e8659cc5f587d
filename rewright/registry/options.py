"""Options of a pass, from and to plain values: what chain text, YAML and TOML hold, checked by the pass's own model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rewright.model.errors import UsageError
from rewright.registry.catalog import did_you_mean
from rewright.registry.grammar import Value, format_value

if TYPE_CHECKING:
    from rewright.passes.contract import Pass


class OptionError(UsageError):
    """An option that a pass does not have, or a value that it does not accept; `option` tells which."""

    def __init__(self, message: str, hint: str, option: str) -> None:
        super().__init__(message, hint)
        self.option = option


def configure(pass_class: type[Pass], options: Mapping[str, Any]) -> Pass:
    """Make a configured pass.

    Raises:
        UsageError: an option is unknown, or its value is not what the pass declares.
    """
    known = pass_class.option_fields()
    for option in options:
        if option not in known:
            near = did_you_mean(option, known)
            hint = f"{near} Its options: {', '.join(known)}.".lstrip()
            raise OptionError(f"pass {pass_class.name} has no option '{option}'.", hint, option)
    try:
        configured = pass_class(**options)
    except ValidationError as error:
        details = error.errors(include_url=False)
        message = f"pass {pass_class.name}: {'; '.join(map(_explain, details))}."
        first = details[0]["loc"]
        raise OptionError(message, _quoting_hint(details), str(first[0]) if first else "") from error
    check_backend(configured)
    return configured


def check_backend(configured: Pass) -> None:
    """Raise UsageError if the pass does not have the backend that it is set to."""
    if configured.backend not in configured.backends:
        raise OptionError(
            f"pass {configured.name} has no backend '{configured.backend}'.",
            f"It has: {', '.join(configured.backends)}.",
            "backend",
        )


def chosen_options(configured: Pass) -> dict[str, Value]:
    """The options that differ from their defaults, as plain values, in the order of declaration.

    Raises:
        UsageError: a value has no plain form (pass developers: declare options of plain types).
    """
    return _chosen(configured, configured.option_fields(), f"pass {configured.name}: option ")


def with_options(configured: Pass, options: Mapping[str, object]) -> Pass:
    """The same pass with some options set anew; those that were set before stay set."""
    kept = {option: getattr(configured, option) for option in configured.model_fields_set}
    return configure(type(configured), {**kept, **options})


def _chosen(model: BaseModel, fields: Mapping[str, FieldInfo], place: str) -> dict[str, Value]:
    chosen: dict[str, Value] = {}
    for name, field in fields.items():
        value = getattr(model, name)
        if field.is_required() or value != field.get_default(call_default_factory=True, validated_data={}):
            chosen[name] = _plain(value, f"{place}{name}")
    return chosen


def _plain(value: object, place: str) -> Value:
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, place)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, BaseModel):
        return _chosen(value, type(value).model_fields, f"{place}.")
    if isinstance(value, Mapping):
        return {_plain_key(key, place): _plain(item, place) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        # sets have no order of their own, and the canonical text needs one
        return sorted((_plain(item, place) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, (list, tuple)):
        return [_plain(item, place) for item in value]
    raise UsageError(
        f"{place} holds a {type(value).__name__}, which has no text form.",
        "Pass developer: declare options of numbers, strings, lists, maps and enumerations.",
    )


def _plain_key(key: object, place: str) -> str:
    plain = _plain(key, place)
    return plain if isinstance(plain, str) else format_value(plain)


def _explain(detail: ErrorDetails) -> str:
    if not detail["loc"]:
        return detail["msg"].removeprefix("Value error, ")
    place = "option " + ".".join(map(str, detail["loc"]))
    if detail["type"] == "missing":
        return f"{place} is required"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}, got {_shown(detail['input'])}"


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else _format(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _format(value: object) -> str:
    try:
        return format_value(_plain(value, ""))
    except UsageError:
        return repr(value)


def _quoting_hint(details: list[ErrorDetails]) -> str:
    if any(detail["type"] == "string_type" and isinstance(detail["input"], (bool, int, float)) for detail in details):
        return "Put quotes around it to make it a string."
    return ""
