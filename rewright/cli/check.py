"""`rewright check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from rewright.cli import arguments, console
from rewright.cli.failures import DIFFERENT, DONE
from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from rewright.model.carrier import Model
    from rewright.verify.inputs import InputSet
    from rewright.verify.static.evidence import Finding, StaticEvidence, ValueRange

_LISTED: Final = 20
_STYLES: Final = {"certain": "bold red", "measured": "red", "possible": "yellow", "note": "dim"}


def check(
    model: arguments.ModelPath,
    target: arguments.TargetName = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", metavar="TYPE", help="Check for a narrower type: float16, bfloat16, float8e4m3fn or float8e5m2."
        ),
    ] = None,
    inputs: arguments.Inputs = None,
    is_measured: Annotated[
        bool, typer.Option("--measure", help="Measure the ranges too, on inputs that are made from the model.")
    ] = False,
    seed: arguments.Seed = 0,
    bounds: Annotated[
        list[str] | None,
        typer.Option("--bound", metavar="INPUT=LOW:HIGH", help="What an input holds at least and at most; repeatable."),
    ] = None,
    all_ranges: Annotated[bool, typer.Option("--ranges", help="List the range of every floating-point value.")] = False,
    is_complete: Annotated[bool, typer.Option("--all", help="List every finding, not only the first few.")] = False,
    as_json: arguments.AsJson = False,
    quiet: arguments.Quiet = False,
) -> int:
    """Says what can be said of a model without comparing it: ranges of values, overflow in a narrower type, missing kernels.

    Bounds are proven from the graph and its weights. --inputs or --measure put beside them what values really reach.
    Exit status 0: nothing is certainly wrong; 1: something is, or was measured to be; 2: not readable.
    """
    from rewright.model.load import load
    from rewright.verify.static.checks import static_checks

    pairs = dict(_bound(text) for text in bounds or ())
    loaded = load(model)
    with console.progress(not quiet):
        evidence = static_checks(
            loaded,
            target,
            precision=precision,
            input_sets=_input_sets(loaded, inputs, is_measured, seed),
            bounds=pairs,
            all_ranges=all_ranges,
        )
    if as_json:
        console.write(evidence.model_dump_json(indent=2))
    elif not quiet:
        _show(evidence, console.output(), is_complete)
    for problem in evidence.problems:
        console.warn(f"an input set was not measured: {problem}")
    if evidence.status == "passed":
        return DONE
    console.error(f"the model fails the check: {evidence.reason}.", _hint(evidence))
    return DIFFERENT


def _input_sets(model: Model, inputs: Path | None, is_measured: bool, seed: int) -> Sequence[InputSet]:
    if inputs is not None:
        from rewright.verify.input_files import load_input_sets

        return load_input_sets(model, inputs)
    if is_measured:
        from rewright.verify.inputs import make_input_sets

        return make_input_sets(model, seed)
    return ()


def _bound(text: str) -> tuple[str, tuple[float, float]]:
    name, _, interval = text.rpartition("=")
    low, _, high = interval.partition(":")
    try:
        return name, (float(low), float(high))
    except ValueError:
        raise UsageError(f"'{text}' is no bound.", "Write it as --bound pixel_values=-3:3.") from None


def _hint(evidence: StaticEvidence) -> str:
    if evidence.keep:
        return f"Keep what is named there in a wider type; `keep` in the JSON form lists the {len(evidence.keep)} nodes."
    return "--json has all findings; another --target, opset or --precision may do."


def _show(evidence: StaticEvidence, screen: Console, is_complete: bool) -> None:
    from rewright.report.wording import printable

    if evidence.ranges:
        console.write(_ranges(evidence.ranges) + "\n")
    shown = evidence.findings if is_complete else _first(evidence.findings)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in shown:
        count = f" ({finding.nodes} nodes)" if finding.nodes > 1 else ""
        place = Text(printable(f"{finding.op} '{finding.node}'"))
        table.add_row(
            Text(finding.certainty, _STYLES[finding.certainty]),
            finding.kind,
            place.append(f": {printable(finding.message)}{count}", "default"),
        )
    if shown:
        screen.print(table)
    if len(shown) < len(evidence.findings):
        screen.print(Text(f"and {len(evidence.findings) - len(shown)} more; --all lists them", "dim"))
    for assumption in evidence.assumptions:
        told = f"assumed: {assumption.value} from {assumption.low:g} to {assumption.high:g}, {assumption.reason}"
        screen.print(Text(printable(told), "dim"))
    for note in evidence.notes:
        screen.print(Text(f"not checked: {note}", "dim"))
    if evidence.unread:
        screen.print(Text(f"not read: {len(evidence.unread)} large constants", "dim"))
    screen.print(_summary(evidence))


def _first(findings: Sequence[Finding]) -> Sequence[Finding]:
    """The first few, without the notes, which are many and say nothing about the numbers."""
    return [finding for finding in findings if finding.certainty != "note"][:_LISTED]


def _summary(evidence: StaticEvidence) -> Text:
    told = f"{evidence.bounded} of {evidence.values} values have proven bounds"
    if evidence.input_sets:
        told += f", measured on {', '.join(evidence.input_sets)}"
    checked = f"target {evidence.target}" + (f", {evidence.precision}" if evidence.precision else "")
    style = "bold green" if evidence.status == "passed" else "bold red"
    verdict = "Nothing is certainly wrong" if evidence.status == "passed" else "Something is wrong"
    return Text(f"{verdict} ({checked}). ", style).append(f"{told}.", "not bold default")


def _ranges(ranges: Sequence[ValueRange]) -> str:
    """One line for each value; its name last, because it may be long."""
    from rewright.report.wording import printable

    lines = [f"{'low':>11} {'high':>11} {'measured':>11} {'':>11}  {'op':<24} value"]
    for item in ranges:
        ends = (item.low, item.high, item.measured_low, item.measured_high)
        figures = " ".join(f"{'' if end is None else f'{end:.4g}':>11}" for end in ends)
        lines.append(f"{figures}  {printable(item.op):<24} {printable(item.value)}")
    return "\n".join(lines)
