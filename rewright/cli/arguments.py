"""Arguments that several commands have."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewright.cli import console
from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.api import Chain
    from rewright.integrations.optimum import CompiledConfig
    from rewright.registry.catalog import Catalog

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file. It is never modified.", show_default=False)]
Level = Annotated[
    str | None, typer.Option("-O", "--level", metavar="LEVEL", help="A level: O0, O1, O2 (the default), O3, also 0 to 3.")
]
ChainText = Annotated[
    str | None, typer.Option("-p", "--passes", metavar="CHAIN", help='Chain text, such as "O1, gelu, bias-gelu{backend=ort}".')
]
ChainFile = Annotated[
    Path | None,
    typer.Option("-c", "--chain", metavar="FILE", help="A chain file: YAML, TOML or chain text; or Optimum's ort_config.json."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Set one option of a pass of the chain; repeatable."),
]
BackendName = Annotated[
    str, typer.Option("--backend", metavar="BACKEND", help="Who carries the passes out: standalone, ort or auto.")
]
TargetName = Annotated[
    str,
    typer.Option("--target", metavar="TARGET", help="Where the result will run: cpu, cuda, dml or portable (standard ops only)."),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs", metavar="PATH", help="Inputs to compare on: an .npz file, a folder of them, or ONNX's test_data_set folders."
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the inputs that are made where none are given.", min=0)]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TEXT",
        help='What quantized outputs may lose, such as "sqnr=25, top1=0.99"; also cosine, max_abs, agreement, step.',
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="MODULE", help="Load a plugin: an entry point's name or a module; repeatable."),
]
NoPlugins = Annotated[bool, typer.Option("--no-plugins", help="Load no installed plugin but those that --plugin names.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors (and JSON, with --json).")]


def load_catalog(plugins: Sequence[str] | None, no_plugins: bool, *, is_quiet: bool = False) -> Catalog:
    """The catalog for one command; warns of each plugin that failed to load."""
    from rewright.registry.catalog import Catalog

    if plugins:
        sys.path.append(os.getcwd())  # last, so that nothing there stands in for an installed module
    catalog = Catalog.load(plugins or (), False if no_plugins else None)
    for record in catalog.plugins:
        if record.status == "failed" and not is_quiet:
            console.warn(f"{record.label} failed to load and is skipped: {record.error}")
    return catalog


def choose_chain(
    catalog: Catalog,
    level: str | None,
    text: str | None,
    file: Path | None,
    settings: Sequence[str] | None = None,
    *,
    is_telling: bool = True,
) -> Chain:
    """The chain that the options ask for; O2 where they ask for none.

    ``is_telling`` says on standard error what the options of an ``ort_config.json`` do not change.

    Raises:
        UsageError: two of them ask for one, or see ``Chain``.
    """
    from rewright.api import Chain

    given = [name for name, value in (("-O", level), ("-p", text), ("-c", file)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} each name a chain.", 'Give one of them; -p "O2, my-pass" adds to a level.')
    if text is not None:
        chain = Chain(text, catalog=catalog)
    elif file is not None:
        compiled = options_of_optimum(catalog, file)
        chain = compiled.chain if compiled is not None else Chain.from_file(file, catalog=catalog)
        for message in compiled.messages if compiled is not None and is_telling else ():
            (console.warn if message.kind == "warning" else console.note)(str(message))
    else:
        chain = Chain.at_level(level if level is not None else "O2", catalog=catalog)
    for setting in settings or ():
        chain = chain.with_setting(setting)
    return chain


def options_of_optimum(catalog: Catalog, file: Path | None) -> CompiledConfig | None:
    """What the options of an ``ort_config.json`` become; None for a file of another kind, which is a chain file.

    Raises:
        UsageError: the file cannot be read, or holds no options for optimization.
    """
    if file is None or file.suffix.lower() != ".json":
        return None
    from rewright.integrations.optimum import OptimizationConfig, compile

    return compile(OptimizationConfig.from_file(file), catalog=catalog)
