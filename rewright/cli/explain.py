"""`rewright explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from rewright.cli import arguments, console
from rewright.cli.failures import DONE
from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.passes.contract import Backend, Target


def explain(
    model: arguments.ModelPath,
    level: arguments.Level = None,
    passes: arguments.ChainText = None,
    chain_file: arguments.ChainFile = None,
    settings: arguments.Settings = None,
    target: arguments.TargetName = "cpu",
    backend: arguments.BackendName = "standalone",
    is_comparing: Annotated[
        bool,
        typer.Option("--backends", help="Compare all backends: what each makes of every pass and node, and what was undone."),
    ] = False,
    is_complete: Annotated[bool, typer.Option("--all", help="List every site and rejection, not only the first few.")] = False,
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
) -> int:
    """Shows what becomes of each softmax, normalisation and activation, where the passes of a chain fire, and why not elsewhere.

    Nothing is written, and the model's outputs are not compared; what ONNX Runtime makes is checked site by site.
    """
    if is_comparing and backend != "standalone":
        raise UsageError(f"--backends compares all, and --backend names {backend}.", "Give one of the two.")
    catalog = arguments.load_catalog(plugins, no_plugins)
    chain = arguments.choose_chain(catalog, level, passes, chain_file, settings)

    from rewright import api

    if is_comparing:
        comparison = api.compare_backends(model, chain=chain, target=cast("Target", target))
        if as_json:
            console.write(comparison.to_json())
        else:
            from rewright.report.backends_table import show_backends

            show_backends(comparison, console.output(), is_complete=is_complete)
        return DONE
    report = api.explain(model, chain=chain, target=cast("Target", target), backend=cast("Backend", backend))
    if as_json:
        console.write(report.to_json())
    else:
        from rewright.report.explanation import show_explanation

        show_explanation(report, console.output(), is_complete=is_complete)
    return DONE
