"""What to run on a directory: a level, a chain, or Optimum's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewright.api import Chain, chosen_chain
from rewright.integrations.optimum import AutoOptimizationConfig, CompiledConfig, OptimizationConfig, compile
from rewright.model.errors import UsageError
from rewright.passes.contract import Backend, Target
from rewright.registry import chain as registry_chain


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        chain, target: what is run, and where the result will run.
        level: the level, where the chain is that of a level.
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
    if isinstance(config, CompiledConfig):
        given, compiled = None, config
    elif config is None or isinstance(config, str):
        if config is not None and chain is not None:
            raise UsageError(f"the config '{config}' and the chain each name a chain.", "Give one of them.")
        return _of_level(level if config is None else config, chain, backend, target)
    else:
        given = config if isinstance(config, OptimizationConfig) else OptimizationConfig.from_optimum(config)
        compiled = compile(given, model_type=model_type, backend=backend)
    if chain is not None:
        raise UsageError(
            "the config and the chain each name a chain.", "Give one of them; print(compile(config)) shows the config's."
        )
    return Plan(compiled.chain, target if target is not None else compiled.target, None, given, compiled)


def _of_level(level: str, chain: str | registry_chain.Chain | None, backend: Backend, target: Target | None) -> Plan:
    made = chosen_chain(level, chain, backend)
    target = target if target is not None else "cpu"
    if chain is not None:
        return Plan(made, target)
    name = level.upper() if level.upper().startswith("O") else f"O{level}"
    presets = {"O1": AutoOptimizationConfig.O1, "O2": AutoOptimizationConfig.O2, "O3": AutoOptimizationConfig.O3}
    preset = presets[name](for_gpu=target == "cuda") if name in presets else None
    return Plan(made, target, name, preset)
