"""Whether two inner values, and two nodes, are the same; what holds for outputs needs more care inside a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, NodeProto

from rewright.model.elements import normal_domain
from rewright.passes.contract import Exactness
from rewright.verify.budget import QuantizationBudget
from rewright.verify.comparison import OutputEvidence, compare
from rewright.verify.inputs import InputSet
from rewright.verify.padding import without_padding
from rewright.verify.tolerance import Tolerance, is_floating, least_exact, tolerance_for

_FILLED: Final = 9e3
"""Magnitude from which on an element may be what a mask is filled with; the smallest in use is 1e4."""


@dataclass(frozen=True)
class InnerJudge:
    """Compares inner values of two models that ran on one input set.

    Attributes:
        graph: the reference's.
        input_set: tells what is padding.
        exactness: what decides about the tolerance; ``tolerance`` takes its place for floating-point values.
        strictness: the share of the tolerance that is allowed.
    """

    graph: GraphProto
    input_set: InputSet
    exactness: Exactness
    tolerance: Tolerance | None = None
    strictness: float = 1.0

    def evidence(self, name: str, wanted: np.ndarray, got: np.ndarray) -> OutputEvidence:
        """The evidence for one value; ``name`` is empty where its axes are not those of the model's."""
        tolerance = tolerance_for(wanted.dtype, self.exactness)
        if wanted.dtype != got.dtype and is_floating(wanted.dtype) and is_floating(got.dtype):
            # of another precision, which is no difference of an inner value
            exactness = least_exact([self.exactness, "reassociating"])
            tolerance = max((tolerance_for(array.dtype, exactness) for array in (wanted, got)), key=lambda known: known.rtol)
            wanted, got = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
        if self.tolerance is not None and is_floating(wanted.dtype):
            tolerance = self.tolerance
        share = self.strictness
        tolerance = replace(tolerance, rtol=share * tolerance.rtol, atol=share * tolerance.atol, drift=share * tolerance.drift)
        budget = QuantizationBudget() if self.exactness == "quantizing" else None
        judged = compare(name, wanted, got, tolerance, budget)
        if not judged.equal and name and wanted.shape == got.shape:
            excused = without_padding(self.graph, self.input_set, name, wanted.shape)
            if excused is not None:
                valid = compare(name, excused.select(wanted), excused.select(got), tolerance, budget)
                judged = valid if valid.equal else judged
        if judged.equal and is_floating(wanted.dtype) and wanted.shape == got.shape:
            judged = _beside_fills(judged, wanted, got, tolerance, budget)
        judged.input_set = self.input_set.name
        return judged


def _beside_fills(
    judged: OutputEvidence, wanted: np.ndarray, got: np.ndarray, tolerance: Tolerance, budget: QuantizationBudget | None
) -> OutputEvidence:
    """The evidence of the elements that no mask has filled, if there are filled ones and the others differ.

    One element of -3.4e38 lets the tolerance of all others, which follows the magnitude of the whole, grow beyond any error.
    """
    is_plain = np.abs(wanted) < _FILLED
    if is_plain.all() or not is_plain.any():
        return judged
    plain = compare(judged.name, wanted[is_plain], got[is_plain], tolerance, budget)
    plain.shape = judged.shape
    return judged if plain.equal else plain


def is_same_step(one: NodeProto, other: NodeProto) -> bool:
    """Whether two nodes compute the same from the same inputs."""
    if one.op_type != other.op_type or normal_domain(one.domain) != normal_domain(other.domain):
        return False
    return len(one.input) == len(other.input) and _attributes(one) == _attributes(other)


def _attributes(node: NodeProto) -> dict[str, bytes]:
    """The attributes that are not at their defaults; exporters differ in which of those they spell out."""
    defaults = {}
    if not normal_domain(node.domain) and onnx.defs.has(node.op_type):
        stated = onnx.defs.get_schema(node.op_type).attributes.values()
        defaults = {entry.name: entry.default_value.SerializeToString(deterministic=True) for entry in stated}
    attributes = {entry.name: entry.SerializeToString(deterministic=True) for entry in node.attribute}
    return {name: value for name, value in attributes.items() if defaults.get(name) != value}
