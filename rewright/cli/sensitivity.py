"""`rewright sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table
from rich.text import Text

from rewright.cli import arguments, console
from rewright.cli.failures import DONE
from rewright.cli.preflight import check_report
from rewright.cli.quantization import (
    Bits,
    Calibration,
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
    pass_of,
    request_of,
)
from rewright.model.errors import ModelError

if TYPE_CHECKING:
    from rewright.passes.contract import Target
    from rewright.tuning.sensitivity import NodeSensitivity, Sensitivity


def sensitivity(
    model: arguments.ModelPath,
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
    target: arguments.TargetName = "cpu",
    inputs: arguments.Inputs = None,
    seed: arguments.Seed = 0,
    jobs: Jobs = None,
    top: Annotated[int, typer.Option("--top", metavar="N", help="How many nodes to show; --json has all.", min=1)] = 20,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the ranking too, as JSON.")] = None,
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
    quiet: arguments.Quiet = False,
) -> int:
    """Ranks the nodes of a model by what quantizing each alone costs its outputs, the worst first.

    `rewright quantize --exclude` leaves nodes out by these names; `--auto-exclude` does so until a budget holds.
    """
    catalog = arguments.load_catalog(plugins, no_plugins, is_quiet=quiet)
    options = options_of(settings or (), pass_of(mode))
    request = request_of(mode, preset, level, bits, calibration, operators, nodes, exclude, backend, options)
    if output is not None:
        check_report(output, model)

    from rewright.tuning.sensitivity import sensitivity as rank

    with console.progress(not quiet) as progress:
        found = rank(
            model,
            request=request,
            target=cast("Target", target),
            inputs=inputs,
            seed=seed,
            jobs=jobs,
            catalog=catalog,
            progress=progress,
        )
    if as_json:
        console.write(found.to_json())
    elif not quiet:
        _show(found, top)
    if output is not None:
        _write(found, output)
    if found.inputs == "made" and not quiet:
        console.warn("the inputs were made up; representative ones (--inputs) rank what matters on yours.")
    return DONE


def _show(found: Sensitivity, top: int) -> None:
    from rewright.report import wording

    screen = console.output()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("node quantized alone", overflow="fold")
    table.add_column("op", overflow="fold")
    for heading in ("SQNR dB", "top-1", "weight"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in found.nodes[:top]:
        table.add_row(Text(wording.printable(entry.node)), Text(entry.op), *_figures(entry))
    screen.print(table)
    if len(found.nodes) > top:
        screen.print(Text(f"and {len(found.nodes) - top} more, which cost less; --json lists them", "dim"))
    if not found.nodes:
        screen.print("The pass quantizes no node of the model.")
    if found.missed:
        reason = next(iter(found.missed.values()))
        screen.print(Text(f"{len(found.missed)} nodes are not quantized, the first because: {wording.printable(reason)}", "dim"))
    screen.print(Text(f"chain: {wording.printable(found.chain)}", "dim"))


def _figures(entry: NodeSensitivity) -> tuple[Text, Text, Text]:
    from rewright.report import wording

    if entry.status == "failed":
        return Text("fails", "bold red"), Text(), Text(wording.byte_size(entry.bytes_before))
    sqnr = "-" if entry.sqnr_db is None else f"{entry.sqnr_db:.1f}"
    top1 = "-" if entry.top1 is None else f"{100 * entry.top1:.1f} %"
    return Text(sqnr), Text(top1), Text(wording.byte_size(entry.bytes_before))


def _write(found: Sensitivity, path: Path) -> None:
    try:
        path.write_text(found.to_json() + "\n")
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror or error}.", "Check the folder and its permissions.") from error
    console.note(f"ranking: {path}")
