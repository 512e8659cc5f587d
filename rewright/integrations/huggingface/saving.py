"""Writing a directory: everything goes into a folder beside it first, which takes its place when it is complete."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from rewright.integrations.huggingface.source import ModelDirectory
from rewright.model.errors import ModelError, UsageError

DATA_SUFFIX: Final = "_data"
"""Of the file with the weights of model.onnx, which Optimum then finds also on the Hub: model.onnx_data."""


def check_save_dir(save_dir: Path, source: ModelDirectory, names: Collection[str]) -> None:
    """Checks that ``save_dir`` can take what is made of ``source``: models of these names, relative to it.

    Raises:
        UsageError: it is a file, the source itself, inside it or around it, or holds ONNX files that would not be replaced.
    """
    if save_dir.exists() and not save_dir.is_dir():
        raise UsageError(f"{save_dir} is not a directory.", "Name a directory to save to; it is made if it does not exist.")
    ours, theirs = Path(os.path.realpath(save_dir)), Path(os.path.realpath(source.path))
    if ours == theirs:
        raise UsageError(f"{save_dir} is the source directory, which is never modified.", "Choose another directory to save to.")
    if theirs in ours.parents:
        raise UsageError(f"{save_dir} is inside the source directory, which is never modified.", "Choose one outside of it.")
    if ours in theirs.parents:
        raise UsageError(
            f"{save_dir} holds the source directory, which is never modified.", "Choose another directory to save to."
        )
    others = _other_models(save_dir, names)
    if others:
        raise UsageError(
            f"{save_dir} holds other ONNX files: {', '.join(others)}. A model that is loaded from there might be one of these.",
            "Choose another directory, or remove them.",
        )


def _other_models(save_dir: Path, names: Collection[str]) -> list[str]:
    if not save_dir.is_dir():
        return []
    found = (file.relative_to(save_dir).as_posix() for file in save_dir.rglob("*.onnx"))
    return sorted(name for name in found if name not in names)


@contextmanager
def staged(save_dir: Path) -> Iterator[Path]:
    """A folder to write into, on the file system of ``save_dir``; it is gone afterwards, unless ``deliver`` moved it.

    It lies beside ``save_dir`` if that is to be made, else inside, because that may be where another file system is mounted.

    Raises:
        ModelError: it cannot be made. One that is raised inside names ``save_dir`` in place of the folder.
    """
    parent = save_dir
    while not parent.exists():  # `deliver` makes what is missing
        parent = parent.parent
    with _writing(save_dir):
        temporary = tempfile.mkdtemp(prefix=f".{save_dir.name}.", suffix=".partial", dir=parent)
    stage = Path(temporary, "stage")
    try:
        with _writing(save_dir):
            stage.mkdir()  # with the usual permissions, which the temporary folder around it has not
        yield stage
    except ModelError as error:
        raise ModelError(error.message.replace(str(stage), str(save_dir)), error.hint) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def carry_over(source: ModelDirectory, stage: Path) -> list[str]:
    """Copies everything that belongs with the models; what a link points to is copied, not the link. Returns the names.

    Raises:
        ModelError: a file cannot be read, or its copy cannot be written.
    """
    for name in source.carried:
        with _writing(stage / name):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            with open(stage / name, "xb") as copy, _opened(source.path / name) as file:
                shutil.copyfileobj(file, copy)
    for held in source.configured.values():
        held.save_pretrained(stage)
    return [*map(str, source.carried), *source.configured]


def deliver(stage: Path, save_dir: Path) -> None:
    """Puts the folder in the place of ``save_dir``; of one that exists, the files of the same names are replaced.

    Weights come before the models that read them, so that no model stands beside weights that are not its own for longer than
    a rename takes. Weights of a replaced model that the new one does not need are removed.

    Raises:
        ModelError: it cannot be written.
    """
    with _writing(save_dir):
        if not save_dir.exists():
            save_dir.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage, save_dir)
            return
        names = [file.relative_to(stage) for file in stage.rglob("*") if not file.is_dir()]
        for name in names:
            (save_dir / name).parent.mkdir(parents=True, exist_ok=True)
            if (save_dir / name).is_dir():  # told before anything is replaced
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), save_dir / name)
        for name in sorted(names, key=lambda name: (name.suffix == ".onnx", str(name))):
            os.replace(stage / name, save_dir / name)
        for name in names:
            data = name.with_name(name.name + DATA_SUFFIX)
            if name.suffix == ".onnx" and data not in names:
                (save_dir / data).unlink(missing_ok=True)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename and Path(error.filename) != place else ""
        raise ModelError(
            f"cannot write {place}{where}: {error.strerror or error}.", "Check the folder, its permissions and the free space."
        ) from error


def _opened(file: Path) -> BinaryIO:
    try:
        return open(file, "rb")
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}.", "Check its permissions.") from error
