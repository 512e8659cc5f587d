"""`rewright optimize`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from rewright.cli import arguments, console
from rewright.cli.failures import DIFFERENT, DONE, UNUSABLE
from rewright.cli.preflight import check_output, check_report

if TYPE_CHECKING:
    from rewright.passes.contract import Backend, Target
    from rewright.report.model import Report
    from rewright.run import FailurePolicy, VerifyMode


def optimize(
    model: arguments.ModelPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where the result goes.", show_default=False)],
    level: arguments.Level = None,
    passes: arguments.ChainText = None,
    chain_file: arguments.ChainFile = None,
    settings: arguments.Settings = None,
    backend: arguments.BackendName = "standalone",
    target: arguments.TargetName = "cpu",
    verify: Annotated[
        str,
        typer.Option(
            "--verify",
            metavar="MODE",
            help="How much to check: off, structure, model (numbers), sites (and each rewrite by itself) or strict.",
        ),
    ] = "model",
    on_failure: Annotated[
        str,
        typer.Option(
            "--on-failure",
            metavar="POLICY",
            help="After a pass that fails a check: rollback (undo what is wrong, go on), skip (undo all of it, go on) or raise.",
        ),
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
    """Optimizes a model, compares it with the original after every pass, and writes it.

    What a pass breaks is rolled back and leaves a reproducer folder in OUT.reproducers.
    """
    catalog = arguments.load_catalog(plugins, no_plugins, is_quiet=quiet)
    chain = arguments.choose_chain(catalog, level, passes, chain_file, settings)
    check_output(output, model, "the output")
    for path in reports or ():
        check_report(path, model)

    from rewright import api
    from rewright.run import GateError

    failure: GateError | None = None
    with console.progress(not quiet) as progress:
        try:
            report = api.optimize(
                model,
                output,
                chain=chain,
                # the API checks what these say, and names what is near
                backend=cast("Backend", backend),
                target=cast("Target", target),
                verify=cast("VerifyMode", verify),
                on_failure=cast("FailurePolicy", on_failure),
                inputs=inputs,
                seed=seed,
                progress=progress,
            ).report
        except GateError as error:
            failure, report = error, error.report
    _deliver(report, reports or (), as_json, quiet)
    if failure is not None:
        console.error(failure.message, f"Nothing was written to {output}. {failure.hint}".rstrip())
        return failure.exit_status
    elsewhere = dict.fromkeys(record.name for record in report.passes if record.backend != backend)
    if elsewhere and backend != "standalone" and not quiet:
        console.note(f"without the backend {backend}: {', '.join(elsewhere)}")
    return _conclude(report, output, quiet)


def _deliver(report: Report, paths: Sequence[Path], as_json: bool, quiet: bool) -> None:
    if as_json:
        console.write(report.to_json())
    elif not quiet:
        from rewright.report.terminal import show

        show(report, console.output())
    for path in paths:
        report.save(path)
        if not quiet:
            console.note(f"report: {path}")


def _conclude(report: Report, output: Path, quiet: bool) -> int:
    """The last message, and the exit status that the verdict means."""
    if report.verdict == "failed":
        console.error(f"the result is not what the original was: {report.reason}", f"Nothing was written to {output}.")
        return DIFFERENT
    if report.verdict == "unverified" and report.verify not in ("off", "structure"):
        console.error(
            f"{report.reason}.".replace("..", "."),
            f"{output} was written without that comparison. `--verify structure` accepts this; --inputs gives other inputs.",
        )
        return UNUSABLE
    if not quiet:
        console.note(f"wrote {output}")
    return DONE
