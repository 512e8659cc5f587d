"""What the classes with Optimum's attributes have in common: how they are checked, and read from objects and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PrivateAttr, ValidationError, model_validator

from rewright.integrations.optimum.messages import Message
from rewright.model.errors import UsageError
from rewright.registry.catalog import did_you_mean


class Attributes(BaseModel):
    """Base of a class with Optimum's attributes, which can be set in the constructor or afterwards.

    One that does not exist, or a value that it cannot have, is a UsageError.
    """

    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True)

    what_values_are: ClassVar[str]
    """What attributes can be set to, as the hint of an error says it."""

    section: ClassVar[str]
    """The key of an ``ort_config.json`` that holds them; empty where none does."""

    told_by: ClassVar[str]
    """An attribute that only an object of this kind has."""

    _remarks: tuple[Message, ...] = PrivateAttr(default=())
    _external_data: bool = PrivateAttr(default=False)

    @model_validator(mode="wrap")
    @classmethod
    def _in_plain_words(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Mapping):
            check_known(data, cls)
        try:
            return handler(data)
        except ValidationError as error:
            raise cls._usage_error(error) from None

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            check_known((name,), type(self))
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise self._usage_error(error) from None

    @property
    def remarks(self) -> tuple[Message, ...]:
        """What is to be said of the source of these options, beside them; compiling repeats it."""
        return self._remarks

    @property
    def external_data(self) -> bool:
        """Whether the source of these options asks for weights in a file beside the model (``use_external_data_format``)."""
        return self._external_data

    def chosen(self) -> dict[str, Any]:
        """The attributes that are not at their defaults, in the order of declaration."""
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in values.items() if value != fields[name].get_default(call_default_factory=True)}

    @classmethod
    def from_optimum(cls, source: object) -> Self:
        """Options from Optimum's object of this kind, from an ORTConfig that holds one, or from the dictionary of either.

        Raises:
            UsageError: it is none of these, holds no such options, or an attribute that does not exist.
        """
        from rewright.integrations.optimum.ort_config import options_of

        read = options_of(source, cls)
        made = cls(**read.options)
        made._remarks, made._external_data = read.remarks, read.external_data
        return made

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Self:
        """Options from an ``ort_config.json``, written by Optimum or by ``save_ort_config``.

        Raises:
            UsageError: the file cannot be read, or see ``from_optimum``; the message names the file.
        """
        from rewright.integrations.optimum.ort_config import read_ort_config

        content = read_ort_config(path)
        try:
            return cls.from_optimum(content)
        except UsageError as error:
            raise UsageError(f"{path}: {error.message}", error.hint) from error

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str]) -> Self:
        """Options from the ``ort_config.json`` of a directory, or from such a file. Raises like ``from_file``."""
        return cls.from_file(directory)

    @classmethod
    def _usage_error(cls, error: ValidationError) -> UsageError:
        details = error.errors(include_url=False)
        told = (
            f"{'.'.join(map(str, detail['loc']))} "
            + ("has to be given" if detail["type"] == "missing" else f"is {detail['input']!r}: {_lowered(detail['msg'])}")
            for detail in details
        )
        return UsageError(f"{'; '.join(told)}.", cls.what_values_are)


def check_known(names: Iterable[str], kind: type[Attributes]) -> None:
    """Raises UsageError, with names that are near, for the first name that is no attribute of the class."""
    known = kind.model_fields
    for name in names:
        if name not in known:
            near = did_you_mean(name, known) or f"The attributes: {', '.join(known)}."
            raise UsageError(f"{kind.__name__} has no attribute '{name}'.", near)


def _lowered(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
