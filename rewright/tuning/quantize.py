"""Quantizing a model as a whole: a chain, and what is better left in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any

from onnx import ModelProto

from rewright.api import optimize
from rewright.measure.record import BenchReport
from rewright.model.carrier import Model
from rewright.model.load import load
from rewright.passes.contract import Backend, Target
from rewright.quant.calibration.data import Data
from rewright.quant.presets import AUTO, Mode
from rewright.registry.catalog import Catalog, default_catalog
from rewright.registry.options import with_options
from rewright.report.model import CoveredReport, Report
from rewright.run import FailurePolicy, Progress, RunResult, VerifyMode
from rewright.run.input_choice import choose_input_sets
from rewright.run.usual_budget import usual_budget
from rewright.tuning.calibrated import calibrated_once, calibration_written
from rewright.tuning.exclusion import exclude_until_it_holds
from rewright.tuning.request import QuantizationRequest
from rewright.tuning.speed import keep_what_is_faster
from rewright.verify.budget import QuantizationBudget
from rewright.verify.input_files import Source as Inputs
from rewright.verify.inputs import make_input_sets

Source = str | PathLike[str] | ModelProto | Model


@dataclass
class QuantizeResult(RunResult):
    """The quantized model and the report.

    Attributes:
        chain: what was run, the level not spelled out.
        kept_in_float: the nodes that ``auto_exclude`` or ``no_slower`` left out, with the reason.
        speed: the float model against the quantized one, where ``no_slower`` was asked for.
    """

    chain: str = ""
    kept_in_float: Mapping[str, str] = field(default_factory=dict)
    speed: BenchReport | None = None


def quantize(
    model: Source,
    output: str | PathLike[str] | None = None,
    *,
    mode: Mode = "dynamic",
    preset: str = AUTO,
    level: str = "O2",
    bits: int | None = None,
    calibration: Data | None = None,
    operators: Sequence[str] = (),
    nodes: Sequence[str] = (),
    exclude: Sequence[str] = (),
    backend: Backend = "standalone",
    options: Mapping[str, Any] | None = None,
    budget: str | QuantizationBudget | None = None,
    auto_exclude: bool = False,
    no_slower: bool = False,
    sizes: Mapping[str, int] | None = None,
    threads: int = 0,
    jobs: int | None = None,
    target: Target = "cpu",
    verify: VerifyMode = "model",
    on_failure: FailurePolicy = "rollback",
    inputs: Inputs | None = None,
    seed: int = 0,
    catalog: Catalog | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Optimizes and quantizes a model, verifies every step, and writes the result.

    It is a chain, which the result names: the level, then the pass of the mode with the options of the preset.

    Args:
        model: a path, a ModelProto or a Model; never modified.
        output: where the result goes; None writes nothing.
        mode: "dynamic" (weights in 8 bits, activations quantized at run time), "static" (both, with ranges that are measured on
            ``calibration``) or "weight-only" (weights in blocks of 4 or 8 bits).
        preset: "arm64", "avx2", "avx512", "avx512-vnni", "ppc64le", "tensorrt"; "auto" takes that of this machine.
        level: what is done before; "O0" for nothing.
        calibration: an .npz file with one input set, a folder of them, a mapping of input name to array, or any iterable of
            mappings, such as a Hugging Face dataset or a torch DataLoader; all of it is used. Columns that no input takes are
            left out, and the report says so.
        bits, operators, nodes, exclude, backend, options: see ``QuantizationRequest``.
        budget: what the outputs may lose, such as "sqnr=25, top1=0.99".
        auto_exclude: keep the nodes that cost most in float until the budget holds.
        no_slower: measure, and keep nodes in float that are slower when they are quantized.
        sizes, threads: of these measurements; see ``rewright.bench``.
        jobs: how many nodes ``auto_exclude`` measures at once; see ``rewright.tuning.sensitivity.sensitivity``.
        target, verify, on_failure, inputs, seed, progress: see ``rewright.Chain.run``.
        catalog: where the passes are.

    Raises:
        ModelError, UsageError, PluginError, GateError: see ``rewright.Chain.run``.
    """
    loaded = load(model)
    with calibration_written(loaded, calibration) as (place, left_out):
        request = QuantizationRequest(mode, preset, level, bits, place, operators, nodes, exclude, backend, options or {})
        result = run_request(
            loaded,
            output,
            request,
            budget=budget,
            auto_exclude=auto_exclude,
            no_slower=no_slower,
            sizes=sizes,
            threads=threads,
            jobs=jobs,
            target=target,
            verify=verify,
            on_failure=on_failure,
            inputs=inputs,
            seed=seed,
            catalog=catalog,
            progress=progress,
        )
    if left_out:
        result.report.warnings.append(left_out)
    return result


def run_request(
    model: Source,
    output: str | PathLike[str] | None,
    request: QuantizationRequest,
    *,
    budget: str | QuantizationBudget | None = None,
    auto_exclude: bool = False,
    no_slower: bool = False,
    sizes: Mapping[str, int] | None = None,
    threads: int = 0,
    jobs: int | None = None,
    target: Target = "cpu",
    verify: VerifyMode = "model",
    on_failure: FailurePolicy = "rollback",
    inputs: Inputs | None = None,
    seed: int = 0,
    catalog: Catalog | None = None,
    reproducers: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """``quantize`` for what is asked for in one object. ``reproducers`` is where failures leave them where there is no output."""
    catalog = catalog if catalog is not None else default_catalog()
    step, loaded = request.step(catalog), load(model)
    allowed = QuantizationBudget.of(budget) or usual_budget([step])
    if inputs is not None and not isinstance(inputs, str | PathLike | Mapping):
        inputs = list(inputs)  # an iterator would be gone after the first use
    kept: dict[str, str] = {}
    speed: BenchReport | None = None
    if auto_exclude or no_slower:
        prepared = request.prepared(loaded, catalog, target)
        with calibrated_once(prepared, step, target) as ready:
            if no_slower:
                chosen = keep_what_is_faster(
                    prepared, ready, inputs=inputs, sizes=sizes, seed=seed, threads=threads, target=target, progress=progress
                )
                kept, speed = dict(chosen.excluded), chosen.measured
            if auto_exclude:
                given = choose_input_sets(catalog, loaded, inputs)
                sets = make_input_sets(loaded, seed) if given is None else given
                left = with_options(ready, {"exclude": [*request.exclude, *kept]})
                found = exclude_until_it_holds(loaded, prepared, left, sets, allowed, target=target, jobs=jobs, progress=progress)
                kept |= found.excluded
        request = replace(request, exclude=[*request.exclude, *kept])
    chain = request.chain(catalog)
    run = partial(chain.run, reproducers=reproducers) if output is None else partial(optimize, output=output, chain=chain)
    result = run(
        loaded,
        target=target,
        verify=verify,
        on_failure=on_failure,
        inputs=inputs,
        seed=seed,
        budget=allowed,
        progress=progress,
    )
    _explain_kept(result.report, kept)
    if speed is not None:
        _tell(result.report, speed)
    return QuantizeResult(result.model, result.report, request.text(catalog), kept, speed)


def _explain_kept(report: Report, kept: Mapping[str, str]) -> None:
    """The report says of what was left out that it was told to; here is why that was told."""

    def explain(entries: Sequence[CoveredReport]) -> None:
        for entry in entries:
            if entry.outcome == "excluded" and entry.node in kept:
                entry.reason = kept[entry.node]

    for record in report.passes:
        explain(record.coverage)
    if report.quantization is not None:
        explain(report.quantization.missed)


def _tell(report: Report, speed: BenchReport) -> None:
    """Writes down what was measured, and on what, with the quantizing pass."""
    first, second = speed.models
    found = second.speedup
    records = [record for record in report.passes if record.exactness == "quantizing"]
    if found is not None and first.median is not None and second.median is not None and records:
        records[-1].notes.append(
            f"measured: float {1000 * first.median:.3g} ms, quantized {1000 * second.median:.3g} ms,"
            f" {found.estimate:.2f} ({found.low:.2f} to {found.high:.2f}) times as fast"
        )
    if speed.inputs == "made":
        report.warnings.append("latency was measured on made-up inputs: " + "; ".join(speed.input_sets))
