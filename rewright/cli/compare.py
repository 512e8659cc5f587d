"""`rewright verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rewright.cli import arguments, console
from rewright.cli.divergence import show_divergence
from rewright.cli.failures import DIFFERENT, DONE, UNUSABLE
from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.verify.mapping import NameMap
    from rewright.verify.models import ModelComparison
    from rewright.verify.parity import ParityEvidence


def verify(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="The model that is right.", show_default=False)],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="The model to compare with it.", show_default=False)],
    inputs: arguments.Inputs = None,
    rtol: Annotated[float | None, typer.Option("--rtol", help="Relative tolerance of floating-point outputs.", min=0)] = None,
    atol: Annotated[float | None, typer.Option("--atol", help="Absolute tolerance of floating-point outputs.", min=0)] = None,
    seed: arguments.Seed = 0,
    budget: arguments.Budget = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="OLD=NEW",
            help="The candidate calls OLD, an input or output of the reference, NEW; or a YAML or JSON file; repeatable.",
        ),
    ] = None,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Inputs and outputs go together by their order, whatever their names.")
    ] = False,
    no_divergence: Annotated[
        bool, typer.Option("--no-divergence", help="Do not look for the first inner value that differs.")
    ] = False,
    as_json: arguments.AsJson = False,
    quiet: arguments.Quiet = False,
) -> int:
    """Compares two models: inputs and outputs, then the numbers; where these differ, says where that begins.

    Exit status 0 equal, 1 different, 2 not comparable.
    """
    from rewright.verify.models import verify as compare

    with console.progress(not quiet):
        comparison = compare(
            reference,
            candidate,
            inputs=inputs,
            rtol=rtol,
            atol=atol,
            seed=seed,
            budget=budget,
            mapping=_mapping(mapping or ()),
            by_position=by_position,
            divergence=not no_divergence,
        )
    if as_json:
        console.write(comparison.model_dump_json(indent=2))
    elif not quiet:
        _show(comparison)
    if comparison.equal:
        return DONE
    if comparison.interface.status == "passed" and comparison.parity.status in ("not-run", "vacuous"):
        what = "the models cannot be compared" if comparison.parity.status == "not-run" else "the comparison proves nothing"
        console.error(f"{what}: {comparison.reason}.", "Give inputs that the reference runs on by --inputs.")
        return UNUSABLE
    hint = "--rtol and --atol set what counts as equal; the report names the smallest rtol that passes."
    if budget is not None:
        hint = "--budget sets what a quantized model may lose; the figures of each output stand in the report."
    if not comparison.parity.outputs:
        hint = "ONNX Runtime runs the reference, and must run the candidate on the same inputs."
    if comparison.interface.status == "failed":
        hint = "Models that are compared take the same inputs and give the same outputs; --map and --by-position pair them."
    console.error(f"the models differ: {comparison.reason}.", hint)
    return DIFFERENT


def _mapping(given: Sequence[str]) -> NameMap | None:
    """A file, or the pairs together; None where there are none."""
    files = [entry for entry in given if "=" not in entry or Path(entry).is_file()]
    if files:
        if len(given) > 1:
            raise UsageError(f"--map gives the file {files[0]} and more.", "Write all pairs in the file.")
        return files[0]
    pairs: dict[str, str] = {}
    for entry in given:
        old, _, new = entry.partition("=")
        if pairs.setdefault(old, new) != new:
            raise UsageError(f"--map gives '{old}' the names '{pairs[old]}' and '{new}'.", "Map each name once.")
    return pairs or None


def _show(comparison: ModelComparison) -> None:
    from rewright.report import quantized, wording

    screen = console.output()
    for problem in comparison.interface.problems:
        screen.print(Text("interface: ", "red").append(wording.printable(problem), "default"))
    for remark in comparison.interface.notes:
        screen.print(Text(f"interface: {wording.printable(remark)}", "dim"))
    if comparison.parity.outputs:
        screen.print(_table(comparison.parity))
    if comparison.divergence is not None:
        show_divergence(comparison.divergence, screen)
    sets = wording.input_sets_sentence(comparison.parity)
    if sets:
        screen.print(Text(f"inputs: {wording.printable(sets)}", "dim"))
    if comparison.equal:
        screen.print(Text("The models agree.", "bold green"))
    if comparison.equal and quantized.is_judged_by_budget(comparison.parity) and comparison.parity.inputs == "made":
        console.warn("the inputs were made up; representative ones (--inputs) tell what quantization costs on yours.")


def _table(parity: ParityEvidence) -> Table:
    """Each output with its figures: what a budget asks for, or what a tolerance does."""
    from rewright.report import quantized, wording

    is_budgeted = quantized.is_judged_by_budget(parity)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("output", overflow="fold")
    table.add_column("shape", overflow="fold")
    if is_budgeted:
        table.add_column("loss", overflow="fold")
    for heading in () if is_budgeted else ("max error", "rtol needed", "rtol", "atol"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for output in parity.outputs:
        state = Text("agrees", "green") if output.equal else Text("differs", "bold red")
        if output.vacuous:
            state = Text(output.vacuous, "yellow")
        figures: tuple[str, ...] = (quantized.output_figures(output),)
        if not is_budgeted:
            figures = tuple(map(wording.figure, (output.max_abs, output.needed_rtol, output.rtol, output.atol)))
        shape = f"{output.dtype} {'x'.join(map(str, output.shape))}"
        table.add_row(Text(wording.printable(output.name)), shape, *figures, state)
    return table
