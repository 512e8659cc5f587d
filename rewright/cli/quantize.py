"""`rewright quantize`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rewright.cli import arguments, console
from rewright.cli.bench import show as show_times
from rewright.cli.bench import sizes_of
from rewright.cli.delivery import conclude, deliver
from rewright.cli.preflight import check_output, check_report
from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.registry.catalog import Catalog
    from rewright.report.directory import DirectoryReport
    from rewright.report.model import Report
    from rewright.tuning.request import QuantizationRequest

ModeName = Annotated[
    str, typer.Option("--mode", metavar="MODE", help="dynamic (activations at run time), static (calibrated) or weight-only.")
]
PresetName = Annotated[
    str,
    typer.Option(
        "--preset", metavar="PRESET", help="auto (this machine), arm64, avx2, avx512, avx512-vnni, ppc64le or tensorrt."
    ),
]
LevelBefore = Annotated[
    str, typer.Option("-O", "--level", metavar="LEVEL", help="What is done before: a level, or chain text; O0 for nothing.")
]
Bits = Annotated[int | None, typer.Option("--bits", metavar="4|8", help="Bits of the weights; 4 for the mode weight-only.")]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="PATH", help="Inputs to measure ranges on: an .npz file or a folder of them."),
]
Operators = Annotated[
    list[str] | None, typer.Option("--operators", metavar="OP", help="Quantize only these ops, such as MatMul; repeatable.")
]
Nodes = Annotated[
    list[str] | None, typer.Option("--nodes", metavar="NAME", help="Quantize only these nodes: names or patterns; repeatable.")
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="NAME", help="Leave these nodes in float: names or patterns; repeatable.")
]
QuantizingBackend = Annotated[str, typer.Option("--backend", metavar="BACKEND", help="Who quantizes: standalone, ort or auto.")]
PassOptions = Annotated[
    list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the quantizing pass; repeatable.")
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", metavar="N", help="How many nodes are measured at once; by default one a CPU.", min=1)
]


def quantize(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="The .onnx file, or a Hugging Face directory. It is never modified.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where the result goes.", show_default=False)],
    mode: ModeName = "dynamic",
    preset: PresetName = "auto",
    level: LevelBefore = "O2",
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
    target: arguments.TargetName = "cpu",
    verify: Annotated[
        str, typer.Option("--verify", metavar="MODE", help="How much to check; see `rewright optimize --help`.")
    ] = "model",
    on_failure: Annotated[
        str, typer.Option("--on-failure", metavar="POLICY", help="After a pass that fails: rollback, skip or raise.")
    ] = "rollback",
    inputs: arguments.Inputs = None,
    seed: arguments.Seed = 0,
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
    request = request_of(
        mode, preset, level, bits, calibration, operators, nodes, exclude, backend, options_of(settings or (), mode)
    )
    text = request.text(catalog)
    _check(model, output, reports or (), is_measuring=auto_exclude or no_slower)
    if not quiet:
        detected = request.detected
        if detected is not None:
            console.note(f"preset {detected.preset.name}: {detected.reason}")
            for option in request.unheard(catalog):
                console.warn(f"the preset {detected.preset.name} also asks for {option}, which the pass does not have.")
        console.note(f"chain: {text}")

    from rewright.run import GateError

    how: dict[str, Any] = {
        "target": target,
        "verify": verify,
        "on_failure": on_failure,
        "inputs": inputs,
        "seed": seed,
        "budget": budget,
    }
    measuring = {"auto_exclude": auto_exclude, "no_slower": no_slower, "sizes": sizes_of(sizes or ()), "threads": threads}
    failure: GateError | None = None
    with console.progress(not quiet) as progress:
        how["progress"] = progress
        try:
            if model.is_dir():
                report: Report | DirectoryReport = _quantize_directory(model, output, request, catalog, how)
            else:
                report = _quantize_file(model, output, request, catalog, {**how, **measuring, "jobs": jobs}, as_json or quiet)
        except GateError as error:
            failure, report = error, getattr(error, "directory", error.report)
    deliver(report, reports or (), as_json, quiet)
    if failure is not None:
        console.error(failure.message, f"Nothing was written to {output}. {failure.hint}".rstrip())
        return failure.exit_status
    return conclude(report, verify, output, quiet)


def request_of(
    mode: str,
    preset: str,
    level: str,
    bits: int | None,
    calibration: Path | None,
    operators: Sequence[str] | None,
    nodes: Sequence[str] | None,
    exclude: Sequence[str] | None,
    backend: str,
    options: dict[str, Any],
) -> QuantizationRequest:
    """What the options of a command ask for."""
    from rewright.passes.contract import Backend
    from rewright.quant.presets import Mode
    from rewright.tuning.request import QuantizationRequest

    return QuantizationRequest(
        cast(Mode, mode),
        preset,
        level,
        bits,
        calibration,
        operators or (),
        nodes or (),
        exclude or (),
        cast(Backend, backend),
        options,
    )


def options_of(settings: Sequence[str], mode: str) -> dict[str, Any]:
    """The values as chain text spells them; the name of the pass may stand before an option."""
    from rewright.quant.presets import PASSES
    from rewright.registry.grammar import parse_value

    found: dict[str, Any] = {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        owner, _, name = option.strip().rpartition(".")
        if not equals or not name:
            raise UsageError(f"'{setting}' sets nothing.", "Write OPTION=VALUE, such as reduce_range=true.")
        if owner and owner != PASSES.get(mode):  # type: ignore[call-overload]
            raise UsageError(f"--set {option} is of another pass than {mode} runs.", f"It runs {PASSES.get(mode)}.")  # type: ignore[call-overload]
        found[name] = parse_value(value)
    return found


def _check(model: Path, output: Path, reports: Sequence[Path], *, is_measuring: bool) -> None:
    """What can be said before anything is read."""
    if not model.is_dir():
        check_output(output, model, "the output")
    elif is_measuring:
        raise UsageError("--auto-exclude and --no-slower take one model.", "Give an .onnx file of the directory.")
    for path in reports:
        check_report(path, model)


def _quantize_file(
    model: Path, output: Path, request: QuantizationRequest, catalog: Catalog, how: dict[str, Any], is_silent: bool
) -> Report:
    from rewright.tuning.quantize import run_request

    result = run_request(model, output, request, catalog=catalog, **how)
    if not is_silent:
        if result.kept_in_float:
            console.note(f"kept in float: {len(result.kept_in_float)} nodes; chain: {result.chain}")
        if result.speed is not None:
            show_times(result.speed)
    return result.report


def _quantize_directory(
    model: Path, save_dir: Path, request: QuantizationRequest, catalog: Catalog, how: dict[str, Any]
) -> DirectoryReport:
    from rewright.integrations import huggingface

    return huggingface.optimize(model, save_dir, chain=request.chain(catalog), **how).report
