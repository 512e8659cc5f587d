"""How to quantize a directory: a preset, Optimum's options, or a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from rewright.integrations.optimum import CompiledQuantization, QuantizationConfig, compile_quantization, wording
from rewright.integrations.optimum.quantizing import config_of
from rewright.model.carrier import Model
from rewright.model.errors import SelectionError, UsageError
from rewright.passes.contract import Backend, Pass, Target
from rewright.passes.selection import QuantizingPass
from rewright.passes.session import PassSession, label
from rewright.quant.presets import AUTO, Mode, preset_of
from rewright.registry.catalog import Catalog
from rewright.registry.options import with_options
from rewright.tuning.request import QuantizationRequest


@dataclass(frozen=True)
class QuantizationPlan:
    """How to quantize.

    Attributes:
        request: what to run, given the path of calibration data, or None.
        mode, target: of the result.
        catalog: where the passes are.
        level: what is done before, as a level or as chain text.
        step: the quantizing pass, which may lack the data; None for a preset, which selects no nodes.
        calibration: the data that came with the config.
        compiled: what became of Optimum's options, where they were given.
    """

    request: Callable[[Any], QuantizationRequest]
    mode: Mode
    target: Target
    catalog: Catalog | None
    level: str
    step: Pass | None = None
    calibration: Any = None
    compiled: CompiledQuantization | None = None

    @property
    def messages(self) -> list[str]:
        """What the caller should know of the options."""
        messages = self.compiled.messages if self.compiled is not None else ()
        # that data is needed needs no saying where it was given, and is an error where not
        return [str(message) for message in messages if message.text != wording.NEEDS_DATA]

    @property
    def external_data(self) -> bool | None:
        """Whether weights go to a file beside the model; None leaves them where they were."""
        return True if self.compiled is not None and self.compiled.config.external_data else None

    def config(self, request: QuantizationRequest) -> QuantizationConfig | None:
        """Optimum's options that stand for what was run; None where there are none."""
        return self.compiled.config if self.compiled is not None else config_of(request.step(self.catalog))


def make_quantization_plan(
    config: Any,
    mode: Mode | None,
    level: str | None,
    calibration_config: Any,
    backend: Backend,
    target: Target | None,
    catalog: Catalog | None = None,
) -> QuantizationPlan:
    """The plan for these arguments of ``quantize``.

    Raises:
        UsageError: two of them say the same thing, or one names what there is not.
    """
    if config is None or isinstance(config, str):
        if calibration_config is not None:
            raise UsageError(
                "a calibration config goes with a config.",
                "Give a QuantizationConfig, such as AutoQuantizationConfig.avx2(is_static=True).",
            )
        return _of_preset(AUTO if config is None else config, mode or "dynamic", level or "O2", backend, target, catalog)
    if mode is not None:
        raise UsageError(f"the config and the mode '{mode}' each say how to quantize.", "Give one of them.")
    if isinstance(config, QuantizationRequest | CompiledQuantization):
        others = {"level": level, "calibration_config": calibration_config, "backend": _asked(backend)}
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise UsageError(f"the {type(config).__name__} says already what {given[0]} says.", "Give one of them.")
    if isinstance(config, QuantizationRequest):
        return _of_request(config, target, catalog)
    if not isinstance(config, CompiledQuantization):
        config = compile_quantization(config, calibration_config, level=level, backend=backend, catalog=catalog)
    chosen = target if target is not None else config.target
    return QuantizationPlan(config.request, config.mode, chosen, catalog, config.level, config.step, compiled=config)


def _asked(backend: Backend) -> Backend | None:
    return None if backend == "standalone" else backend


def _of_preset(
    preset: str, mode: Mode, level: str, backend: Backend, target: Target | None, catalog: Catalog | None
) -> QuantizationPlan:
    preset_of(preset).preset.of(mode)  # what is wrong is told before anything is read

    def request(data: Any) -> QuantizationRequest:
        return QuantizationRequest(mode, preset, level, calibration=data, backend=backend)

    usual = QuantizationRequest(preset=preset).usual_target
    return QuantizationPlan(request, mode, target if target is not None else usual, catalog, level)


def _of_request(given: QuantizationRequest, target: Target | None, catalog: Catalog | None) -> QuantizationPlan:
    def request(data: Any) -> QuantizationRequest:
        return given if data is None else replace(given, calibration=data)

    chosen = target if target is not None else given.usual_target
    # a folder with an entry for each model is no calibration data of any
    step = replace(
        given, mode="dynamic", preset=None, calibration=None, backend="standalone", operators=(), options={}, bits=None
    )
    is_selecting = given.nodes or given.exclude
    selecting = step.step(catalog) if is_selecting else None
    return QuantizationPlan(request, given.mode, chosen, catalog, given.level, selecting, given.calibration)


@dataclass(frozen=True)
class Selection:
    """Which of the names and patterns of a request fit one model.

    Attributes:
        nodes, exclude: those that do; where none of ``nodes`` does, everything is excluded.
        fits: all that do.
    """

    nodes: tuple[str, ...]
    exclude: tuple[str, ...]
    fits: frozenset[str]


def selections(plan: QuantizationPlan, models: Mapping[str, Model]) -> dict[str, Selection]:
    """What fits each of several models after the level; empty where no names and patterns were given.

    Raises:
        SelectionError: one of them fits none of the models.
    """
    nodes, exclude = (tuple(getattr(plan.step, option, ())) for option in ("nodes", "exclude"))
    if plan.step is None or not (nodes or exclude):
        return {}
    found: dict[str, Selection] = {}
    before = QuantizationRequest(preset=None, level=plan.level)
    names: dict[str, None] = {}
    for name, model in models.items():
        session = PassSession(plan.step, before.prepared(model, plan.catalog, plan.target), plan.target)
        session.ensure_facts()
        names |= {label(node): None for graph in session.view.graphs() for node in graph.nodes}
        wanted, left_out = (_fitting(plan.step, session, patterns) for patterns in (nodes, exclude))
        all_of_it = ("*",) if nodes and not wanted else left_out
        found[name] = Selection(wanted, all_of_it, frozenset({*wanted, *left_out}))
    for pattern in (*nodes, *exclude):
        if not any(pattern in each.fits for each in found.values()):
            near = get_close_matches(pattern.strip("*"), names, n=3, cutoff=0.4)
            hint = f"Near names: {', '.join(near)}." if near else "`rewright explain` lists the nodes of a model."
            raise SelectionError(f"'{pattern}' fits no node of {', '.join(found)}.", hint)
    return found


def _fitting(step: Pass, session: PassSession, patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(pattern for pattern in patterns if _fits(with_options(step, {"nodes": [pattern], "exclude": []}), session))


def _fits(step: Pass, session: PassSession) -> bool:
    try:
        if isinstance(step, QuantizingPass):
            step.chosen(session)
    except SelectionError:
        return False
    return True
