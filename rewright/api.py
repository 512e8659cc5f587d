"""The public functions: load, optimize, verify, explain, reproduce; and chains that can run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self, get_args

from onnx import ModelProto

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.passes.contract import Backend, Target
from rewright.registry import chain as registry_chain
from rewright.registry.catalog import Catalog, default_catalog, did_you_mean
from rewright.report.backends import BackendComparison, BackendRun, compare
from rewright.report.fates import fates
from rewright.report.model import Report
from rewright.reproducer import Reproducer, read_reproducer
from rewright.run import (
    FAILURE_POLICIES,
    VERIFY_MODES,
    FailurePolicy,
    Progress,
    RunOptions,
    RunResult,
    VerifyMode,
    run_passes,
)
from rewright.run.input_choice import choose_input_sets
from rewright.run.options import PARITY_MODES
from rewright.verify.budget import QuantizationBudget

Source = str | PathLike[str] | ModelProto | Model
Inputs = str | PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]]


class Chain(registry_chain.Chain):
    """A chain of passes that can run.

    ``Chain("constant-folding, gelu, skip-layer-norm")`` or ``Chain("O2, my-pass{option=3}")``; text, YAML, TOML and lists of
    configured passes are equal ways to write one. See ``rewright.registry.chain.Chain`` for the forms.
    """

    def run(
        self,
        model: Source,
        *,
        target: Target = "cpu",
        verify: VerifyMode = "model",
        on_failure: FailurePolicy = "rollback",
        inputs: Inputs | None = None,
        seed: int = 0,
        budget: str | QuantizationBudget | None = None,
        reproducers: str | PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> RunResult:
        """Runs the chain on a model, which is not modified.

        Args:
            model: a path, a ModelProto or a Model.
            target: where the result will run: "cpu", "cuda", "dml" or "portable" (standard ops only).
            verify: "off", "structure", "model" (numeric parity after every pass), "sites" (and each rewrite by itself, on hard
                values) or "strict".
            on_failure: "rollback" undoes what is wrong of a pass and goes on; "skip" undoes the whole pass; "raise" raises
                GateError. The option ``on_failure`` of a pass outranks it.
            inputs: what parity runs on: an .npz file, a folder, arrays by input name, or any iterable of such; by default what
                a plugin offers for this model, else inputs are made from the model.
            seed: of the made inputs.
            budget: what quantizing passes may lose, such as "sqnr=25, top1=0.99"; see ``QuantizationBudget``.
            reproducers: folder that gets one reproducer for each failure.
            progress: called with (what, done, total) before each pass.

        Raises:
            ModelError: the model cannot be read.
            UsageError: an option or an input is wrong.
            GateError: a pass failed, with ``on_failure="raise"``.
        """
        _check_choice("target", target, get_args(Target))
        _check_choice("verify", verify, VERIFY_MODES)
        _check_choice("on_failure", on_failure, FAILURE_POLICIES)
        loaded = load(model)
        is_compared = verify in PARITY_MODES or inputs is not None
        options = RunOptions(
            target=target,
            verify=verify,
            on_failure=on_failure,
            input_sets=choose_input_sets(self.catalog, loaded, inputs) if is_compared else None,
            seed=seed,
            budget=QuantizationBudget.of(budget),
            reproducers=None if reproducers is None else Path(reproducers),
            progress=progress,
            plugins=self.catalog.plugins,
            warnings=(*self.warnings, *self.inserted),
        )
        return run_passes(loaded, self.passes, self.text, options)

    @classmethod
    def at_level(cls, level: str, *, catalog: Catalog | None = None) -> Self:
        """The chain of a level, "O2"; also "2" or 2.

        Raises:
            UsageError: there is no such level.
        """
        catalog = catalog if catalog is not None else default_catalog()
        name = str(level)
        spellings = (name, f"O{name}", name.upper())
        for spelling in spellings:
            if spelling in catalog.levels:
                return cls(spelling, catalog=catalog)
        near = did_you_mean(name, catalog.levels)
        raise UsageError(f"there is no level '{name}'.", f"{near} The levels are {', '.join(catalog.levels)}.".lstrip())


def optimize(
    model: Source,
    output: str | PathLike[str] | None = None,
    *,
    level: str = "O2",
    chain: str | registry_chain.Chain | None = None,
    backend: Backend = "standalone",
    target: Target = "cpu",
    verify: VerifyMode = "model",
    on_failure: FailurePolicy = "rollback",
    inputs: Inputs | None = None,
    seed: int = 0,
    budget: str | QuantizationBudget | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Optimizes a model, verifies every step, and writes the result.

    Args:
        model: a path, a ModelProto or a Model; never modified.
        output: where the result goes; None writes nothing. Failures leave reproducers in ``<output>.reproducers``.
        level: "O0" to "O3"; not used if ``chain`` is given.
        chain: chain text or a Chain.
        backend: who carries the passes out, where they have the choice.
        target, verify, on_failure, inputs, seed, budget, progress: see ``Chain.run``.

    Returns:
        The optimized model and the report. With verdict "failed" nothing is written.

    Raises:
        ModelError, UsageError, PluginError, GateError: see ``Chain.run``.
    """
    made = chosen_chain(level, chain, backend)
    target_path = None if output is None else Path(output)
    if target_path is not None and not target_path.absolute().parent.is_dir():
        raise UsageError(f"the folder {target_path.absolute().parent} does not exist.", "Make it, or choose another output path.")
    result = made.run(
        model,
        target=target,
        verify=verify,
        on_failure=on_failure,
        inputs=inputs,
        seed=seed,
        budget=budget,
        reproducers=None if target_path is None else target_path.with_name(target_path.name + ".reproducers"),
        progress=progress,
    )
    if target_path is not None and result.report.verdict != "failed":
        result.save(target_path)
    return result


def chosen_chain(level: str, chain: str | registry_chain.Chain | None, backend: Backend = "standalone") -> Chain:
    """The chain if there is one, else that of the level, on a backend as far as its passes have that one.

    Raises:
        UsageError, PluginError: see ``Chain``; or there is no such backend.
    """
    _check_choice("backend", backend, get_args(Backend))
    made = Chain.at_level(level) if chain is None else _runnable(chain)
    return made if backend == "standalone" else made.with_backend(backend)[0]


def explain(
    model: Source,
    *,
    chain: str | registry_chain.Chain = "O2",
    target: Target = "cpu",
    backend: Backend = "standalone",
) -> Report:
    """Where the passes of a chain fire on a model, and why not elsewhere: a report without verification, nothing is written.

    ``report.fates`` says for each softmax, normalisation and activation what it became, or what stood in the way. Functions
    of the model are inlined first, so that what they hold has a name.

    What ONNX Runtime makes is checked site by site all the same, since nobody has proven it.

    Args:
        model: a path, a ModelProto or a Model.
        chain: chain text or a Chain.
        target: where the result would run.
        backend: who carries the passes out, where they have the choice.

    Raises:
        ModelError, UsageError, PluginError: see ``Chain.run``.
    """
    _check_choice("backend", backend, get_args(Backend))
    return _explained(_at_backend(_runnable(chain), backend), _without_functions(load(model)), target)


def compare_backends(
    model: Source,
    *,
    chain: str | registry_chain.Chain = "O2",
    target: Target = "cpu",
    backends: Sequence[Backend] = get_args(Backend),
) -> BackendComparison:
    """What each backend makes of every pass of a chain, and of every softmax, normalisation and activation of a model.

    Each run is that of ``explain``. A pass that a backend does not have is carried out as it is without one.

    Args:
        model, chain, target: see ``explain``.
        backends: which, in the order of the comparison; all three by default.

    Raises:
        ModelError, UsageError, PluginError: see ``Chain.run``.
    """
    for backend in backends:
        _check_choice("backend", backend, get_args(Backend))
    if not backends:
        raise UsageError("there are no backends to compare.", f"Name some of {', '.join(get_args(Backend))}.")
    made, loaded = _runnable(chain), _without_functions(load(model))
    chains = {backend: _at_backend(made, backend) for backend in backends}
    return compare({backend: BackendRun(item.passes, _explained(item, loaded, target)) for backend, item in chains.items()})


def _at_backend(chain: Chain, backend: Backend) -> Chain:
    return chain if backend == "standalone" else chain.with_backend(backend)[0]


def _without_functions(model: Model) -> Model:
    return Chain("inline-functions").run(model, verify="off").model if model.proto.functions else model


def _explained(chain: Chain, model: Model, target: Target) -> Report:
    is_deferred = any(part.is_deferred for step in chain.passes for part in step.parts())
    report = chain.run(model, target=target, verify="structure" if is_deferred else "off").report
    report.fates = fates(model, report.passes)
    return report


def reproduce(folder: str | PathLike[str], *, catalog: Catalog | None = None) -> tuple[Reproducer, RunResult]:
    """Runs a reproducer folder again. The failure is mended if no pass of the report failed or was rolled back.

    Raises:
        UsageError: the folder is no reproducer, or its pass is not known here.
    """
    found = read_reproducer(Path(folder))
    chain = Chain(found.chain, catalog=catalog)
    _check_choice("target", found.target, get_args(Target))
    _check_choice("verify", found.verify, VERIFY_MODES)
    result = chain.run(
        found.model,
        target=found.target,  # type: ignore[arg-type]
        verify=found.verify,  # type: ignore[arg-type]
        inputs=found.inputs,
    )
    return found, result


def _runnable(chain: str | registry_chain.Chain) -> Chain:
    return chain if isinstance(chain, Chain) else Chain(chain)


def _check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        near = did_you_mean(str(value), choices)
        raise UsageError(f"{what} is '{value}'.", f"{near + ' ' if near else ''}It is one of {', '.join(choices)}.")
