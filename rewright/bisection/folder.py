"""The folder that a bisection leaves: the models before and after each culprit, the inputs, and the record."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rewright.bisection.record import Bisection, Culprit
from rewright.bisection.steps import Applied
from rewright.model.errors import ModelError, UsageError
from rewright.verify.input_files import write_npz
from rewright.verify.inputs import InputSet

RECORD: Final = "bisection.json"


def check_folder(folder: Path) -> None:
    """Refuses a folder that holds something else, before any work is done.

    Raises:
        UsageError: it is a file, has no parent folder, or holds something that is not of a bisection.
    """
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"the folder {folder.absolute().parent} does not exist.", "Make it, or choose another place.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file.", "Name a folder for the models.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise UsageError(f"{folder} holds something else than a bisection.", "Name a new folder.")


def write_culprit(
    folder: Path, record: Bisection, culprits: Sequence[tuple[Culprit, Applied]], input_sets: Sequence[InputSet]
) -> None:
    """Writes, for each culprit, ``before.onnx`` and ``after.onnx`` in a folder named after the pass, and the inputs beside them.

    Raises:
        ModelError: something cannot be written.
    """
    try:
        _clear(folder)
        for culprit, applied in culprits:
            place = folder / f"{culprit.index:02d}-{culprit.name}"
            place.mkdir(parents=True, exist_ok=True)
            applied.before.save(place / "before.onnx")
            if applied.after is not None:
                applied.after.save(place / "after.onnx")
            (place / "chain.txt").write_text(culprit.chain + "\n")
            culprit.folder = str(place)
        (folder / "inputs").mkdir(exist_ok=True)
        for number, input_set in enumerate(input_sets):
            write_npz(folder / "inputs" / f"{number}.npz", input_set.arrays)
        (folder / RECORD).write_text(record.to_json() + "\n")
    except OSError as error:
        raise ModelError(f"cannot write {folder}: {error.strerror or error}.", "Check the folder and the free space.") from error


def _clear(folder: Path) -> None:
    """Removes what an earlier bisection left there."""
    for model in folder.glob("*/before.onnx"):
        shutil.rmtree(model.parent)
    shutil.rmtree(folder / "inputs", ignore_errors=True)
