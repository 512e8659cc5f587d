"""What is said of an option that the chain alone does not show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Message:
    """One thing that whoever set an option should know.

    Attributes:
        option: the attribute, or another key of the source.
        value: what it was set to.
        text: what it changes, what it does not, and what to do instead.
        kind: "warning" where the result is not what the option asks for, "note" where it is.
    """

    option: str
    value: object
    text: str
    kind: Literal["note", "warning"] = "warning"

    def __str__(self) -> str:
        return f"{self.option}={self.value}: {self.text}"
