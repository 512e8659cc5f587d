"""The tables of docs/optimum.md: every attribute, and what it changes here.

``python -m rewright.integrations.optimum.table PAGE`` renews them in the page.

Nothing in them is written by hand: each attribute is set to each value other than its default, and compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from rewright.integrations.optimum import wording
from rewright.integrations.optimum.attributes import Attributes
from rewright.integrations.optimum.calibration import CalibrationConfig
from rewright.integrations.optimum.compiling import CompiledConfig, compile
from rewright.integrations.optimum.options import OptimizationConfig
from rewright.integrations.optimum.quantization import QuantizationConfig
from rewright.integrations.optimum.quantizing import CompiledQuantization, compile_quantization
from rewright.model.errors import UsageError
from rewright.registry.grammar import format_pass
from rewright.registry.options import chosen_options

END: Final = "<!-- end of attributes -->"

BASES: Final[Mapping[str, Mapping[str, Any]]] = {
    "dynamic": {"is_static": False, "format": "QOperator", "mode": "IntegerOps"},
    "static": {"is_static": True, "format": "QDQ", "mode": "QLinearOps"},
}
"""The attributes without a default, as Optimum's presets set them."""

SAMPLES: Final[Mapping[str, object]] = {
    "nodes_to_quantize": ["/head/MatMul"],
    "nodes_to_exclude": ["/head/MatMul"],
    "operators_to_quantize": ["MatMul", "Transpose"],
    "qdq_op_type_per_channel_support_to_axis": {"MatMul": 0},
    "dataset_name": "glue",
    "dataset_config_name": "sst2",
    "dataset_split": "train",
    "dataset_num_samples": 100,
    "num_bins": 512,
    "num_quantized_bins": 64,
    "percentile": 99.9,
    "averaging_constant": 0.1,
}
"""Values of the attributes that can have any number of them."""

_OF_THIS_MACHINE: Final = (wording.NO_CUDA,)
_WITH: Final[Mapping[str, Mapping[str, Any]]] = {
    "num_bins": {"method": "Entropy"},
    "num_quantized_bins": {"method": "Entropy"},
    "percentile": {"method": "Percentile"},
    "averaging_constant": {"moving_average": True},
}
"""What an attribute of calibration is of use with."""

Compiled = CompiledConfig | CompiledQuantization


def begin(what: str) -> str:
    """The marker before a table."""
    return f"<!-- {what}: renewed by python -m rewright.integrations.optimum.table docs/optimum.md -->"


def other_values(field: FieldInfo) -> tuple[object, ...]:
    """The values that an attribute can have besides its default, where they can be listed."""
    is_listed = get_origin(field.annotation) is Literal
    known = get_args(field.annotation) if is_listed else (True, False)
    return tuple(value for value in known if value != field.default)


def values_of(kind: type[Attributes]) -> Iterator[tuple[str, object]]:
    """Every attribute of a class with each value other than its default, or with a sample of these."""
    for name, field in kind.model_fields.items():
        for value in (SAMPLES[name],) if name in SAMPLES else other_values(field):
            yield name, value


def effect(name: str, value: object) -> str:
    """What setting one attribute changes in the chain and the target, and what is said of it."""
    return _told(compile(OptimizationConfig()), compile(OptimizationConfig.model_validate({name: value})))


def quantization_effect(mode: str, name: str, value: object) -> str:
    """The same of an attribute for quantization, beside those that Optimum's presets for a mode set."""
    base = BASES[mode]
    plain = compile_quantization(QuantizationConfig.model_validate(base))
    try:
        return _told(plain, compile_quantization(QuantizationConfig.model_validate({**base, name: value})))
    except UsageError as error:
        return f"An error: {error}"


def calibration_effect(name: str, value: object) -> str:
    """The same of an attribute for calibration, beside those that it is of use with."""
    config, base = QuantizationConfig.model_validate(BASES["static"]), _WITH.get(name, {})
    plain = compile_quantization(config, CalibrationConfig.model_validate(base))
    made = compile_quantization(config, CalibrationConfig.model_validate({**base, name: value}))
    beside = f"With {', '.join(f'{key}={given}' for key, given in base.items())}: " if base else ""
    return beside + _told(plain, made)


def markdown() -> str:
    """The table of OptimizationConfig, without its markers."""
    return _table(OptimizationConfig, ("set otherwise, what becomes of it here",), (effect,))


def quantization_markdown() -> str:
    """The table of QuantizationConfig."""

    def of(mode: str) -> Callable[[str, object], str]:
        return lambda name, value: "" if BASES[mode].get(name) == value else quantization_effect(mode, name, value)

    return _table(QuantizationConfig, tuple(BASES), tuple(of(mode) for mode in BASES))


def calibration_markdown() -> str:
    """The table of CalibrationConfig."""
    return _table(CalibrationConfig, ("set otherwise, what becomes of it here",), (calibration_effect,))


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "attributes": markdown,
    "attributes for quantization": quantization_markdown,
    "attributes for calibration": calibration_markdown,
}


def renewed(page: str) -> str:
    """The page with the tables of today.

    Raises:
        ValueError: the page does not hold all markers.
    """
    for what, table in TABLES.items():
        before = page.index(begin(what)) + len(begin(what))
        after = page.index(END, before)
        page = f"{page[:before]}\n{table()}\n{page[after:]}"
    return page


def _table(kind: type[Attributes], columns: Sequence[str], effects: Sequence[Callable[[str, object], str]]) -> str:
    head = ["attribute", "default", "what it asks for", *columns]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    values: dict[str, list[object]] = {}
    for name, value in values_of(kind):
        values.setdefault(name, []).append(value)
    for name, field in kind.model_fields.items():
        default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        cells = [_cell(name, values[name], each) for each in effects]
        lines.append(f"| `{name}` | {default} | {field.description} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, values: Sequence[object], told_of: Callable[[str, object], str]) -> str:
    same: dict[str, list[object]] = {}
    for value in values:
        same.setdefault(told_of(name, value), []).append(value)
    same.pop("", None)
    is_one = len(values) == 1 and name not in SAMPLES
    return "<br>".join(text if is_one else f"{_listed(alike)}: {text}" for text, alike in same.items())


def _listed(values: Sequence[object]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _told(plain: Compiled, made: Compiled) -> str:
    changes = "; ".join(_changes(plain, made))
    sentences = [f"{changes}."] if changes else []
    sentences += [
        message.text for message in made.messages if message not in plain.messages and message.text not in _OF_THIS_MACHINE
    ]
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences)


def _changes(plain: Compiled, made: Compiled) -> Iterator[str]:
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


def _texts(compiled: Compiled) -> dict[tuple[str, str], None]:
    """The names and texts of the chain's steps, each once."""
    return dict.fromkeys((step.name, format_pass(step.name, chosen_options(step))) for step in compiled.chain)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
