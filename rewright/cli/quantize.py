"""`rewright quantize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewright.cli import arguments, console
from rewright.cli.bench import show as show_times
from rewright.cli.bench import sizes_of
from rewright.cli.delivery import conclude, deliver
from rewright.cli.preflight import check_output, check_report
from rewright.cli.quantization import (
    Bits,
    Calibration,
    ConfigFile,
    Exclude,
    Jobs,
    LevelBefore,
    ModeName,
    Nodes,
    Operators,
    PassOptions,
    PresetName,
    QuantizingBackend,
    options_of,
    options_of_optimum,
    pass_of,
    refuse_beside_config,
    request_of,
)
from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.integrations.optimum import CompiledQuantization
    from rewright.registry.catalog import Catalog
    from rewright.report.directory import DirectoryReport
    from rewright.report.model import Report
    from rewright.run import RunResult
    from rewright.tuning.request import QuantizationRequest


def quantize(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="The .onnx file, or a Hugging Face directory. It is never modified.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where the result goes.", show_default=False)],
    config: ConfigFile = None,
    mode: ModeName = None,
    preset: PresetName = None,
    level: LevelBefore = None,
    bits: Bits = None,
    calibration: Calibration = None,
    operators: Operators = None,
    nodes: Nodes = None,
    exclude: Exclude = None,
    backend: QuantizingBackend = "standalone",
    settings: PassOptions = None,
    budget: arguments.Budget = None,
    auto_exclude: Annotated[
        bool, typer.Option("--auto-exclude", help="Keep the nodes that cost most in float until the budget holds.")
    ] = False,
    no_slower: Annotated[
        bool, typer.Option("--no-slower", help="Measure, and keep in float what is slower when it is quantized.")
    ] = False,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="NAME=N", help="With --no-slower: sizes of made inputs, such as sequence=128."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="With --no-slower: as in `rewright bench`.", min=0)] = 0,
    jobs: Jobs = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="Where the result will run: cpu, cuda, dml or portable (standard ops only). [default: cpu, or what -c says]",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        str, typer.Option("--verify", metavar="MODE", help="How much to check; see `rewright optimize --help`.")
    ] = "model",
    on_failure: Annotated[
        str, typer.Option("--on-failure", metavar="POLICY", help="After a pass that fails: rollback, skip or raise.")
    ] = "rollback",
    inputs: arguments.Inputs = None,
    seed: arguments.Seed = 0,
    file_names: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="NAME", help="Take only this .onnx file of a directory; repeatable."),
    ] = None,
    reports: Annotated[
        list[Path] | None, typer.Option("--report", metavar="FILE", help="Write the report too, as .json or .html; repeatable.")
    ] = None,
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
    quiet: arguments.Quiet = False,
) -> int:
    """Optimizes and quantizes a model, compares it with the original after every pass, and writes it.

    It runs a chain, which it prints: `rewright optimize -p` runs the same. How much outputs may lose is the budget.
    """
    catalog = arguments.load_catalog(plugins, no_plugins, is_quiet=quiet)
    compiled: CompiledQuantization | None = None
    if config is not None:
        refuse_beside_config({"--mode": mode, "--preset": preset, "--bits": bits, "--operators": operators, "--nodes": nodes})
        compiled = options_of_optimum(config, level, exclude or (), backend, settings or (), catalog)
    _check(model, output, reports or (), file_names)
    request: QuantizationRequest | None = None
    if compiled is None:
        options = options_of(settings or (), pass_of(mode))
        request = request_of(mode, preset, level, bits, calibration, operators, nodes, exclude, backend, options)
    elif not model.is_dir():
        request = compiled.request(calibration)
    if not quiet:
        _announce(request, compiled, catalog, is_directory=model.is_dir())

    from rewright.run import GateError

    how: dict[str, Any] = {
        "target": target,
        "verify": verify,
        "on_failure": on_failure,
        "inputs": inputs,
        "seed": seed,
        "budget": budget,
        "auto_exclude": auto_exclude,
        "no_slower": no_slower,
        "sizes": sizes_of(sizes or ()),
        "threads": threads,
        "jobs": jobs,
        "catalog": catalog,
    }
    failure: GateError | None = None
    report: Report | DirectoryReport
    results: Mapping[str, RunResult] = {}
    with console.progress(not quiet) as progress:
        how["progress"] = progress
        try:
            if model.is_dir():
                asked = compiled if compiled is not None else request
                report, results = _quantize_directory(model, output, asked, calibration, file_names, how)
            elif request is not None:
                how["target"] = target or (compiled.target if compiled is not None else request.usual_target)
                report, results = _quantize_file(model, output, request, how)
        except GateError as error:
            failure, report = error, getattr(error, "directory", error.report)
    if not (as_json or quiet):
        _tell(results)
    deliver(report, reports or (), as_json, quiet)
    if failure is not None:
        console.error(failure.message, f"Nothing was written to {output}. {failure.hint}".rstrip())
        return failure.exit_status
    return conclude(report, verify, output, quiet)


def _check(model: Path, output: Path, reports: Sequence[Path], file_names: Sequence[str] | None) -> None:
    """What can be said before anything is read."""
    if not model.is_dir():
        check_output(output, model, "the output")
        if file_names:
            raise UsageError(f"--file chooses among the files of a directory, and {model} is none.", "Leave it out.")
    for path in reports:
        check_report(path, model)


def _announce(
    request: QuantizationRequest | None,
    compiled: CompiledQuantization | None,
    catalog: Catalog,
    *,
    is_directory: bool,
) -> None:
    """The preset and the chain; of a directory its report has the messages, and, where there is data, the chain."""
    for message in compiled.messages if compiled is not None and not is_directory else ():
        (console.warn if message.kind == "warning" else console.note)(str(message))
    if request is None:
        return
    detected = request.detected
    if detected is not None:
        console.note(f"preset {detected.preset.name}: {detected.reason}")
    if is_directory and request.calibration is not None:
        return  # that may be a folder with an entry for each model
    if detected is not None:
        for option in request.unheard(catalog):
            console.warn(f"the preset {detected.preset.name} also asks for {option}, which the pass does not have.")
    console.note(f"chain: {request.text(catalog)}")


def _quantize_file(
    model: Path, output: Path, request: QuantizationRequest, how: dict[str, Any]
) -> tuple[Report, Mapping[str, RunResult]]:
    from rewright.tuning.quantize import run_request

    result = run_request(model, output, request, **how)
    return result.report, {"": result}


def _quantize_directory(
    model: Path,
    save_dir: Path,
    asked: QuantizationRequest | CompiledQuantization | None,
    calibration: Path | None,
    file_names: list[str] | None,
    how: dict[str, Any],
) -> tuple[DirectoryReport, Mapping[str, RunResult]]:
    from rewright.integrations import huggingface

    result = huggingface.quantize(model, save_dir, asked, calibration=calibration, file_names=file_names or None, **how)
    return result.report, result.files


def _tell(results: Mapping[str, RunResult]) -> None:
    """What stays in float, and what was measured."""
    from rewright.tuning.quantize import QuantizeResult

    for name, result in results.items():
        if not isinstance(result, QuantizeResult):
            continue
        place = f"{name}: " if name else ""
        if result.kept_in_float:
            console.note(f"{place}kept in float: {len(result.kept_in_float)} nodes; chain: {result.chain}")
        if result.speed is not None:
            if name:
                console.note(f"{name}:")
            show_times(result.speed)
