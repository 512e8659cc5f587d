"""Ranges of values, as calibration finds them, in a file that can be read again and edited by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from rewright.model.errors import UsageError

_FORMAT: Final = "rewright-ranges"
_VERSION: Final = 1
_HINT: Final = "Write it with rewright.calibration.calibrate(model, data).save(path)."


@dataclass(frozen=True)
class Ranges:
    """The range of each value that was calibrated.

    Attributes:
        values: (low, high) by the name of the value.
        method: how they were found.
        samples: on how many input sets.
        made_up: whether nobody gave those input sets.
    """

    values: Mapping[str, tuple[float, float]]
    method: str = "minmax"
    samples: int = 0
    made_up: bool = False

    def save(self, path: str | PathLike[str]) -> None:
        """Writes them as JSON."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "method": self.method,
            "samples": self.samples,
            "made_up": self.made_up,
            "values": {name: list(ends) for name, ends in self.values.items()},
        }
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Ranges:
        """What ``save`` has written.

        Raises:
            UsageError: the file cannot be read, or is something else.
        """
        try:
            content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"the ranges in {path} cannot be read: {error}.", _HINT) from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("values"), dict):
            raise UsageError(f"{path} holds no ranges.", _HINT)
        if content.get("version") != _VERSION:
            raise UsageError(f"{path} holds ranges of version {content.get('version')}, not {_VERSION}.", _HINT)
        values = {name: _range(path, name, ends) for name, ends in content["values"].items()}
        return cls(values, str(content.get("method", "")), int(content.get("samples", 0)), bool(content.get("made_up", False)))


def _range(path: str | PathLike[str], name: str, ends: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"the range of '{name}' in {path} is {ends}.", "Give two finite numbers, the lower one first.")
    return low, high
