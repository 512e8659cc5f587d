"""Which nodes stay in float because quantizing them makes the model slower where it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rewright.measure.bench import bench
from rewright.measure.record import BenchReport, Interval
from rewright.model.carrier import Model
from rewright.passes.contract import Pass, Target
from rewright.passes.coverage import Covered
from rewright.run.options import Progress
from rewright.tuning.trial import Quantizer
from rewright.verify.input_files import Source as Inputs
from rewright.verify.process import SessionWorker

_MOST_GROUPS: Final = 8
_ROUNDS: Final = 15
_WORTH: Final = 1.02
"""How many times as fast a model has to become for a group to stay in float, in the whole interval."""


@dataclass(frozen=True)
class SpeedChoice:
    """What the measurements decided.

    Attributes:
        excluded: the nodes that stay in float, with the reason.
        measured: the last comparison: the float model first, then what was chosen.
        groups: how many times as fast the quantized model became with a group of nodes in float.
    """

    excluded: Mapping[str, str] = field(default_factory=dict)
    measured: BenchReport | None = None
    groups: Mapping[str, Interval] = field(default_factory=dict)


def keep_what_is_faster(
    prepared: Model,
    step: Pass,
    *,
    inputs: Inputs | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    threads: int = 0,
    target: Target = "cpu",
    rounds: int = _ROUNDS,
    progress: Progress | None = None,
) -> SpeedChoice:
    """Leaves the groups of nodes in float without which the quantized model is faster, and all of them where it is slower still.

    A group is the nodes of one op with weights of one shape. Each is tried against the quantized model in turns; only what the
    whole bootstrap interval says counts.

    Args:
        prepared: what the pass quantizes.
        step: the quantizing pass.
        inputs, sizes, seed, threads, rounds, progress: see ``rewright.measure.bench.bench``.
        target: where the result would run.

    Raises:
        UsageError: an input is wrong, or the model cannot be measured.
    """
    how = {"inputs": inputs, "sizes": sizes, "seed": seed, "threads": threads, "rounds": rounds}
    with SessionWorker() as worker:
        quantizer = Quantizer(prepared, step, target, worker)
        grouped = _groups(prepared, [entry for entry in quantizer.covered() if entry.outcome == "quantized"])
        current = quantizer.without(())
        if current is None or not grouped:
            return SpeedChoice()
        excluded: dict[str, str] = {}
        gains: dict[str, Interval] = {}
        for number, (group, nodes) in enumerate(grouped.items() if len(grouped) > 1 else ()):
            if progress is not None:
                progress(f"measuring {group}", number, len(grouped) + 1)
            candidate = quantizer.without([*excluded, *nodes])
            if candidate is None:
                continue
            found = bench([current, candidate], names=["quantized", f"{group} in float"], **how).models[1].speedup  # type: ignore[arg-type]
            if found is None:
                continue
            gains[group] = found
            if found.low > _WORTH:
                reason = f"kept in float: the model is {found.estimate:.2f} times as fast with {group} in float"
                excluded |= dict.fromkeys(nodes, reason)
                current = candidate
        if progress is not None:
            progress("measuring the result", len(grouped), len(grouped) + 1)
        measured = bench([prepared, current], names=["float", "quantized"], **how)  # type: ignore[arg-type]
    overall = measured.models[1].speedup
    if overall is not None and overall.high < 1:
        reason = f"kept in float: the quantized model is {overall.estimate:.2f} times as fast as the float model"
        excluded = {node: reason for nodes in grouped.values() for node in nodes}
    elif measured.models[1].error:
        excluded = {node: f"kept in float: {measured.models[1].error}" for nodes in grouped.values() for node in nodes}
    return SpeedChoice(excluded, measured, gains)


def _groups(model: Model, entries: Sequence[Covered]) -> dict[str, list[str]]:
    """Nodes by op and by the shape of the weight; the smaller groups of many are taken together by op."""
    shapes = {
        tensor.name: "x".join(map(str, tensor.dims))
        for owner, _ in model.node_lists
        for tensor in getattr(owner, "initializer", ())
    }
    by_shape: dict[str, list[Covered]] = {}
    for entry in entries:
        by_shape.setdefault(f"{entry.op} {shapes.get(entry.weight, '')}".strip(), []).append(entry)
    ranked = sorted(by_shape.items(), key=lambda item: -sum(entry.bytes_before for entry in item[1]))
    if len(ranked) <= _MOST_GROUPS:
        return {group: [entry.node for entry in found] for group, found in ranked}
    groups = {group: [entry.node for entry in found] for group, found in ranked[: _MOST_GROUPS - 1]}
    for _, found in ranked[_MOST_GROUPS - 1 :]:
        for entry in found:
            groups.setdefault(f"other {entry.op}", []).append(entry.node)
    return groups
