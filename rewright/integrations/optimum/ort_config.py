"""Reading Optimum's objects and its ``ort_config.json``, and writing that file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rewright.integrations.optimum import wording
from rewright.integrations.optimum.attributes import Attributes, check_known
from rewright.integrations.optimum.messages import Message
from rewright.integrations.optimum.options import OptimizationConfig
from rewright.model.errors import ModelError, UsageError
from rewright.report.environment import environment

if TYPE_CHECKING:
    from rewright.integrations.optimum.compiling import CompiledConfig
    from rewright.integrations.optimum.quantizing import CompiledQuantization

FILE_NAME: Final = "ort_config.json"
OWN_KEY: Final = "rewright"
"""The key of ``ort_config.json`` under which rewright tells what it did; Optimum passes over it."""

_PARTS: Final = ("opset", "use_external_data_format", "one_external_file", "optimization", "quantization")
_FORM: Final = 'An ort_config.json holds {"optimization": {"optimization_level": 2, ...}, ...}, as Optimum writes it.'


@dataclasses.dataclass(frozen=True)
class Reading:
    """The attributes that a source sets, what is to be said of the rest of it, and whether it wants weights beside the model."""

    options: Mapping[str, Any]
    remarks: tuple[Message, ...] = ()
    external_data: bool = False


def options_of(source: object, kind: type[Attributes]) -> Reading:
    """See ``Attributes.from_optimum``, which is what to call."""
    if isinstance(source, kind):
        options = {name: getattr(source, name) for name in source.model_fields_set}
        return Reading(options, source.remarks, source.external_data)
    if isinstance(source, Mapping):
        return _of_mapping(source, kind)
    if dataclasses.is_dataclass(source) and not isinstance(source, type) and hasattr(source, kind.told_by):
        return _of_dataclass(source, kind)
    whole = parts_of(source)
    if whole is not None and kind.section:
        return _of_mapping(whole, kind)
    raise UsageError(
        f"a {type(source).__name__} holds no options of Optimum's.",
        f"Give Optimum's {kind.__name__}{' or ORTConfig' if kind.section else ''}, or the one of rewright.integrations.optimum.",
    )


def parts_of(source: object) -> Mapping[str, Any] | None:
    """What an ORTConfig holds, by the names of its attributes; the content of its file is such already. None for all else."""
    if isinstance(source, Mapping):
        return source if source.keys() & {"optimization", "quantization", OWN_KEY} else None
    if hasattr(source, "optimization") and hasattr(source, "use_external_data_format"):
        return {name: getattr(source, name) for name in _PARTS if hasattr(source, name)}
    return None


def read_ort_config(path: str | PathLike[str]) -> Mapping[str, Any]:
    """The content of an ``ort_config.json``, or of the one in a directory.

    Raises:
        UsageError: the file cannot be read, or is no JSON object.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}).", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON ({error}).", _FORM) from error
    if not isinstance(content, Mapping):
        raise UsageError(f"{file} holds a {type(content).__name__}.", _FORM)
    return content


def save_ort_config(
    save_dir: str | PathLike[str],
    config: OptimizationConfig | Mapping[str, Any] | None,
    compiled: CompiledConfig | CompiledQuantization | None = None,
    *,
    use_external_data_format: bool = False,
    one_external_file: bool = True,
    quantization: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``ort_config.json`` into a directory, through a temporary name.

    Optimum's ``ORTConfig.from_pretrained`` reads it. Under the key "rewright" are the chain, the target, the messages and the
    versions, and what ``details`` adds.

    Args:
        save_dir: the directory, which exists.
        config: the options, or their dictionary; None where a chain was given in place of options, and then Optimum reads that
            nothing was asked for.
        compiled: what ``compile`` or ``compile_quantization`` made of options.
        use_external_data_format, one_external_file: whether weights lie beside the model, and in one file.
        quantization: options that the model was quantized with, in the form of this file (``QuantizationConfig.to_section()``).
        details: more to tell, that JSON can say.

    Raises:
        ModelError: the file cannot be written; nothing is left of it.
    """
    options = config if isinstance(config, OptimizationConfig) else OptimizationConfig()
    content = options.to_ort_config(use_external_data_format=use_external_data_format, one_external_file=one_external_file)
    if not isinstance(config, OptimizationConfig):
        content["optimization"] = dict(config or {})
    content["quantization"] = dict(quantization or {})
    told: dict[str, Any] = {"versions": environment().versions}
    if compiled is not None:
        messages = [dataclasses.asdict(message) for message in compiled.messages]
        told |= {"chain": compiled.chain.text, "target": compiled.target, "messages": messages}
    content[OWN_KEY] = {**told, **(details or {})}
    path = Path(save_dir) / FILE_NAME
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ModelError(
            f"cannot write {path}: {error.strerror or error}.", "Check the folder, its permissions and the free space."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def _of_mapping(source: Mapping[str, Any], kind: type[Attributes]) -> Reading:
    """Of the dictionary of an ORTConfig, or of one of its parts."""
    if source and parts_of(source) is None:
        return Reading(source)
    options = source.get(kind.section)
    if not options:
        other = next((name for name in _COMMANDS if name != kind.section and source.get(name)), None)
        what = f"no options for {kind.section}" if other is None else f"only options for {other}"
        hint = "" if other is None else f"`rewright {_COMMANDS[other]} -c` and huggingface.{_COMMANDS[other]} take it. "
        raise UsageError(f"it holds {what}.", hint + _INSTEAD[kind.section])
    found = options_of(options, kind)
    return Reading(found.options, (*found.remarks, *_beside(source, kind)), bool(source.get("use_external_data_format")))


_COMMANDS: Final = {"optimization": "optimize", "quantization": "quantize"}
_INSTEAD: Final = {
    "optimization": "Give a level (-O2) or a chain (-p CHAIN) instead.",
    "quantization": "Give a mode and a preset (--mode, --preset) instead.",
}


def _of_dataclass(source: Any, kind: type[Attributes]) -> Reading:
    """Of an object of Optimum's: what it declares, and what was set on it besides, which Optimum ignores."""
    declared = {field.name: field for field in dataclasses.fields(source)}
    known = kind.model_fields
    check_known((name for name in vars(source) if name not in declared), kind)
    remarks = tuple(
        Message(name, getattr(source, name), wording.UNKNOWN_ATTRIBUTE)
        for name, field in declared.items()
        if name not in known and getattr(source, name) != field.default
    )
    return Reading({name: getattr(source, name) for name in declared if name in known}, remarks)


def _beside(source: Mapping[str, Any], kind: type[Attributes]) -> tuple[Message, ...]:
    """What an ORTConfig says beside the options."""
    told: list[Message] = []
    if kind.section != "quantization" and source.get("quantization"):
        told.append(Message("quantization", "{...}", wording.QUANTIZATION))
    if source.get("opset") is not None:
        told.append(Message("opset", source["opset"], wording.OPSET, "note"))
    if source.get("use_external_data_format"):
        told.append(Message("use_external_data_format", True, wording.EXTERNAL_DATA, "note"))
    if source.get("one_external_file") is False:
        told.append(Message("one_external_file", False, wording.ONE_FILE, "note"))
    return tuple(told)
