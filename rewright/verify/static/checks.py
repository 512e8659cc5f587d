"""All static checks of a model in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, get_args

import numpy as np
from onnx import ModelProto

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.passes.contract import Target
from rewright.verify.inputs import InputSet
from rewright.verify.process import SessionWorker
from rewright.verify.static.assumptions import assumed_bounds
from rewright.verify.static.evidence import Assumption, Finding, StaticEvidence, ValueRange, ends, in_order, is_wrong
from rewright.verify.static.interval import Interval
from rewright.verify.static.measured import measure
from rewright.verify.static.precision import PRECISIONS, Precision, dtype_named, reduced_precision
from rewright.verify.static.ranges import MOST_WEIGHT_BYTES, Ranges
from rewright.verify.static.saturation import saturating
from rewright.verify.static.support import unsupported_nodes

Source = str | PathLike[str] | ModelProto | Model


def static_checks(
    model: Source,
    target: str = "cpu",
    *,
    precision: str | None = None,
    input_sets: Sequence[InputSet] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    assume_roles: bool = True,
    all_ranges: bool = False,
    most_weight_bytes: int = MOST_WEIGHT_BYTES,
    worker: SessionWorker | None = None,
) -> StaticEvidence:
    """Checks a model without comparing it with another one.

    1. Proven bounds of every value: see ``rewright.verify.static.ranges``.
    2. With ``input_sets``, what each value of the main graph measures on them, in one run for each set.
    3. With ``precision``, what a narrower floating-point type could not hold.
    4. Quantized values: what is cut off by their scale and zero point.
    5. Nodes that the target cannot run.

    Linear in nodes and in the bytes of the weights, which are read once.

    Args:
        model: a path, a ModelProto or a Model; not modified.
        target: "cpu", "cuda", "dml" or "portable".
        precision: "float16", "bfloat16", "float8e4m3fn" or "float8e5m2"; None checks no type but those of the model.
        input_sets: what to measure on.
        bounds: lowest and highest number of inputs, by name.
        assume_roles: whether what an input means bounds it: token ids lie in their table, masks are 0 or 1.
        all_ranges: whether the evidence lists every value.
        most_weight_bytes: constants larger than this are not read.
        worker: runs the model; by default one of its own.

    Raises:
        ModelError: the model cannot be read.
        UsageError: target, precision or a bound is none.
    """
    dtype = _checked(target, precision)
    model = load(model)
    assumed = assumed_bounds(model) if assume_roles else {}
    given = {name: (Interval(*pair), "given") for name, pair in _checked_bounds(model, bounds or {}).items()}
    assumed = {**assumed, **given}
    ranges = Ranges(model, {name: interval for name, (interval, _) in assumed.items()}, most_weight_bytes)
    measured, problems = _measured(model, ranges, input_sets, worker)
    findings: list[Finding] = []
    if precision is not None:
        findings += reduced_precision(ranges, _precision(precision), measured)
    findings += saturating(ranges, measured)
    is_storage = precision is not None and precision.startswith("float8")
    lacking, notes = unsupported_nodes(ranges, target, None if is_storage else dtype)
    if is_storage:
        notes.append(f"kernels for {precision}, which is a type for storage: ops compute in a wider one")
    findings = in_order([*findings, *lacking])
    listed = _listed(ranges, measured)
    return StaticEvidence(
        status="failed" if any(map(is_wrong, findings)) else "passed",
        target=target,
        precision=precision,
        values=len(listed),
        bounded=sum(item.low is not None and item.high is not None for item in listed),
        unread=ranges.unread,
        assumptions=[
            Assumption(value=name, low=interval.low, high=interval.high, reason=reason)
            for name, (interval, reason) in assumed.items()
        ],
        input_sets=[input_set.name for input_set in input_sets] if measured else [],
        problems=problems,
        notes=notes,
        findings=findings,
        ranges=listed if all_ranges else [],
        keep=list(dict.fromkeys(finding.node for finding in findings if is_wrong(finding) and finding.kind not in _NO_KEEPING)),
    )


_NO_KEEPING = ("schema", "kernel")


def _checked(target: str, precision: str | None) -> np.dtype[Any] | None:
    if target not in get_args(Target):
        raise UsageError(f"target is '{target}'.", f"It is one of {', '.join(get_args(Target))}.")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision is '{precision}'.", f"It is one of {', '.join(PRECISIONS)}.")
    return None if precision is None else dtype_named(_precision(precision))


def _precision(name: str) -> Precision:
    return next(known for known in PRECISIONS if known == name)


def _checked_bounds(model: Model, bounds: Mapping[str, tuple[float, float]]) -> Mapping[str, tuple[float, float]]:
    inputs = [value.name for value in model.proto.graph.input]
    for name, (low, high) in bounds.items():
        if name not in inputs:
            raise UsageError(f"the model has no input '{name}'.", f"Its inputs are {', '.join(inputs)}.")
        if not low <= high:
            raise UsageError(f"the bounds of '{name}' are {low} and {high}.", "Give the lower one first.")
    return bounds


def _measured(
    model: Model, ranges: Ranges, input_sets: Sequence[InputSet], worker: SessionWorker | None
) -> tuple[dict[str, Interval], list[str]]:
    if not input_sets:
        return {}, []
    arrays = [input_set.arrays for input_set in input_sets]
    if worker is not None:
        return measure(model, ranges, worker, arrays)
    with SessionWorker() as own:
        return measure(model, ranges, own, arrays)


def _listed(ranges: Ranges, measured: Mapping[str, Interval]) -> list[ValueRange]:
    """The floating-point values that are computed, with their ranges."""
    listed = []
    for tensor, node, known in ranges.values():
        dtype = ranges.dtype(tensor)
        if node is None or node.op == "Constant" or (dtype is not None and dtype.kind not in "fV"):
            continue
        low, high = ends(known)
        measured_low, measured_high = ends(measured.get(tensor.name))
        listed.append(
            ValueRange(
                value=tensor.name, op=node.op, dtype="" if dtype is None else dtype.name, low=low, high=high,
                measured_low=measured_low, measured_high=measured_high,
            )
        )  # fmt: skip
    return listed
