"""What static checks say, as it is recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from rewright.verify.static.interval import Interval

Kind = Literal["overflow", "underflow", "square", "sum", "rounding", "saturation", "schema", "kernel"]
Certainty = Literal["certain", "measured", "possible", "note"]

_ORDER: Final[tuple[Certainty, ...]] = ("certain", "measured", "possible", "note")


class Finding(BaseModel):
    """One thing that is, or may be, wrong.

    Attributes:
        kind: overflow and underflow of a type; the square in a normalisation; a sum that overflows on the way to a mean; integers
            that a type rounds; saturation of a quantized type; an op that the opset lacks, or that has no kernel.
        certainty: certain for every run; measured on the given inputs; possible as far as the bounds say; or a note of what costs
            time and changes no number.
        node, op: where.
        value: the value, if it is about one.
        message: what, in a sentence without a full stop.
        low, high: proven bounds, None where there are none.
        measured_low, measured_high: what was measured.
        nodes: how many nodes it stands for.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    certainty: Certainty
    node: str
    op: str
    value: str = ""
    message: str
    low: float | None = None
    high: float | None = None
    measured_low: float | None = None
    measured_high: float | None = None
    nodes: int = 1


class ValueRange(BaseModel):
    """The range of one value. None where there is no bound, and where nothing was measured."""

    model_config = ConfigDict(extra="forbid")

    value: str
    op: str
    dtype: str
    low: float | None
    high: float | None
    measured_low: float | None = None
    measured_high: float | None = None


class Assumption(BaseModel):
    """A bound of an input that the other bounds rest on."""

    model_config = ConfigDict(extra="forbid")

    value: str
    low: float
    high: float
    reason: str


class StaticEvidence(BaseModel):
    """What can be said of a model without running it, and what the given inputs add.

    Attributes:
        status: failed if anything is certainly wrong, or was measured to be; see ``is_wrong``.
        target, precision: what the model was checked for.
        values, bounded: floating-point values of the graph and its bodies, and how many have proven bounds.
        unread: constants that were too large to read.
        assumptions: what the bounds rest on.
        input_sets: those that were measured.
        problems: why sets could not be measured.
        notes: what could not be checked, and why.
        findings: the certain ones first.
        ranges: every value, if that was asked for.
        keep: nodes that have to stay as precise as they are, because something was found there that is certain or measured.
    """

    model_config = ConfigDict(extra="forbid")

    gate: Literal["static"] = "static"
    status: Literal["passed", "failed"]
    target: str
    precision: str | None = None
    values: int = 0
    bounded: int = 0
    unread: list[str] = Field(default_factory=list)
    assumptions: list[Assumption] = Field(default_factory=list)
    input_sets: list[str] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    findings: list[Finding] = Field(default_factory=list)
    ranges: list[ValueRange] = Field(default_factory=list)
    keep: list[str] = Field(default_factory=list)

    @property
    def reason(self) -> str:
        """The first thing that is wrong, or the empty string."""
        wrong = next((finding for finding in self.findings if is_wrong(finding)), None)
        return f"{wrong.op} '{wrong.node}': {wrong.message}" if wrong is not None else ""


def is_wrong(finding: Finding) -> bool:
    """Whether it fails the check: it is certain, or was measured. Saturation does not: calibration cuts off on purpose."""
    return finding.certainty in ("certain", "measured") and finding.kind != "saturation"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The certain ones first, else as they stand in the model."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.certainty))


def ends(interval: Interval | None) -> tuple[float | None, float | None]:
    """The finite ends."""
    if interval is None:
        return None, None
    return (
        interval.low if math.isfinite(interval.low) else None,
        interval.high if math.isfinite(interval.high) else None,
    )
