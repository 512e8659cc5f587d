"""What a run tells a pass of the numbers that values hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rewright.model.carrier import Model

Ends = tuple[float, float]


@dataclass(frozen=True)
class ValueBounds:
    """The numbers of one floating-point value.

    Attributes:
        proven: the smallest and the largest that any run can give; infinite where there is no bound.
        measured: the smallest and the largest on the input sets of the run; None where the value was not measured.
    """

    proven: Ends
    measured: Ends | None = None


@dataclass(frozen=True)
class ModelBounds:
    """The bounds of a model's values by name. One name in several bodies has what holds for all of them.

    Attributes:
        values: by name.
        input_sets: the names of those that were measured.
        problems: why some could not be.
    """

    values: Mapping[str, ValueBounds]
    input_sets: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())


class BoundsFinder(Protocol):
    """Finds the bounds of a model's values."""

    def __call__(self, model: Model) -> ModelBounds: ...
