"""What quantizing passes may lose."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

from rewright.model.errors import UsageError


@dataclass(frozen=True, slots=True)
class QuantizationBudget:
    """What a quantized output may lose.

    Attributes:
        sqnr_db: signal to quantization noise, in decibels, at least.
        cosine: similarity of the flattened outputs, at least.
        top1: share of rows whose largest element stays in place, at least; None does not ask.
        max_abs: largest difference, at most; None does not ask.
        agreement: for integer outputs, the share of equal elements, at least.
        step: how far an eight-bit integer output may be off, since requantization rounds to a neighbouring level.
    """

    sqnr_db: float = 20.0
    cosine: float = 0.99
    top1: float | None = None
    max_abs: float | None = None
    agreement: float = 0.9
    step: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """The budget that "sqnr=25, top1=0.99" asks for; what it does not name stays as it is by default.

        Raises:
            UsageError: a name is unknown, or a value is not a number that can be reached.
        """
        given: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            field = _BUDGET_NAMES.get(name)
            if field is None or not equals:
                near = difflib.get_close_matches(name, _BUDGET_NAMES, n=1)
                hint = f"Did you mean {near[0]}? " if near else ""
                raise UsageError(f"'{part}' is no part of a budget.", f"{hint}Write it as sqnr=25, top1=0.99; known: {_NAMES}.")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not _BUDGET_RANGES[field](number):
                raise UsageError(f"the budget's {name} is '{value}'.", _BUDGET_HINTS[field])
            given[field] = int(number) if field == "step" else number
        return cls(**given)

    @classmethod
    def of(cls, budget: str | Self | None) -> Self | None:
        """A budget that is given as text, as itself, or not at all.

        Raises:
            UsageError: see ``parse``.
        """
        return cls.parse(budget) if isinstance(budget, str) else budget

    @property
    def text(self) -> str:
        """What ``parse`` reads: every bound that is asked for."""
        values = {name: getattr(self, field) for name, field in _BUDGET_NAMES.items()}
        return ", ".join(f"{name}={value:g}" for name, value in values.items() if value is not None)


_BUDGET_NAMES: Final = {
    "sqnr": "sqnr_db",
    "cosine": "cosine",
    "top1": "top1",
    "max_abs": "max_abs",
    "agreement": "agreement",
    "step": "step",
}
_NAMES: Final = ", ".join(_BUDGET_NAMES)
_SHARE: Final = "It is a share between 0 and 1."
_BUDGET_RANGES: Final[dict[str, Callable[[float], bool]]] = {
    "sqnr_db": math.isfinite,
    "cosine": lambda value: -1.0 <= value <= 1.0,
    "top1": lambda value: 0.0 <= value <= 1.0,
    "max_abs": lambda value: value >= 0.0,
    "agreement": lambda value: 0.0 <= value <= 1.0,
    "step": lambda value: value >= 0.0 and value == int(value),
}
_BUDGET_HINTS: Final = {
    "sqnr_db": "It is a number of decibels.",
    "cosine": "It is a similarity between -1 and 1.",
    "top1": _SHARE,
    "max_abs": "It is a difference, 0 or more.",
    "agreement": _SHARE,
    "step": "It is a whole number of levels.",
}
