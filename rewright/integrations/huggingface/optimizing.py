"""Optimizing the models of a directory, one after the other, and writing all of it or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from rewright.api import Inputs
from rewright.integrations.huggingface.inputs import inputs_by_model
from rewright.integrations.huggingface.plan import Plan, make_plan
from rewright.integrations.huggingface.saving import DATA_SUFFIX, carry_over, check_save_dir, deliver, staged
from rewright.integrations.huggingface.source import ModelDirectory, read_directory
from rewright.integrations.optimum import save_ort_config
from rewright.model.save import save
from rewright.passes.contract import Backend, Target
from rewright.registry import chain as registry_chain
from rewright.report.directory import DirectoryReport
from rewright.report.model import Verdict
from rewright.run import FailurePolicy, GateError, Progress, RunResult, VerifyMode
from rewright.verify.budget import QuantizationBudget


@dataclass
class DirectoryResult:
    """What became of a directory.

    Attributes:
        files: the result of each model, by its name relative to the directory.
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


def optimize(
    model_or_dir: Any,
    save_dir: str | PathLike[str],
    config: Any = None,
    *,
    level: str = "O2",
    chain: str | registry_chain.Chain | None = None,
    backend: Backend = "standalone",
    target: Target | None = None,
    verify: VerifyMode = "model",
    on_failure: FailurePolicy = "rollback",
    inputs: Inputs | Mapping[str, Inputs] | None = None,
    seed: int = 0,
    budget: str | QuantizationBudget | None = None,
    file_names: str | list[str] | None = None,
    progress: Progress | None = None,
) -> DirectoryResult:
    """Optimizes every model of a Hugging Face directory, verifies every step, and writes a directory that loads like the first.

    The names of the .onnx files stay, and configuration, tokenizer and processor files are copied, so that
    ``ORTModelFor….from_pretrained(save_dir)`` needs no further arguments. The source directory is never modified. The new one
    is written when all models are done, and only if none of them failed.

    Args:
        model_or_dir: the path of a directory with one or several .onnx files, or an ``ORTModel`` of Optimum, of which the models
            that it has loaded are taken.
        save_dir: where the result goes; it is made. Of one that exists, files of the same names are replaced.
        config: what to run: a level ("O2"), an ``OptimizationConfig`` or ``ORTConfig`` of Optimum,
            ``rewright.integrations.optimum.OptimizationConfig``, or what ``compile`` made of one.
        level, chain: what to run where there is no ``config``; see ``rewright.optimize``.
        backend: who carries the passes out, where they have the choice.
        target: where the result will run; None means what ``config`` says, else "cpu".
        inputs: what is compared on. For one model as in ``rewright.optimize``. For several a mapping of file names to such, or a
            folder that holds, for each model that has inputs, a folder or an .npz file of its name without ".onnx".
        verify, on_failure, seed, budget: see ``rewright.Chain.run``.
        file_names: the .onnx files to take, where not all are meant: names, or paths relative to the directory.
        progress: called with (what, done, total) before each pass, ``what`` beginning with the file.

    Raises:
        ModelError: the directory or a model cannot be read, or the result cannot be written.
        UsageError: an option, an input, or one of the two directories is wrong.
        DirectoryGateError: a pass failed, with ``on_failure="raise"``; nothing was written.
    """
    source = read_directory(model_or_dir, file_names)
    plan = make_plan(config, level, chain, backend, target, source.model_type)
    given = inputs_by_model(inputs, list(source.models))
    place = Path(os.path.realpath(save_dir))
    check_save_dir(place, source)
    report = DirectoryReport(directory=str(source.path), chain=plan.chain.text, messages=[*plan.messages, *source.messages])
    files: dict[str, RunResult] = {}
    with staged(place) as stage:
        for index, (name, model) in enumerate(source.models.items()):
            try:
                result = plan.chain.run(
                    model,
                    target=plan.target,
                    verify=verify,
                    on_failure=on_failure,
                    inputs=given.get(name),
                    seed=seed,
                    budget=budget,
                    # not inside, where Optimum would take the models of reproducers for models to load
                    reproducers=place.with_name(place.name + ".reproducers") / PurePosixPath(name).with_suffix(""),
                    progress=_progress_of(progress, name, index, len(source.models)),
                )
            except GateError as error:
                report.add(name, error.report)
                raise DirectoryGateError(name, error, report) from error
            files[name] = result
            report.add(name, result.report)
            if report.verdict != "failed":
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                save(result.model, stage / name, data_suffix=DATA_SUFFIX)
        if report.verdict != "failed":
            report.save_dir = str(save_dir)
            report.carried = carry_over(source, stage)
            _record(plan, source, report, stage)
            deliver(stage, place)
    return DirectoryResult(files, report, Path(save_dir))


def _progress_of(progress: Progress | None, name: str, index: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{name}: {what}", index * total + done, count * total)


def _record(plan: Plan, source: ModelDirectory, report: DirectoryReport, stage: Path) -> None:
    """Writes ort_config.json: the options, the chain, and how each model fared."""
    data = {name: (stage / f"{name}{DATA_SUFFIX}").is_file() for name in report.files}
    files = {
        name: {
            "verdict": each.verdict,
            "reason": each.reason,
            "nodes_before": each.model.nodes_before,
            "nodes_after": each.model.nodes_after,
            "external_data": f"{PurePosixPath(name).name}{DATA_SUFFIX}" if data[name] else None,
        }
        for name, each in report.files.items()
    }
    save_ort_config(
        stage,
        plan.config,
        plan.compiled,
        use_external_data_format=any(data.values()),
        quantization=source.quantization,
        details={"level": plan.level, "chain": plan.chain.text, "target": plan.target, "verdict": report.verdict, "files": files},
    )
