"""Reproducer folders: everything that is needed to see a failure again, and to see that it is mended.

A folder holds ``before.onnx`` (the model before the failing pass, reduced to what shows the failure), ``chain.txt`` (that pass
alone), ``inputs/*.npz``, ``failure.json`` (versions, the gate's evidence, and how far the model was reduced) and ``COMMAND`` (one
line).
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewright.model.carrier import Model
from rewright.model.errors import ModelError, UsageError
from rewright.passes.contract import Pass
from rewright.registry.grammar import format_pass
from rewright.registry.options import chosen_options
from rewright.report.model import EnvironmentReport, PassReport
from rewright.verify.input_files import write_npz
from rewright.verify.inputs import InputSet
from rewright.verify.reduction import ReductionEvidence


@dataclass(frozen=True)
class Reproducer:
    """A reproducer folder, read."""

    model: Path
    chain: str
    inputs: Path | None
    target: str
    verify: str
    reason: str


def write_reproducer(
    folder: Path,
    model: Model,
    step: Pass,
    input_sets: Iterable[InputSet],
    record: PassReport,
    environment: EnvironmentReport,
    target: str,
    verify: str,
    reduction: ReductionEvidence | None = None,
    options: Sequence[str] = (),
) -> None:
    """Writes the folder; a folder of that name from an earlier run is replaced, a foreign one is not touched.

    ``reduction`` says how the model was made smaller, ``options`` what the command needs beside the folder.

    Raises:
        ModelError: it cannot be written; what was written of it is removed.
    """
    if folder.exists() and not (folder / "failure.json").is_file():
        raise ModelError(f"{folder} exists and is no reproducer.", "Remove it, or choose another place for reproducers.")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        (folder / "inputs").mkdir(parents=True)
        model.save(folder / "before.onnx")
        (folder / "chain.txt").write_text(format_pass(step.name, chosen_options(step)) + "\n")
        for number, input_set in enumerate(input_sets):
            if input_set.arrays:
                write_npz(folder / "inputs" / f"{number}.npz", input_set.arrays)
        (folder / "COMMAND").write_text(" ".join(["rewright reproduce", *options, shlex.quote(str(folder))]) + "\n")
        failure = {
            "reproducer": 1,
            "pass": record.model_dump(mode="json", exclude={"sites", "rejections"}),
            "target": target,
            "verify": verify,
            "reduction": None if reduction is None else reduction.model_dump(mode="json"),
            "environment": environment.model_dump(mode="json"),
        }
        (folder / "failure.json").write_text(json.dumps(failure, indent=2) + "\n")
    except (OSError, ModelError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ModelError(f"cannot write {folder}: {error}") from error


def read_reproducer(folder: Path) -> Reproducer:
    """Reads a reproducer folder.

    Raises:
        UsageError: the folder is not one, or is incomplete.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.", "Give the folder that a failed run left.")
    try:
        failure = json.loads((folder / "failure.json").read_text())
        chain = (folder / "chain.txt").read_text().strip()
        inputs = folder / "inputs"
        return Reproducer(
            model=folder / "before.onnx",
            chain=chain,
            inputs=inputs if inputs.is_dir() and any(inputs.iterdir()) else None,
            target=str(failure["target"]),
            verify=str(failure["verify"]),
            reason=str(failure["pass"]["reason"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} is not a complete reproducer: {error}.", "Run the failing command again.") from error
