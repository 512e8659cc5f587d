"""Which of the caller's inputs are for which model of a directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from rewright.model.errors import UsageError


def inputs_by_model(
    inputs: Any, names: Sequence[str], what: str = "inputs", suffixes: Sequence[str] = (".npz",)
) -> dict[str, Any]:
    """The inputs of each model that has any.

    Args:
        inputs: for one model anything that it can be compared on; for several a mapping of file names, or a folder with an entry
            for each, named like the file without ".onnx".
        names: the models, relative to their directory.
        what: what they are called in errors.
        suffixes: of the files in such a folder.

    Raises:
        UsageError: it does not say which model they are for, or names one that there is not.
    """
    if inputs is None:
        return {}
    if isinstance(inputs, Mapping) and any(str(key).endswith(".onnx") for key in inputs):
        return _of_mapping(inputs, names, what)
    if len(names) == 1:
        return {names[0]: inputs}
    if isinstance(inputs, str | PathLike):
        return _of_folder(Path(inputs), names, what, suffixes)
    raise UsageError(
        f"the {what} do not say which of the models they are for: {', '.join(names)}.",
        f"Give a mapping of file names, {{'{names[0]}': ...}}, or a folder with an entry for each.",
    )


def _of_mapping(inputs: Mapping[str, Any], names: Sequence[str], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in inputs.items():
        matching = [name for name in names if name == key] or [name for name in names if PurePosixPath(name).name == key]
        if not matching:
            raise UsageError(f"there are {what} for '{key}', and no such model.", f"The models are {', '.join(names)}.")
        found |= dict.fromkeys(matching, value)
    return found


def _of_folder(folder: Path, names: Sequence[str], what: str, suffixes: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        stem = PurePosixPath(name).with_suffix("")
        stems = (str(stem), stem.name)
        candidates = [folder / each for each in stems] + [folder / f"{each}{suffix}" for each in stems for suffix in suffixes]
        for candidate in candidates:
            if candidate.exists():
                found.setdefault(name, candidate)
    if not found:
        first = PurePosixPath(names[0]).stem
        raise UsageError(
            f"{folder} holds no {what} for any of the models {', '.join(names)}.",
            f"Name the files or folders in it like the models: {first}.npz, or {first}/ with .npz files in it.",
        )
    return found
