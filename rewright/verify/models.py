"""Comparing any two models with the same interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.verify.input_files import load_input_sets
from rewright.verify.interface import InterfaceEvidence, check_interface
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.process import SessionWorker
from rewright.verify.tolerance import Tolerance, tolerance_for

Source = str | PathLike[str] | ModelProto | Model


class ModelComparison(BaseModel):
    """Whether two models are equal: the same interface, and the same numbers within the tolerance.

    Attributes:
        equal: interface and parity both passed.
        interface: what differs in inputs and outputs.
        parity: what was measured; status "not-run" if the reference cannot be run.
        reason: the first thing that differs; empty if nothing does.
    """

    model_config = ConfigDict(extra="forbid")

    equal: bool
    interface: InterfaceEvidence
    parity: ParityEvidence
    reason: str = ""


def verify(
    reference: Source,
    candidate: Source,
    *,
    inputs: str | PathLike[str] | Mapping[str, np.ndarray[Any, Any]] | Sequence[Mapping[str, np.ndarray[Any, Any]]] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
) -> ModelComparison:
    """Compares two models: names, order, types and symbolic shapes of inputs and outputs, then the numbers.

    Args:
        reference, candidate: paths, ModelProtos or Models; neither is modified.
        inputs: an .npz file, a folder, arrays by name or a sequence of such; by default inputs are made from the reference.
        rtol, atol: tolerance of floating-point outputs; by default that of a reassociating rewrite in float32.
        seed: of the made inputs.

    Raises:
        ModelError: a model cannot be read.
        UsageError: the inputs do not fit, or a tolerance is negative.
    """
    tolerance = None
    if rtol is not None or atol is not None:
        if min(rtol or 0.0, atol or 0.0) < 0:
            raise UsageError("a tolerance is negative.", "Give rtol and atol of 0 or more.")
        usual = tolerance_for(np.dtype(np.float32), "reassociating")
        tolerance = Tolerance(usual.rtol if rtol is None else rtol, usual.atol if atol is None else atol)
    first, second = load(reference), load(candidate)
    interface = check_interface(first, second)
    with SessionWorker() as worker:
        sets = None if inputs is None else load_input_sets(first, inputs)
        gate = ParityGate(first, sets, worker, seed=seed, tolerance=tolerance)
        parity = gate.check(second, "reassociating")
    reasons = [interface.reason if interface.status == "failed" else "", parity.reason if parity.status != "passed" else ""]
    return ModelComparison(
        equal=interface.status == "passed" and parity.status == "passed",
        interface=interface,
        parity=parity,
        reason=next(filter(None, reasons), ""),
    )
