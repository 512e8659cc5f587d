"""The table of docs/optimum.md: every attribute, and what it changes here. ``python -m rewright.integrations.optimum.table PAGE``
renews it in the page.

Nothing in it is written by hand: each attribute is set to each value other than its default, and compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from rewright.integrations.optimum import wording
from rewright.integrations.optimum.compiling import CompiledConfig, compile
from rewright.integrations.optimum.options import OptimizationConfig
from rewright.registry.grammar import format_pass
from rewright.registry.options import chosen_options

BEGIN: Final = "<!-- attributes: renewed by python -m rewright.integrations.optimum.table docs/optimum.md -->"
END: Final = "<!-- end of attributes -->"

_OF_THIS_MACHINE: Final = (wording.NO_CUDA,)


def other_values(field: FieldInfo) -> tuple[object, ...]:
    """The values that an attribute can have besides its default."""
    is_listed = get_origin(field.annotation) is Literal
    known = get_args(field.annotation) if is_listed else (True, False)
    return tuple(value for value in known if value != field.default)


def markdown() -> str:
    """The table, without its markers."""
    lines = ["| attribute | default | what it asks for | set otherwise, what becomes of it here |", "|---|---|---|---|"]
    for name, field in OptimizationConfig.model_fields.items():
        values = other_values(field)
        told = [f"`{value}`: {effect(name, value)}" if len(values) > 1 else effect(name, value) for value in values]
        lines.append(f"| `{name}` | `{field.default}` | {field.description} | {'<br>'.join(told)} |")
    return "\n".join(lines)


def effect(name: str, value: object) -> str:
    """What setting one attribute changes in the chain and the target, and what is said of it."""
    plain, made = compile(OptimizationConfig()), compile(OptimizationConfig.model_validate({name: value}))
    changes = "; ".join(_changes(plain, made))
    sentences = [f"{changes}."] if changes else []
    sentences += [message.text for message in made.messages if message.text not in _OF_THIS_MACHINE]
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences)


def renewed(page: str) -> str:
    """The page with the table of today.

    Raises:
        ValueError: the page does not hold both markers.
    """
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:before]}\n{markdown()}\n{page[after:]}"


def _changes(plain: CompiledConfig, made: CompiledConfig) -> Iterator[str]:
    before, after = _texts(plain), _texts(made)
    # the cleanups stand in a chain more than once: what is there at all counts
    gone = [step for step in before if step not in after]
    new = [step for step in after if step not in before]
    changed = {name for name, _ in gone} & {name for name, _ in new}
    for verb, steps in (("takes out", gone), ("adds", new)):
        names = [f"`{text}`" for name, text in steps if name not in changed]
        if names:
            yield f"{verb} {', '.join(names)}"
    texts = [f"`{text}`" for name, text in new if name in changed]
    if texts:
        yield f"sets {', '.join(texts)}"
    if made.target != plain.target:
        yield f"target `{made.target}`"


def _texts(compiled: CompiledConfig) -> dict[tuple[str, str], None]:
    """The names and texts of the chain's steps, each once."""
    return dict.fromkeys((step.name, format_pass(step.name, chosen_options(step))) for step in compiled.chain)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
