"""What to run on a directory: a level, a chain, or Optimum's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from rewright.api import Chain, chosen_chain
from rewright.integrations.optimum import AutoOptimizationConfig, CompiledConfig, OptimizationConfig, compile
from rewright.model.errors import UsageError
from rewright.passes.contract import Backend, Target
from rewright.registry import chain as registry_chain
from rewright.registry.catalog import Catalog


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        chain, target: what is run, and where the result will run.
        level: the level, where the chain is that of one.
        config: Optimum's options that stand for the chain, where there are any.
        compiled: what became of them, where the caller gave them.
    """

    chain: Chain
    target: Target
    level: str | None = None
    config: OptimizationConfig | None = None
    compiled: CompiledConfig | None = None

    @property
    def messages(self) -> list[str]:
        """What the caller should know of the options."""
        return [str(message) for message in self.compiled.messages] if self.compiled is not None else []


def make_plan(
    config: Any,
    level: str,
    chain: str | registry_chain.Chain | None,
    backend: Backend,
    target: Target | None,
    model_type: str | None,
) -> Plan:
    """The plan for these arguments of ``optimize``.

    Raises:
        UsageError: two of them name a chain, or one names what there is not.
    """
    if config is not None and chain is not None:
        raise UsageError("the config and the chain each name a chain.", "Give one of them.")
    if config is None or isinstance(config, str):
        return _of_chain(chosen_chain(level if config is None else config, chain, backend), backend, target)
    if isinstance(config, CompiledConfig):
        compiled = replace(config, chain=chosen_chain(level, config.chain, backend))
    else:
        given = config if isinstance(config, OptimizationConfig) else OptimizationConfig.from_optimum(config)
        compiled = compile(given, model_type=model_type, backend=backend)
    return Plan(compiled.chain, target if target is not None else compiled.target, None, compiled.config, compiled)


def _of_chain(chain: Chain, backend: Backend, target: Target | None) -> Plan:
    target = target if target is not None else "cpu"
    level = next((name for name in chain.catalog.levels if _level(name, chain.catalog, backend) == chain), None)
    return Plan(chain, target, level, preset_of_level(level, target))


def preset_of_level(level: str | None, target: Target) -> OptimizationConfig | None:
    """Optimum's options that stand for a level; None where there are none."""
    return _PRESETS[level](for_gpu=target == "cuda") if level in _PRESETS else None


def _level(name: str, catalog: Catalog, backend: Backend) -> Chain:
    made = Chain(name, catalog=catalog)
    return made if backend == "standalone" else made.with_backend(backend)[0]


def _with_float16(for_gpu: bool) -> OptimizationConfig:
    """As Optimum's O4, but for the device that was asked for: Optimum's is always for a GPU."""
    return AutoOptimizationConfig.O3(for_gpu=for_gpu, fp16=True)


_PRESETS: Final[Mapping[str | None, Callable[..., OptimizationConfig]]] = {
    "O1": AutoOptimizationConfig.O1,
    "O2": AutoOptimizationConfig.O2,
    "O3": AutoOptimizationConfig.O3,
    "O4": _with_float16,
}
