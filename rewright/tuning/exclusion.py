"""Which nodes stay in float so that the outputs lose no more than they may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewright.model.carrier import Model
from rewright.passes.contract import Pass, Target
from rewright.run.options import Progress
from rewright.run.probing import broken_probe, probe
from rewright.tuning.sensitivity import NodeSensitivity, ranking
from rewright.tuning.trial import Quantizer
from rewright.verify.budget import QuantizationBudget
from rewright.verify.inputs import InputSet
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.process import SessionWorker


@dataclass(frozen=True)
class Exclusion:
    """What the search found.

    Attributes:
        excluded: the nodes that stay in float, with the reason.
        holds: whether the budget holds without them.
        ranking: all nodes that can be quantized, the one that costs most first; empty where everything could stay quantized.
        first: the evidence with everything quantized.
    """

    excluded: Mapping[str, str] = field(default_factory=dict)
    holds: bool = True
    ranking: Sequence[NodeSensitivity] = ()
    first: ParityEvidence | None = None


def exclude_until_it_holds(
    original: Model,
    prepared: Model,
    step: Pass,
    sets: Sequence[InputSet],
    budget: QuantizationBudget,
    *,
    target: Target = "cpu",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Exclusion:
    """The fewest nodes, taken from the worst of the ranking on, without which quantization stays within the budget.

    The number is found by halving: leaving more in float does not lose more, as a rule; a candidate of the number that is
    returned has held the budget.

    Args:
        original: what the outputs are held against.
        prepared: what the pass quantizes.
        step: the quantizing pass.
        sets: what the outputs are compared on.
        budget: what they may lose.
        target, jobs, progress: see ``rewright.tuning.sensitivity.sensitivity``.

    Raises:
        UsageError: the model cannot be run on the inputs.
    """
    with SessionWorker() as worker:
        quantizer = Quantizer(prepared, step, target, worker)
        gate = ParityGate(original, sets, worker, budget=budget)
        gate.keep("quantizing")  # what probes are held to
        is_held, first = _judged(quantizer, gate, [])
        if is_held:
            return Exclusion(first=first)
        ranked, _ = ranking(prepared, step, sets, target, jobs, progress)
        names = [entry.node for entry in ranked]
        fails, holds = 0, len(names)  # with nothing quantized the model is the prepared one
        while holds - fails > 1:
            count = (fails + holds) // 2
            if progress is not None:
                progress(f"trying without {count} nodes", len(names) - (holds - fails), len(names))
            is_held, _ = _judged(quantizer, gate, names[:count])
            fails, holds = (fails, count) if is_held else (count, holds)
    excluded = {entry.node: _reason(entry, budget) for entry in ranked[:holds]}
    return Exclusion(excluded, holds < len(names), ranked, first)


def _judged(quantizer: Quantizer, gate: ParityGate, excluded: Sequence[str]) -> tuple[bool, ParityEvidence | None]:
    """Whether the outputs stay within the budget, and hold what the original holds: a run undoes the pass for either."""
    candidate = quantizer.without(excluded)
    if candidate is None:
        return True, None
    evidence = gate.check(candidate, "quantizing")
    if evidence.status == "failed":
        return False, evidence
    return not broken_probe(probe(gate, candidate)), evidence


def _reason(entry: NodeSensitivity, budget: QuantizationBudget) -> str:
    kept = f"kept in float for the budget ({budget.text})"
    if entry.status == "failed" or entry.sqnr_db is None:
        return f"{kept}: {entry.reason or 'its cost could not be measured'}"
    top1 = "" if entry.top1 is None or entry.top1 == 1 else f" and {100 * entry.top1:.1f} % top-1 agreement"
    return f"{kept}: quantized alone it leaves '{entry.sqnr_db:.1f} dB{top1}'"
