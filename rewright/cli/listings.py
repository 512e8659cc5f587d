"""`rewright passes`, `rewright chains` and `rewright plugins`: what there is."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rewright.cli import arguments, console
from rewright.cli.failures import DONE
from rewright.model.errors import RewrightError, UsageError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from rewright.api import Chain
    from rewright.ops.contract import OpContract
    from rewright.passes.contract import Pass
    from rewright.registry.catalog import Catalog

_FORMS = ("text", "yaml", "toml", "python")


def passes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this pass's page.", show_default=False)] = None,
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
) -> int:
    """Lists the passes, or shows all about one of them."""
    catalog = arguments.load_catalog(plugins, no_plugins)
    chosen = [catalog.get(name)] if name is not None else [catalog.get(known) for known in catalog]
    if as_json:
        described = [_described(pass_class, catalog) for pass_class in chosen]
        console.write(json.dumps(described[0] if name is not None else described, indent=2))
    elif name is not None:
        _show_page(chosen[0], catalog, console.output())
    else:
        table = _table("pass", "exactness", "what it does", "owner")
        for pass_class in chosen:
            owner = catalog.owner(pass_class.name).distribution or catalog.owner(pass_class.name).name
            table.add_row(Text(pass_class.name, "bold"), pass_class.exactness, pass_class.summary(), Text(owner, "dim"))
        console.output().print(table)
    return DONE


def chains(
    chain: Annotated[
        str | None, typer.Argument(metavar="[CHAIN]", help="Show this chain, its levels expanded.", show_default=False)
    ] = None,
    chain_file: arguments.ChainFile = None,
    form: Annotated[
        str, typer.Option("--as", metavar="FORM", help="The form to show it in: text, yaml, toml or python.")
    ] = "text",
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
) -> int:
    """Lists the levels, or shows a chain in its canonical text, as YAML, TOML or Python."""
    if form not in _FORMS:
        raise UsageError(f"--as is '{form}'.", f"It is one of {', '.join(_FORMS)}.")
    catalog = arguments.load_catalog(plugins, no_plugins)
    if chain is not None or chain_file is not None:
        resolved = arguments.choose_chain(catalog, None, chain, chain_file)
        for sentence in (*resolved.inserted, *resolved.warnings):
            console.warn(sentence)
        console.write(json.dumps(resolved.to_data(), indent=2) if as_json else _spelled(resolved, form))
        return DONE
    levels = {level: _level_text(catalog, level) for level in catalog.levels}
    if as_json:
        console.write(json.dumps(levels, indent=2))
    else:
        table = _table("level", "passes", "owner")
        for level, text in levels.items():
            table.add_row(Text(level, "bold"), text or Text("(none)", "dim"), Text(catalog.owner(level).label, "dim"))
        console.output().print(table)
    return DONE


def plugins(
    as_json: arguments.AsJson = False,
    plugins: arguments.Plugins = None,
    no_plugins: arguments.NoPlugins = False,
) -> int:
    """Lists the plugins: where each comes from, whether it loads, and which passes it brings."""
    catalog = arguments.load_catalog(plugins, no_plugins, is_quiet=True)
    if as_json:
        fields = ("name", "distribution", "version", "status", "error", "passes")
        console.write(json.dumps([{field: getattr(record, field) for field in fields} for record in catalog.plugins], indent=2))
        return DONE
    table = _table("plugin", "distribution", "status", "passes")
    styles = {"loaded": "green", "failed": "bold red", "skipped": "yellow"}
    for record in catalog.plugins:
        what = Text(record.error, styles[record.status]) if record.error else Text(", ".join(record.passes))
        where = f"{record.distribution} {record.version}".strip()
        table.add_row(Text(record.name, "bold"), where, Text(record.status, styles[record.status]), what)
    console.output().print(table)
    return DONE


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _spelled(chain: Chain, form: str) -> str:
    match form:
        case "yaml":
            return chain.to_yaml()
        case "toml":
            return chain.to_toml()
        case "python":
            return repr(chain)
        case _:
            return chain.text


def _level_text(catalog: Catalog, level: str) -> str:
    from rewright.registry.chain import Chain

    try:
        return Chain(level, catalog=catalog).text
    except RewrightError as error:  # a plugin's level may be wrong; the others are still worth showing
        return f"error: {error.message}"


def _described(pass_class: type[Pass], catalog: Catalog) -> dict[str, object]:
    record = catalog.owner(pass_class.name)
    return {
        "name": pass_class.name,
        "summary": pass_class.summary(),
        "documentation": inspect.cleandoc(pass_class.__doc__ or ""),
        "exactness": pass_class.exactness,
        "emits": list(pass_class.emits),
        "after": list(pass_class.after),
        "before": list(pass_class.before),
        "requires": list(pass_class.requires),
        "backends": list(pass_class.backends),
        "ort": asdict(pass_class.ort) if pass_class.ort is not None else None,
        "kernels": _kernels(pass_class),
        "options": {
            option: {"type": _type_text(field), "default": _default_text(field), "description": field.description or ""}
            for option, field in pass_class.option_fields().items()
        },
        "owner": record.label,
    }


def _show_page(pass_class: type[Pass], catalog: Catalog, screen: Console) -> None:
    title, _, body = inspect.cleandoc(pass_class.__doc__ or "").partition("\n")
    screen.print(Text(pass_class.name, "bold cyan"))
    screen.print(Text(title, "bold"))
    if body.strip():
        screen.print(Markdown(inspect.cleandoc(body)))
    screen.print()
    facts = _facts(
        ("exactness", [pass_class.exactness]),
        ("emits", pass_class.emits),
        ("after", pass_class.after),
        ("before", pass_class.before),
        ("requires", pass_class.requires),
        ("backends", pass_class.backends),
        *_onnx_runtime(pass_class),
        ("owner", [catalog.owner(pass_class.name).label]),
    )
    screen.print(facts)
    _show_kernels(pass_class, screen)
    screen.print(Text("\noptions", "bold"))
    table = _table("option", "type", "default", "")
    for option, field in pass_class.option_fields().items():
        table.add_row(Text(option), Text(_type_text(field)), Text(_default_text(field)), Text(field.description or "", "dim"))
    screen.print(Padding(table, (0, 0, 0, 2)))


def _onnx_runtime(pass_class: type[Pass]) -> Iterator[tuple[str, Iterable[str]]]:
    """What carries the pass out for the backend ort, or why nothing does."""
    ort = pass_class.ort
    if ort is None:
        return
    if ort.declines:
        yield "not by ort", [ort.declines]
        return
    yield "by ort", (*ort.optimizers, *(f"{name} (onnxruntime.transformers)" for name in ort.classes))
    yield "ort puts in", [op.replace("::", ".") for op in ort.makes]


def _kernels(pass_class: type[Pass]) -> dict[str, dict[str, list[str]]]:
    """The types that each op which the pass may put in has kernels for, by target; of ops with a contract."""
    return {
        key.replace("::", ".").removeprefix("."): {target: list(dtypes) for target, dtypes in contract.kernels.items()}
        for key, contract in _contracts(pass_class).items()
    }


def _contracts(pass_class: type[Pass]) -> dict[str, OpContract]:
    """Those of the ops that the pass, or ONNX Runtime for it, may put in."""
    from rewright.ops.contract import CONTRACTS

    made = (*pass_class.emits, *(pass_class.ort.makes if pass_class.ort is not None else ()))
    keys = dict.fromkeys("::".join(op.replace("::", ".").removeprefix("ai.onnx.").rpartition(".")[::2]) for op in made)
    return {key: CONTRACTS[key] for key in keys if key in CONTRACTS}


def _show_kernels(pass_class: type[Pass], screen: Console) -> None:
    from rewright.ops.installed import disagreements
    from rewright.passes.contract import Target

    found = _kernels(pass_class)
    if not found:
        return
    screen.print(Text("\nkernels", "bold"))
    table = _table("op", *get_args(Target))
    table.columns[0].no_wrap = True
    for op, kernels in found.items():
        table.add_row(Text(op), *(Text(", ".join(kernels.get(target, ())) or "none") for target in get_args(Target)))
    screen.print(Padding(table, (0, 0, 0, 2)))
    for difference in disagreements(_contracts(pass_class)):
        screen.print(Text(f"  {difference}", "yellow"), soft_wrap=True)


def _facts(*facts: tuple[str, Iterable[str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, values in facts:
        text = ", ".join(values)
        if text:
            grid.add_row(name, Text(text))
    return grid


def _type_text(field: FieldInfo) -> str:
    return _annotation_text(field.annotation)


def _annotation_text(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join("null" if choice is NoneType else _annotation_text(choice) for choice in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    from rewright.registry.grammar import format_value

    default = field.get_default(call_default_factory=True, validated_data={})
    try:
        return format_value(list(default) if isinstance(default, (tuple, set, frozenset)) else default)
    except TypeError:
        return str(default)
