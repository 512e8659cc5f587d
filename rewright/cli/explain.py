"""`rewright explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from rewright.cli import arguments, console
from rewright.cli.failures import DONE

if TYPE_CHECKING:
    from rewright.passes.contract import Target


def explain(
    model: arguments.ModelPath,
    level: arguments.Level = None,
    passes: arguments.ChainText = None,
    chain_file: arguments.ChainFile = None,
    settings: arguments.Settings = None,
    target: arguments.TargetName = "cpu",
    is_complete: Annotated[bool, typer.Option("--all", help="List every site and rejection, not only the first few.")] = False,
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
) -> int:
    """Shows what becomes of each softmax, normalisation and activation, where the passes of a chain fire, and why not elsewhere.

    Nothing is compared or written.
    """
    catalog = arguments.load_catalog(plugins, no_plugins)
    chain = arguments.choose_chain(catalog, level, passes, chain_file, settings)

    from rewright import api

    report = api.explain(model, chain=chain, target=cast("Target", target))
    if as_json:
        console.write(report.to_json())
    else:
        from rewright.report.explanation import show_explanation

        show_explanation(report, console.output(), is_complete=is_complete)
    return DONE
