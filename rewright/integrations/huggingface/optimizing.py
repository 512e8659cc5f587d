"""Optimizing the models of a directory."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from rewright.api import Inputs
from rewright.integrations.huggingface.inputs import inputs_by_model
from rewright.integrations.huggingface.plan import make_plan
from rewright.integrations.huggingface.rewriting import DirectoryResult, Task, Written, rewrite_directory
from rewright.integrations.huggingface.source import read_directory
from rewright.integrations.optimum import save_ort_config
from rewright.passes.contract import Backend, Target
from rewright.registry import chain as registry_chain
from rewright.report.directory import DirectoryReport
from rewright.run import FailurePolicy, Progress, RunResult, VerifyMode
from rewright.verify.budget import QuantizationBudget


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
    report = DirectoryReport(directory=str(source.path), chain=plan.chain.text, messages=[*plan.messages, *source.messages])

    def rewrite(task: Task) -> RunResult:
        return plan.chain.run(
            task.model,
            target=plan.target,
            verify=verify,
            on_failure=on_failure,
            inputs=given.get(task.name),
            seed=seed,
            budget=budget,
            reproducers=task.reproducers,
            progress=task.progress,
        )

    def record(written: Written) -> None:
        files = written.described(report)
        details = {"level": plan.level, "chain": plan.chain.text, "target": plan.target, "verdict": report.verdict}
        save_ort_config(
            written.stage,
            plan.config,
            plan.compiled,
            use_external_data_format=any(each["external_data"] for each in files.values()),
            quantization=source.recorded("quantization"),
            details={**details, "files": files},
        )

    external_data = True if plan.config is not None and plan.config.external_data else None
    return rewrite_directory(source, save_dir, report, rewrite, record, external_data=external_data, progress=progress)
