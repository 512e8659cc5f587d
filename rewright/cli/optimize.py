"""`rewright optimize`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewright.cli import arguments, console
from rewright.cli.delivery import conclude, deliver
from rewright.cli.preflight import check_output, check_report
from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.api import Chain
    from rewright.integrations.optimum import CompiledConfig
    from rewright.report.directory import DirectoryReport
    from rewright.report.model import Report


def optimize(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="The .onnx file, or a Hugging Face directory. It is never modified.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where the result goes.", show_default=False)],
    level: arguments.Level = None,
    passes: arguments.ChainText = None,
    chain_file: arguments.ChainFile = None,
    settings: arguments.Settings = None,
    backend: arguments.BackendName = "standalone",
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
    budget: arguments.Budget = None,
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
    """Optimizes a model, compares it with the original after every pass, and writes it.

    What a pass breaks is rolled back and leaves a reproducer folder in OUT.reproducers. Of a Hugging Face directory all models
    are optimized, and what else belongs to them is copied: OUT is then a directory that loads like the first.
    """
    catalog = arguments.load_catalog(plugins, no_plugins, is_quiet=quiet)
    is_directory = model.is_dir()
    chain = arguments.choose_chain(catalog, level, passes, chain_file, settings, is_telling=not (quiet or is_directory))
    compiled = arguments.options_of_optimum(catalog, chain_file)
    if not is_directory:
        check_output(output, model, "the output")
        if file_names:
            raise UsageError(f"--file chooses among the files of a directory, and {model} is none.", "Leave it out.")
    for path in reports or ():
        check_report(path, model)

    from rewright.run import GateError

    failure: GateError | None = None
    with console.progress(not quiet) as progress:
        how: dict[str, Any] = {  # the API checks what these say, and names what is near
            "backend": backend,
            "target": target if target is not None else compiled.target if compiled is not None else "cpu",
            "verify": verify,
            "on_failure": on_failure,
            "inputs": inputs,
            "seed": seed,
            "budget": budget,
            "progress": progress,
        }
        try:
            if is_directory:
                report: Report | DirectoryReport = _optimize_directory(model, output, chain, compiled, file_names, how)
            else:
                report = _optimize_file(model, output, chain, how)
        except GateError as error:
            failure, report = error, getattr(error, "directory", error.report)
    deliver(report, reports or (), as_json, quiet)
    if failure is not None:
        console.error(failure.message, f"Nothing was written to {output}. {failure.hint}".rstrip())
        return failure.exit_status
    # with auto, a pass that has both is run by each of them in turn
    elsewhere = [name for name, used in _backends(report).items() if ("ort" if backend == "auto" else backend) not in used]
    if elsewhere and backend != "standalone" and not quiet:
        console.note(f"without the backend {backend}: {', '.join(elsewhere)}")
    return conclude(report, verify, output, quiet)


def _optimize_file(model: Path, output: Path, chain: Chain, how: dict[str, Any]) -> Report:
    from rewright import api

    return api.optimize(model, output, chain=chain, **how).report


def _optimize_directory(
    model: Path,
    save_dir: Path,
    chain: Chain,
    compiled: CompiledConfig | None,
    file_names: list[str] | None,
    how: dict[str, Any],
) -> DirectoryReport:
    from rewright.integrations import huggingface

    what: dict[str, Any] = {"chain": chain} if compiled is None else {"config": replace(compiled, chain=chain)}
    return huggingface.optimize(model, save_dir, **what, file_names=file_names or None, **how).report


def _backends(report: Report | DirectoryReport) -> dict[str, set[str]]:
    """The passes that ran, and who carried each out."""
    from rewright.report.directory import DirectoryReport

    used: dict[str, set[str]] = {}
    for run in report.files.values() if isinstance(report, DirectoryReport) else (report,):
        for record in run.passes:
            used.setdefault(record.name, set()).add(record.backend)
    return used
