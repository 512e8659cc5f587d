"""`rewright bisect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewright.cli import arguments, console
from rewright.cli.divergence import show_divergence
from rewright.cli.failures import DIFFERENT, DONE

if TYPE_CHECKING:
    from rewright.bisection import Bisection, Change, Culprit, Trial
    from rewright.passes.contract import Target
    from rewright.verify.parity import ParityEvidence

_LISTED = 12
"""Changes that are named; the JSON form has all of them."""

_NAMED_OPS = 5

_STYLES = {"passed": "green", "failed": "bold red", "unusable": "yellow", "vacuous": "yellow", "not-run": "yellow"}
_WORDS = {
    "passed": "agrees",
    "failed": "differs",
    "unusable": "no valid model",
    "vacuous": "proves nothing",
    "not-run": "not run",
}


def bisect(
    model: arguments.ModelPath,
    level: arguments.Level = None,
    passes: arguments.ChainText = None,
    chain_file: arguments.ChainFile = None,
    settings: arguments.Settings = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Keep the models before and after the culprit.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Look at every pass, and go on without those that are wrong.")] = False,
    target: arguments.TargetName = "cpu",
    verify: Annotated[
        str, typer.Option("--verify", metavar="MODE", help="model compares outputs; sites also runs every change alone.")
    ] = "model",
    inputs: arguments.Inputs = None,
    seed: arguments.Seed = 0,
    budget: arguments.Budget = None,
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
    quiet: arguments.Quiet = False,
) -> int:
    """Finds the pass of a chain that makes the model wrong, which of its changes do, and the first value that differs.

    Exit status 0: nothing diverges; 1: a culprit was found; 2: the model cannot be compared.
    """
    catalog = arguments.load_catalog(plugins, no_plugins, is_quiet=quiet)
    chain = arguments.choose_chain(catalog, level, passes, chain_file, settings)

    from rewright.bisection import bisect as search

    with console.progress(not quiet) as progress:
        found = search(
            model,
            chain=chain,
            target=cast("Target", target),
            verify=cast('Literal["model", "sites"]', verify),
            inputs=inputs,
            seed=seed,
            budget=budget,
            every=every,
            output=output,
            progress=progress,
        )
    if as_json:
        console.write(found.to_json())
    elif not quiet:
        _show(found, console.output())
    if found.verdict == "clean":
        return DONE
    console.error(_summary(found), _next_step(found))
    return DIFFERENT


def _summary(found: Bisection) -> str:
    if len(found.culprits) > 1:
        named = ", ".join(f"'{culprit.name}'" for culprit in found.culprits)
        return f"{len(found.culprits)} passes are wrong: {named}."
    return f"the pass '{found.culprits[0].name}' is wrong: {found.culprits[0].reason.rstrip('.')}."


def _next_step(found: Bisection) -> str:
    first = found.culprits[0]
    if first.folder is not None and first.kind == "parity":
        return f"`rewright verify {first.folder}/before.onnx {first.folder}/after.onnx` compares the models around it."
    if first.folder is not None:
        return f"`rewright optimize {first.folder}/before.onnx -p '{first.chain}' -o OUT` applies it alone."
    return "-o FOLDER keeps the models before and after it."


def _show(found: Bisection, screen: Console) -> None:
    passes = [trial for trial in found.trials if trial.step == "pass"]
    screen.print(Text("passes", "bold"))
    screen.print(_trials(passes, "after"))
    for culprit in found.culprits:
        _show_culprit(found, culprit, screen)
    if found.unexamined:
        screen.print(Text(f"\nThe {len(found.unexamined)} passes after it were not looked at; --all looks at every pass.", "dim"))
    if found.verdict == "clean":
        count = sum(record.status == "applied" for record in found.applications)
        screen.print(Text(f"\nNothing diverges: {count} of {len(found.applications)} passes changed the model.", "bold green"))


def _show_culprit(found: Bisection, culprit: Culprit, screen: Console) -> None:
    from rewright.report import wording

    title = Text("\n").append(f"pass {culprit.index + 1} of {len(found.applications)}: {culprit.name}", "bold red")
    screen.print(title.append(f"  {wording.printable(culprit.reason)}", "not bold default"))
    if culprit.alone is not None:
        screen.print(Text(f"  alone, {_alone(culprit.alone)}", "dim"))
    own = [trial for trial in found.trials if trial.step == "sites" and trial.culprit == culprit.index]
    if own:
        screen.print(Text("changes", "bold"))
        screen.print(_trials(own, ""))
    if culprit.undo:
        count = "the one change" if culprit.changes == 1 else f"{len(culprit.undo)} of {culprit.changes} changes"
        screen.print(Text(f"{count} to undo", "bold"))
        screen.print(_changes(culprit.undo))
        if not culprit.is_enough:
            screen.print(Text("  without the other changes the model is right: they are wrong together", "yellow"))
    if culprit.divergence is not None:
        show_divergence(culprit.divergence, screen)
    if culprit.folder is not None:
        screen.print(Text(f"kept in {wording.printable(culprit.folder)}", "dim"), soft_wrap=True)


def _alone(evidence: ParityEvidence) -> str:
    """How the pass does against the model before it."""
    from rewright.report import wording

    output = wording.worst_output(evidence)
    figure = f"max abs {wording.figure(output.max_abs)} in '{wording.printable(output.name)}'" if output is not None else ""
    if evidence.status == "passed":
        return f"it agrees with the model before it ({figure}): the difference has grown over several passes"
    return f"against the model before it: {figure or wording.printable(evidence.reason)}"


def _trials(trials: Sequence[Trial], before: str) -> Table:
    from rewright.report import wording

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("applied", justify="right", no_wrap=True)
    table.add_column(before, overflow="fold")
    for heading in ("max error", "rtol needed", "rtol"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for trial in trials:
        word = "does not run" if trial.status == "failed" and not trial.output else _WORDS[trial.status]
        state = Text(word, _STYLES[trial.status])
        figures = map(wording.figure, (trial.max_abs, trial.needed_rtol, trial.rtol))
        table.add_row(f"{trial.applied} of {trial.total}", Text(wording.printable(trial.what)), *figures, state)
    return table


def _changes(changes: Sequence[Change]) -> Table:
    from rewright.report import wording

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for change in changes[:_LISTED]:
        what = f"{_ops(change.removed)} -> {_ops(change.added)}"
        nodes = [name for _, _, name in (entry.partition(" ") for entry in (*reversed(change.removed), *change.added)) if name]
        text = Text(wording.printable(what)).append(f"\nat {wording.printable(nodes[0])}" if nodes else "", "dim")
        found = change.evidence
        if found is not None and found.max_abs is not None:
            error, allowed = wording.figure(found.max_abs), wording.figure(found.allowed)
            where = wording.printable(f"'{found.output}' on '{found.worst_set}'")
            text.append(f"\nmax error {error} where {allowed} is allowed, in {where}")
        grid.add_row(Text(f"  {wording.printable(', '.join(change.sites) or change.at)}"), text)
    if len(changes) > _LISTED:
        grid.add_row("", Text(f"and {len(changes) - _LISTED} more; --json lists them", "dim"))
    return grid


def _ops(nodes: Sequence[str]) -> str:
    ops = [node.partition(" ")[0] for node in nodes]
    if len(ops) > _NAMED_OPS:
        return f"{', '.join(ops[:_NAMED_OPS])} and {len(ops) - _NAMED_OPS} more"
    return ", ".join(ops) or "nothing"
