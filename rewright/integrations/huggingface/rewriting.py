"""Rewriting the models of a directory, one after the other, and writing all of it or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from rewright.integrations.huggingface.saving import DATA_SUFFIX, carry_over, check_save_dir, deliver, staged
from rewright.integrations.huggingface.source import ModelDirectory
from rewright.model.carrier import Model
from rewright.model.save import save
from rewright.report.directory import DirectoryReport
from rewright.report.model import Verdict
from rewright.run import GateError, Progress, RunResult


@dataclass
class DirectoryResult:
    """What became of a directory.

    Attributes:
        files: the result of each model, by its name relative to the source directory.
        report: all of their reports.
        save_dir: where the result is; nothing was written with the verdict "failed".
    """

    files: dict[str, RunResult]
    report: DirectoryReport
    save_dir: Path

    @property
    def verdict(self) -> Verdict:
        """The worst one of the files."""
        return self.report.verdict

    @property
    def messages(self) -> list[str]:
        """What was decided without being asked for, and what the options could not do."""
        return self.report.messages


class DirectoryGateError(GateError):
    """A gate failed on one of the models, and the policy is to raise. ``directory`` is the record up to there."""

    def __init__(self, name: str, error: GateError, directory: DirectoryReport) -> None:
        super().__init__(f"{name}: {error.message}", error.hint, error.report)
        self.directory = directory


@dataclass(frozen=True)
class Task:
    """One model of a directory.

    Attributes:
        name: relative to the directory.
        model: as it is there.
        reproducers: where failures leave reproducers.
        progress: of the whole directory.
    """

    name: str
    model: Model
    reproducers: Path
    progress: Progress | None


@dataclass(frozen=True)
class Written:
    """A directory that is complete but for its record: where it is, and the file that each model became."""

    stage: Path
    names: Mapping[str, str]

    def data_of(self, name: str) -> str | None:
        """The name of the file with the weights of a model; None where they are inside."""
        data = f"{self.names[name]}{DATA_SUFFIX}"
        return PurePosixPath(data).name if (self.stage / data).is_file() else None

    def described(self, report: DirectoryReport) -> dict[str, dict[str, Any]]:
        """How each model fared, by the name of its file."""
        return {
            self.names[name]: {
                "verdict": each.verdict,
                "reason": each.reason,
                "nodes_before": each.model.nodes_before,
                "nodes_after": each.model.nodes_after,
                "external_data": self.data_of(name),
            }
            for name, each in report.files.items()
        }


def rewrite_directory(
    source: ModelDirectory,
    save_dir: str | PathLike[str],
    report: DirectoryReport,
    rewrite: Callable[[Task], RunResult],
    record: Callable[[Written], None],
    *,
    suffix: str | None = None,
    external_data: bool | None = None,
    progress: Progress | None = None,
) -> DirectoryResult:
    """Rewrites every model of a directory, and writes one that holds them and what belongs to them.

    Args:
        source: the directory.
        save_dir: where the result goes; written when all models are done, and only if none of them failed.
        report: gets the reports of the models.
        rewrite: makes the new model.
        record: writes ``ort_config.json``.
        suffix: "quantized" makes model_quantized.onnx of model.onnx; None keeps the names.
        external_data: see ``rewright.model.save.save``.
        progress: called with (what, done, total), ``what`` beginning with the file.

    Raises:
        UsageError: ``save_dir`` cannot take the result.
        ModelError: the result cannot be written.
        DirectoryGateError: ``rewrite`` has raised GateError; nothing was written.
    """
    place = Path(os.path.realpath(save_dir))
    names = {name: _written_name(name, suffix) for name in source.models}
    check_save_dir(place, source, names.values())
    files: dict[str, RunResult] = {}
    with staged(place) as stage:
        for index, (name, model) in enumerate(source.models.items()):
            # not inside, where Optimum would take the models of reproducers for models to load
            reproducers = place.with_name(place.name + ".reproducers") / PurePosixPath(name).with_suffix("")
            task = Task(name, model, reproducers, _progress_of(progress, name, index, len(source.models)))
            try:
                result = rewrite(task)
            except GateError as error:
                report.add(name, error.report)
                raise DirectoryGateError(name, error, report) from error
            files[name] = result
            report.add(name, result.report)
            if report.verdict != "failed":
                written = stage / names[name]
                written.parent.mkdir(parents=True, exist_ok=True)
                save(result.model, written, external_data, data_suffix=DATA_SUFFIX)
        if report.verdict != "failed":
            report.save_dir = str(save_dir)
            report.carried = carry_over(source, stage)
            record(Written(stage, names))
            deliver(stage, place)
    return DirectoryResult(files, report, Path(save_dir))


def _written_name(name: str, suffix: str | None) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}_{suffix}{path.suffix}")) if suffix else name


def _progress_of(progress: Progress | None, name: str, index: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{name}: {what}", index * total + done, count * total)
