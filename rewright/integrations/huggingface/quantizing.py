"""Quantizing the models of a directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

from rewright.api import Inputs
from rewright.integrations.huggingface.inputs import inputs_by_model
from rewright.integrations.huggingface.plan import preset_of_level
from rewright.integrations.huggingface.quantization_plan import (
    QuantizationPlan,
    Selection,
    make_quantization_plan,
    selections,
)
from rewright.integrations.huggingface.rewriting import DirectoryResult, Task, Written, rewrite_directory
from rewright.integrations.huggingface.source import ModelDirectory, read_directory
from rewright.integrations.optimum import save_ort_config
from rewright.model.errors import UsageError
from rewright.passes.contract import Backend, Target
from rewright.quant.calibration.data import Data
from rewright.quant.presets import Mode
from rewright.registry.catalog import Catalog
from rewright.report.directory import DirectoryReport
from rewright.run import FailurePolicy, Progress, VerifyMode
from rewright.tuning.calibrated import calibration_written
from rewright.tuning.quantize import QuantizeResult, run_request
from rewright.tuning.request import QuantizationRequest
from rewright.verify.budget import QuantizationBudget


def quantize(
    model_or_dir: Any,
    save_dir: str | PathLike[str],
    config: Any = None,
    *,
    mode: Mode | None = None,
    level: str | None = None,
    calibration: Data | Mapping[str, Data] | None = None,
    calibration_config: Any = None,
    backend: Backend = "standalone",
    target: Target | None = None,
    budget: str | QuantizationBudget | None = None,
    auto_exclude: bool = False,
    no_slower: bool = False,
    sizes: Mapping[str, int] | None = None,
    threads: int = 0,
    jobs: int | None = None,
    verify: VerifyMode = "model",
    on_failure: FailurePolicy = "rollback",
    inputs: Inputs | Mapping[str, Inputs] | None = None,
    seed: int = 0,
    file_names: str | list[str] | None = None,
    file_suffix: str | None = None,
    catalog: Catalog | None = None,
    progress: Progress | None = None,
) -> DirectoryResult:
    """Optimizes and quantizes every model of a Hugging Face directory, and writes a directory that loads like the first.

    What ``optimize`` says of names, other files and the source holds here too. ``ort_config.json`` has the options for
    quantization as Optimum reads them, and those for the level before.

    Args:
        model_or_dir: the path of a directory with one or several .onnx files, or an ``ORTModel`` of Optimum, of which the models
            that it has loaded are taken.
        save_dir: where the result goes; it is made. Of one that exists, files of the same names are replaced.
        config: how to quantize: a ``QuantizationConfig`` or ``ORTConfig`` of Optimum,
            ``rewright.integrations.optimum.QuantizationConfig``, what ``compile_quantization`` made of one, a
            ``rewright.tuning.request.QuantizationRequest``, or a preset ("avx2"); by default that of this machine.
        mode: with a preset: "dynamic" (the default), "static" or "weight-only".
        level: what is done before, "O2" by default, or what an ORTConfig says; "O0" quantizes the models as they are.
        calibration: data that ranges of activations are measured on, for static quantization: an .npz file with inputs, a folder
            of them, a .json file of ranges, or any iterable of mappings, such as a Hugging Face dataset. For several models a
            mapping of file names to such, or a folder with an entry for each, named like the model without ".onnx".
        calibration_config: how; a ``CalibrationConfig`` of Optimum or of ``rewright.integrations.optimum``.
        backend: who quantizes; the level is always carried out by rewright's own passes.
        target: where the result will run; None means what ``config`` says, else "cpu".
        budget, auto_exclude, no_slower, sizes, threads, jobs: see ``rewright.quantize``; each model by itself.
        inputs: what is compared on; see ``optimize``.
        verify, on_failure, seed: see ``rewright.Chain.run``.
        file_names: the .onnx files to take, where not all are meant: names, or paths relative to the directory.
        file_suffix: "quantized" writes model_quantized.onnx for model.onnx, as Optimum does; None keeps the names.
        catalog: where the passes are.
        progress: called with (what, done, total), ``what`` beginning with the file.

    Raises:
        ModelError: the directory or a model cannot be read, or the result cannot be written.
        UsageError: an option, an input, the data, or one of the two directories is wrong.
        DirectoryGateError: a pass failed, with ``on_failure="raise"``; nothing was written.
    """
    plan = make_quantization_plan(config, mode, level, calibration_config, backend, target, catalog)
    if plan.mode == "dynamic" and calibration is not None:
        raise UsageError(
            "dynamic quantization measures activations at run time and reads no calibration data.",
            "Leave the calibration out, or quantize statically.",
        )
    source = read_directory(model_or_dir, file_names)
    names = list(source.models)
    data = calibration if calibration is not None else plan.calibration
    work = _Quantization(
        plan,
        source,
        inputs_by_model(data, names, "calibration data", (".npz", ".json")),
        inputs_by_model(inputs, names),
        {
            "budget": budget,
            "auto_exclude": auto_exclude,
            "no_slower": no_slower,
            "sizes": sizes,
            "threads": threads,
            "jobs": jobs,
            "target": plan.target,
            "verify": verify,
            "on_failure": on_failure,
            "seed": seed,
        },
        DirectoryReport(directory=str(source.path), chain="", messages=[*plan.messages, *source.messages]),
    )
    work.check()
    return rewrite_directory(
        source,
        save_dir,
        work.report,
        work.rewrite,
        work.record,
        suffix=file_suffix,
        external_data=plan.external_data,
        progress=progress,
    )


@dataclass
class _Quantization:
    plan: QuantizationPlan
    source: ModelDirectory
    data: Mapping[str, Any]
    inputs: Mapping[str, Any]
    how: Mapping[str, Any]
    report: DirectoryReport
    selected: Mapping[str, Selection] = field(default_factory=dict)
    results: dict[str, QuantizeResult] = field(default_factory=dict)
    config: Any = None
    level: str = ""

    def check(self) -> None:
        """What can be said before the first model is run.

        Raises:
            UsageError: data is missing, or nodes are named that no model has.
        """
        lacking = [name for name in self.source.models if name not in self.data]
        if self.plan.mode == "static" and self.data and lacking:
            raise UsageError(
                f"there is no calibration data for {', '.join(lacking)}.",
                "Give some for every model, or take only the others (file_names).",
            )
        if self.plan.mode != "static" or not self.data:
            self._adopt(self.plan.request(None), is_kept=True)
        if len(self.source.models) > 1:
            self.selected = selections(self.plan, self.source.models)

    def _adopt(self, request: QuantizationRequest, *, is_kept: bool) -> None:
        """What the record says was run; the path of data that is gone afterwards is no part of it."""
        if not self.report.chain:
            self.report.chain = request.text(self.plan.catalog, with_data=is_kept)
            self.config, self.level = self.plan.config(request), request.level_name

    def rewrite(self, task: Task) -> QuantizeResult:
        data = self.data.get(task.name)
        with calibration_written(task.model, data) as (place, left_out):
            request = self.plan.request(place)
            self._adopt(request, is_kept=data is None or isinstance(data, str | PathLike))
            if task.name in self.selected:
                selection = self.selected[task.name]
                request = replace(request, nodes=selection.nodes, exclude=selection.exclude)
            result = run_request(
                task.model,
                None,
                request,
                inputs=self.inputs.get(task.name),
                catalog=self.plan.catalog,
                reproducers=task.reproducers,
                progress=task.progress,
                **self.how,
            )
        if left_out:
            result.report.warnings.append(left_out)
        self.results[task.name] = result
        return result

    def record(self, written: Written) -> None:
        """Writes ort_config.json: the options for both steps, the chain, and how each model fared."""
        files = written.described(self.report)
        for name, result in self.results.items():
            found = result.report.quantization
            files[written.names[name]] |= {
                "quantized": {op: [each.quantized, each.total] for op, each in found.coverage.items()} if found else {},
                "kept_in_float": dict(result.kept_in_float),
            }
        compiled = self.plan.compiled
        before = compiled.config.optimization if compiled is not None else None
        save_ort_config(
            written.stage,
            before or preset_of_level(self.level, self.plan.target) or self.source.recorded("optimization"),
            compiled,
            use_external_data_format=any(each["external_data"] for each in files.values()),
            quantization=self.config.to_section() if self.config is not None else self.source.recorded("quantization"),
            details={
                "level": self.level,
                "chain": self.report.chain,
                "target": self.plan.target,
                "verdict": self.report.verdict,
                "files": files,
                **(
                    {"calibration": compiled.calibration.model_dump(exclude_none=True)}
                    if compiled is not None and compiled.config.is_static
                    else {}
                ),
            },
        )
