"""Comparing any two models with the same interface."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.verify.budget import QuantizationBudget
from rewright.verify.divergence import Divergence, first_divergence
from rewright.verify.input_files import load_input_sets
from rewright.verify.inputs import InputSet
from rewright.verify.interface import InterfaceEvidence, check_interface
from rewright.verify.mapping import NameMap, named_correspondence, positional_correspondence, under_reference_names
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.process import SessionWorker
from rewright.verify.tolerance import Tolerance, tolerance_for

Source = str | PathLike[str] | ModelProto | Model


class ModelComparison(BaseModel):
    """Whether two models are equal: the same interface, and the same numbers within the tolerance.

    The candidate's inputs and outputs have the reference's names in it, where they were mapped.

    Attributes:
        equal: interface and parity both passed.
        interface: what differs in inputs and outputs.
        parity: what was measured; status "not-run" if the reference cannot be run.
        reason: the first thing that differs; empty if nothing does.
        divergence: where the candidate begins to differ; None where outputs agree, cannot be compared, or it was not asked for.
    """

    model_config = ConfigDict(extra="forbid")

    equal: bool
    interface: InterfaceEvidence
    parity: ParityEvidence
    reason: str = ""
    divergence: Divergence | None = None


def verify(
    reference: Source,
    candidate: Source,
    *,
    inputs: str | PathLike[str] | Mapping[str, np.ndarray[Any, Any]] | Iterable[Mapping[str, np.ndarray[Any, Any]]] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    budget: str | QuantizationBudget | None = None,
    mapping: NameMap | None = None,
    by_position: bool = False,
    divergence: bool = True,
) -> ModelComparison:
    """Compares two models: inputs and outputs, then the numbers, and, where those differ, where they begin to.

    Inputs and outputs have to agree in name, order, element type and shape; their dimensions without a fixed size may have other
    names, as long as one name stands for one other everywhere, and an output may leave its shape open.

    Args:
        reference, candidate: paths, ModelProtos or Models; neither is modified.
        inputs: an .npz file, a folder, arrays by name or any iterable of such; by default inputs are made from the reference.
        rtol, atol: tolerance of floating-point outputs; by default that of a reassociating rewrite in float32.
        seed: of the made inputs.
        budget: what the candidate may lose where it is quantized, such as "sqnr=25, top1=0.99"; takes the place of a tolerance.
        mapping: the candidate's names by the reference's, ``{"y": "logits"}`` or ``{"inputs": {...}, "outputs": {...}}``, or
            the path of a YAML or JSON file with one of these. The order then does not matter.
        by_position: the n-th input and output of one model are the n-th of the other, whatever their names.
        divergence: whether to look for the first inner value that differs; costs a few more runs, on a difference only.

    Raises:
        ModelError: a model cannot be read.
        UsageError: the inputs or the mapping do not fit, a tolerance is negative, or the budget cannot be read.
    """
    chosen, allowed = _tolerance(rtol, atol), QuantizationBudget.of(budget)
    if chosen is not None and allowed is not None:
        raise UsageError("a budget and a tolerance are two answers to one question.", "Give --budget, or --rtol and --atol.")
    first = load(reference)
    second = _renamed(first, load(candidate), mapping, by_position)
    interface = check_interface(first, second, may_rename_symbols=True)
    with SessionWorker() as worker:
        sets = None if inputs is None else load_input_sets(first, inputs)
        gate = ParityGate(first, sets, worker, seed=seed, tolerance=chosen, budget=allowed)
        parity = gate.check(second, "reassociating" if allowed is None else "quantizing")
        found = None
        if divergence and parity.status == "failed":
            found = where_it_begins(first, second, parity, gate.input_sets, worker, tolerance=chosen)
    reasons = [interface.reason if interface.status == "failed" else "", parity.reason if parity.status != "passed" else ""]
    return ModelComparison(
        equal=interface.status == "passed" and parity.status == "passed",
        interface=interface,
        parity=parity,
        reason=next(filter(None, reasons), ""),
        divergence=found,
    )


def where_it_begins(
    reference: Model,
    candidate: Model,
    parity: ParityEvidence,
    input_sets: Sequence[InputSet],
    worker: SessionWorker,
    *,
    tolerance: Tolerance | None = None,
    trusts_names: bool = False,
) -> Divergence | None:
    """The first divergence on the worst input set of a comparison that failed; None where no numbers were compared."""
    worst = next((input_set for input_set in input_sets if input_set.name == parity.worst_input_set), None)
    differing = [output.name for output in parity.outputs if not output.equal and output.input_set == parity.worst_input_set]
    if worst is None or not differing:
        return None
    return first_divergence(
        reference,
        candidate,
        worst,
        differing,
        worker,
        exactness=parity.exactness,
        tolerance=tolerance,
        trusts_names=trusts_names,
    )


def _tolerance(rtol: float | None, atol: float | None) -> Tolerance | None:
    if rtol is None and atol is None:
        return None
    if min(rtol or 0.0, atol or 0.0) < 0:
        raise UsageError("a tolerance is negative.", "Give rtol and atol of 0 or more.")
    usual = tolerance_for(np.dtype(np.float32), "reassociating")
    return Tolerance(usual.rtol if rtol is None else rtol, usual.atol if atol is None else atol)


def _renamed(reference: Model, candidate: Model, mapping: NameMap | None, by_position: bool) -> Model:
    if mapping is not None and by_position:
        raise UsageError("a mapping and the order are two answers to one question.", "Give one of them.")
    if by_position:
        return under_reference_names(reference, candidate, positional_correspondence(reference, candidate))
    if mapping is not None:
        return under_reference_names(reference, candidate, named_correspondence(reference, candidate, mapping))
    return candidate
