"""What the commands that quantize are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.integrations.optimum import CompiledQuantization
    from rewright.registry.catalog import Catalog
    from rewright.tuning.request import QuantizationRequest

ModeName = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="MODE",
        help="dynamic (activations at run time), static (calibrated) or weight-only. [default: dynamic]",
        show_default=False,
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="PRESET",
        help="auto (this machine), arm64, avx2, avx512, avx512-vnni, ppc64le or tensorrt. [default: auto]",
        show_default=False,
    ),
]
LevelBefore = Annotated[
    str | None,
    typer.Option(
        "-O",
        "--level",
        metavar="LEVEL",
        help="What is done before: a level, or chain text; O0 for nothing. [default: O2]",
        show_default=False,
    ),
]
Bits = Annotated[int | None, typer.Option("--bits", metavar="4|8", help="Bits of the weights; 4 for the mode weight-only.")]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="PATH",
        help="Inputs to measure ranges on: an .npz file, a folder of them, or a .json file of ranges.",
    ),
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
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="Quantize as the ort_config.json of Optimum says, in place of a mode and a preset.",
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", metavar="N", help="How many nodes are measured at once; by default one a CPU.", min=1)
]


def request_of(
    mode: str | None,
    preset: str | None,
    level: str | None,
    bits: int | None,
    calibration: Path | None,
    operators: Sequence[str] | None,
    nodes: Sequence[str] | None,
    exclude: Sequence[str] | None,
    backend: str,
    options: dict[str, Any],
) -> QuantizationRequest:
    """What the options of a command ask for; None takes what their help says."""
    from rewright.passes.contract import Backend
    from rewright.quant.presets import Mode
    from rewright.tuning.request import QuantizationRequest

    return QuantizationRequest(
        cast(Mode, mode or "dynamic"),
        preset or "auto",
        level or "O2",
        bits,
        calibration,
        operators or (),
        nodes or (),
        exclude or (),
        cast(Backend, backend),
        options,
    )


def options_of(settings: Sequence[str], runs: str) -> dict[str, Any]:
    """The values as chain text spells them; the name of the pass, which ``runs`` is, may stand before an option."""
    from rewright.registry.grammar import parse_value

    found: dict[str, Any] = {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        owner, _, name = option.strip().rpartition(".")
        if not equals or not name:
            raise UsageError(f"'{setting}' sets nothing.", "Write OPTION=VALUE, such as reduce_range=true.")
        if owner and owner != runs:
            raise UsageError(f"--set {option} is of another pass than {runs}.", f"That is the one that runs: {runs}.")
        found[name] = parse_value(value)
    return found


def pass_of(mode: str | None) -> str:
    """The pass of a mode; of one that there is not, which is told elsewhere, its own name."""
    from rewright.quant.presets import PASSES

    return PASSES.get(mode or "dynamic", str(mode))  # type: ignore[call-overload,no-any-return]


def options_of_optimum(
    file: Path, level: str | None, exclude: Sequence[str], backend: str, settings: Sequence[str], catalog: Catalog
) -> CompiledQuantization:
    """What the options of an ``ort_config.json`` become, with those of the command, which outrank them.

    Raises:
        UsageError: the file cannot be read, holds no options for quantization, or says the same as an option of the command.
    """
    from rewright.integrations.optimum import QuantizationConfig, compile_quantization

    config = QuantizationConfig.from_file(file)
    compiled = compile_quantization(config, level=level, backend=backend, catalog=catalog)  # type: ignore[arg-type]
    changed = {
        **options_of(settings, compiled.step.name),
        **({"exclude": [*config.nodes_to_exclude, *exclude]} if exclude else {}),
    }
    return compiled.with_options(changed) if changed else compiled


def refuse_beside_config(given: Mapping[str, object]) -> None:
    """
    Raises:
        UsageError: an option of the command says what a config says.
    """
    for option, value in given.items():
        if value:
            raise UsageError(f"-c and {option} each say how to quantize.", "Give one of them; --set changes single options.")
