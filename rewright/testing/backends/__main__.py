"""``python -m rewright.testing.backends``: writes docs/backends.md to standard output."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from rewright.model.errors import RewrightError
from rewright.registry.catalog import Catalog
from rewright.testing.backends.page import page


def backends(
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="List the passes of a plugin, an entry point's name or a module; repeatable."),
    ] = None,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Leave out the passes of installed plugins.")] = False,
) -> None:
    """Shows for each pass, target and float type what it puts in, by itself and by ONNX Runtime, in Markdown."""
    if plugin:
        sys.path.append(os.getcwd())  # last, so that nothing there stands in for an installed module
    try:
        text = page(Catalog.load(plugin or (), False if no_plugins else None))
    except RewrightError as error:
        messages = Console(stderr=True, highlight=False)
        messages.print(f"error: {error.message}", markup=False, soft_wrap=True)
        messages.print(f"hint: {error.hint}", markup=False, soft_wrap=True)
        raise SystemExit(error.exit_status) from None
    sys.stdout.write(text)


app = typer.Typer(add_completion=False)
app.command()(backends)


if __name__ == "__main__":
    app(prog_name="python -m rewright.testing.backends")
