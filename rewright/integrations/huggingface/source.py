"""A directory with models as Hugging Face lays it out: which files are models, what belongs to them, and what else is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol, TypeVar

from rewright.model.carrier import Model, stubs
from rewright.model.errors import ModelError, UsageError
from rewright.model.load import load
from rewright.model.weights import slice_of
from rewright.registry.catalog import did_you_mean
from rewright.report.wording import byte_size

CONFIG: Final = "config.json"
PIPELINE_CONFIG: Final = "model_index.json"
"""Of a pipeline of several models, each in a folder of its own, as diffusion models have it."""

REPLACED: Final = "ort_config.json"
"""The record of an earlier optimization, which the new one takes the place of."""

_SENTENCE_MODULES: Final = "modules.json"
_WEIGHTS: Final = (
    "*.safetensors", "*.safetensors.index.json", "*.bin.index.json", "pytorch_model*.bin", "diffusion_pytorch_model*.bin",
    "adapter_model*.bin", "training_args.bin", "tf_model*.h5", "*.msgpack", "rust_model.ot", "*.pt", "*.pth", "*.ckpt", "*.gguf",
    "*.tflite", "*.ort", "openvino_*.bin", "openvino_*.xml",
)  # fmt: skip
"""Weights in other forms than ONNX, which nothing that loads the ONNX files reads."""

_REPRODUCERS: Final = ".reproducers"


class Configured(Protocol):
    """What has a configuration of transformers' kind, which can be written into a directory."""

    def save_pretrained(self, save_directory: str | PathLike[str], /) -> Any:
        """Writes the configuration."""


@dataclass(frozen=True)
class ModelDirectory:
    """A directory that was read; nothing in it is ever changed.

    Attributes:
        path: the directory, absolute.
        models: the models to optimize, by their names relative to the directory, sorted.
        carried: the other files that belong with them, relative to the directory.
        messages: what is not carried over, and what is missing.
        configured: holds configurations that the directory has no file for; of a model that was loaded by Optimum.
    """

    path: Path
    models: Mapping[str, Model]
    carried: Sequence[PurePosixPath]
    messages: Sequence[str] = ()
    configured: Mapping[str, Configured] = field(default_factory=dict)

    @property
    def model_type(self) -> str | None:
        """The model type that ``config.json`` names."""
        found = _read_json(self.path / CONFIG, dict).get("model_type")
        return found if isinstance(found, str) else None

    def recorded(self, section: str) -> dict[str, Any]:
        """What ``ort_config.json`` says of how the models were made: under "optimization", or "quantization"."""
        found = _read_json(self.path / REPLACED, dict).get(section)
        return found if isinstance(found, dict) else {}


def read_directory(source: object, file_names: Iterable[str] | None = None) -> ModelDirectory:
    """Reads a directory, or the one that an ``ORTModel`` of Optimum was loaded from.

    Args:
        source: the path of a directory, or an object of any of Optimum's ``ORTModel`` classes, of which only the models that
            it has loaded are taken.
        file_names: the ONNX files to take, as names or as paths relative to the directory; all by default.

    Raises:
        UsageError: it is neither, or holds no such ONNX file.
        ModelError: the directory or a model cannot be read.
    """
    if isinstance(source, str | PathLike):
        path = Path(os.path.abspath(source))
        _check_directory(path)
        found = _files(path)
        return _directory(path, found, _chosen(path, found.models, file_names), {})
    loaded = _loaded_files(source)
    path = _root_of(loaded)
    found = _files(path)
    configured: dict[str, Configured] = {
        file: getattr(source, name)
        for name, file in (("config", CONFIG), ("generation_config", "generation_config.json"))
        if not (path / file).exists() and hasattr(getattr(source, name, None), "save_pretrained")
    }
    names = [PurePosixPath(file.relative_to(path).as_posix()) for file in loaded]
    return _directory(path, found, _chosen(path, names, file_names), configured)


@dataclass(frozen=True)
class _Files:
    """The regular files of a directory, relative to it: ONNX files, and the others."""

    models: list[PurePosixPath]
    others: list[PurePosixPath]
    links: list[PurePosixPath]


def _check_directory(path: Path) -> None:
    if not path.exists():
        raise ModelError(f"{path} does not exist.", "Give a local directory; a model of the Hub has to be exported first.")
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory.", "Give the directory with config.json and the ONNX files.")


def _files(path: Path) -> _Files:
    found = _Files([], [], [])

    def refuse(error: OSError) -> None:
        reason = error.strerror or str(error)
        raise ModelError(f"cannot read {error.filename or path}: {reason}.", "Check its permissions.") from error

    for folder, folders, names in os.walk(path, onerror=refuse):
        at = PurePosixPath(Path(folder).relative_to(path).as_posix())
        found.links.extend(at / name for name in sorted(folders) if os.path.islink(os.path.join(folder, name)))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(_REPRODUCERS))
        for name in sorted(names):
            if name.startswith(".") or not os.path.isfile(os.path.join(folder, name)):
                continue
            (found.models if name.endswith(".onnx") else found.others).append(at / name)
    found.models.sort()
    return found


def _chosen(path: Path, found: Sequence[PurePosixPath], file_names: Iterable[str] | None) -> list[PurePosixPath]:
    if not found:
        hint = "Export the model first: optimum-cli export onnx --model MODEL DIR."
        raise UsageError(f"{path} is a directory that holds no .onnx file.", hint)
    if file_names is None:
        return list(found)
    wanted = [file_names] if isinstance(file_names, str) else list(file_names)
    chosen: list[PurePosixPath] = []
    for name in wanted:
        matching = [file for file in found if str(file) == PurePosixPath(name).as_posix()]
        matching = matching or [file for file in found if file.name == name]
        if not matching:
            names = list(map(str, found))
            near = did_you_mean(name, names)
            raise UsageError(f"{path} holds no file '{name}'.", f"{near} It holds {', '.join(names)}.".lstrip())
        chosen.extend(matching)
    return sorted(set(chosen))


def _directory(
    path: Path, found: _Files, chosen: Sequence[PurePosixPath], configured: Mapping[str, Configured]
) -> ModelDirectory:
    models = {str(name): load(path / name) for name in chosen}
    read = {os.path.realpath(file) for model in models.values() for file in _data_files(model)}
    left = _Left([name for name in found.models if str(name) not in models], [], [], found.links)
    modules = _sentence_modules(path)
    carried: list[PurePosixPath] = []
    for name in found.others:
        if os.path.realpath(path / name) in read or str(name) == REPLACED:
            continue
        if _is_data_of(name, found.models):
            left.data.append(name)
        elif any(fnmatch(name.name, pattern) for pattern in _WEIGHTS) and str(name.parent) not in modules:
            left.weights.append(name)
        else:
            carried.append(name)
    return ModelDirectory(path, models, carried, list(_messages(path, left, CONFIG in configured)), configured)


@dataclass(frozen=True)
class _Left:
    """What is not carried over: models that were not asked for, files named like their data, other weights, links to folders."""

    models: list[PurePosixPath]
    data: list[PurePosixPath]
    weights: list[PurePosixPath]
    links: list[PurePosixPath]


def _data_files(model: Model) -> set[Path]:
    """The files beside the .onnx file that hold weights of the model."""
    return {slice_of(tensor).path for tensor in stubs(model.node_lists)} - {model.path}


def _is_data_of(file: PurePosixPath, models: Iterable[PurePosixPath]) -> bool:
    """Whether the file is named as external data of one of the models: model.onnx_data, model.onnx.data, model.onnx_data_1."""
    beside = (model.name for model in models if model.parent == file.parent)
    return any(file.name.startswith((f"{name}_data", f"{name}.data")) for name in beside)


def _sentence_modules(path: Path) -> set[str]:
    """The folders of modules that sentence-transformers runs after the model, and whose weights it needs."""
    entries = _read_json(path / _SENTENCE_MODULES, list)
    paths = (entry.get("path") for entry in entries if isinstance(entry, dict))
    return {PurePosixPath(each).as_posix() for each in paths if isinstance(each, str) and each}


Content = TypeVar("Content", dict[str, Any], list[Any])


def _read_json(file: Path, kind: type[Content]) -> Content:
    """What a file holds; nothing if it is not there, or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return kind()
    return content if isinstance(content, kind) else kind()


def _messages(path: Path, left: _Left, is_configured: bool) -> Iterator[str]:
    if not is_configured and not (path / CONFIG).is_file() and not (path / PIPELINE_CONFIG).is_file():
        hint = f" {path.parent} has one: is that the directory?" if (path.parent / CONFIG).is_file() else ""
        yield f"{path} has no {CONFIG}, without which Optimum does not load a model.{hint}"
    if left.models:
        yield f"not asked for, and not carried over: {_listed([*left.models, *left.data])}."
    elif left.data:
        yield f"named like weights, read by no model, and not carried over: {_listed(left.data)}."
    if left.weights:
        size = byte_size(sum((path / name).stat().st_size for name in left.weights))
        what = f"weights in other forms than ONNX ({size}) are not carried over: {_listed(left.weights)}"
        yield f"{what}; copy them where something else needs them."
    if left.links:
        yield f"links to folders are not followed: {_listed(left.links)}."


def _listed(names: Iterable[PurePosixPath]) -> str:
    return ", ".join(map(str, names))


def _loaded_files(source: object) -> list[Path]:
    """The .onnx files of an ``ORTModel``, or of each part of one; see optimum.onnxruntime.base.

    Raises:
        UsageError: the object is none, or was not loaded from files that are there still.
    """
    parts = getattr(source, "parts", None) or [source]
    files: list[Path] = []
    for part in parts if isinstance(parts, Iterable) else [source]:
        file = getattr(part, "path", None) or getattr(getattr(part, "session", None), "_model_path", None)
        if not isinstance(file, str | PathLike) or not os.fspath(file):
            raise UsageError(
                f"a {type(source).__name__} is neither a directory nor a model that Optimum has loaded from one.",
                "Give the path of a directory, or an ORTModel.",
            )
        if not os.path.isfile(file):
            raise UsageError(
                f"the model was loaded from {file}, which is not there any more.", "Save the model, and load it again."
            )
        files.append(Path(os.path.abspath(file)))
    return sorted(set(files))


def _root_of(files: Sequence[Path]) -> Path:
    """The directory of a model: where its .onnx files are, or, where these are in a folder of their own, the one above."""
    path = Path(os.path.commonpath([file.parent for file in files]))
    if (path / CONFIG).is_file() or (path / PIPELINE_CONFIG).is_file():
        return path
    above = path.parent
    return above if (above / CONFIG).is_file() or (above / PIPELINE_CONFIG).is_file() else path
