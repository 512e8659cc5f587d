"""Outputs that came with an input set: whether the original, here, still computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from rewright.verify.comparison import compare
from rewright.verify.inputs import InputSet
from rewright.verify.tolerance import tolerance_for


class ExpectationEvidence(BaseModel):
    """One expected output of one input set against what the original computes.

    The tolerance is that of an approximate pass, since the output may have been computed by another runtime on another
    machine. What the original does not reproduce decides nothing about a candidate; it says that the file, the runtime or
    the inputs are not those that the expectation was made with.
    """

    model_config = ConfigDict(extra="forbid")

    input_set: str
    output: str
    reproduced: bool
    max_abs: float | None = None
    message: str = ""


def judge_expectations(sets: Sequence[InputSet], outputs: Sequence[Mapping[str, np.ndarray]]) -> list[ExpectationEvidence]:
    """Hold the original's outputs against the expected ones of every input set that brought some."""
    return [
        _judge(input_set.name, name, expected, computed.get(name))
        for input_set, computed in zip(sets, outputs, strict=True)
        for name, expected in input_set.expected.items()
    ]


def _judge(input_set: str, output: str, expected: np.ndarray, computed: np.ndarray | None) -> ExpectationEvidence:
    if computed is None:
        return ExpectationEvidence(
            input_set=input_set, output=output, reproduced=False, message="the original has no such output"
        )
    judged = compare(output, expected, computed, tolerance_for(expected.dtype, "approximate"))
    return ExpectationEvidence(
        input_set=input_set, output=output, reproduced=judged.equal, max_abs=judged.max_abs, message=judged.message
    )
