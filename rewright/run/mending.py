"""Runs a chain, and once more without a pass whose fault only a probe of the whole result has shown."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from rewright.model.carrier import Model
from rewright.ops.lowering import lower
from rewright.passes.contract import Pass
from rewright.report.model import PassReport
from rewright.report.quantization import quantization_of
from rewright.run import loop
from rewright.run.options import GateError, RunOptions, RunResult
from rewright.run.probing import broken_probe, probe
from rewright.run.usual_budget import usual_budget
from rewright.verify.budget import QuantizationBudget
from rewright.verify.parity import ParityGate
from rewright.verify.process import SessionWorker


def run_passes(model: Model, passes: Sequence[Pass], chain_text: str, options: RunOptions) -> RunResult:
    """Runs configured passes on ``model`` in order; one with the backend "auto" as two, its own rewrite and ONNX Runtime's.

    Where the result no longer holds a probe that the original holds, the pass after which that is so for the first time is
    looked for, and the chain is run again without it.

    Raises:
        GateError: a gate or a probe failed or a pass crashed, and the policy for that pass is "raise".
        UsageError: the inputs that the caller gave do not fit the model.
    """
    passes = [part for step in passes for part in step.parts()]
    own = SessionWorker() if options.worker is None else nullcontext(options.worker)
    with own as worker:
        options = replace(options, worker=worker, budget=options.budget or usual_budget(passes))
        result = loop.run_passes(model, passes, chain_text, options)
        left, undone, seconds = list(passes), dict[int, PassReport](), 0.0
        while reason := broken_probe(result.report.probes):
            culprit = _first_broken_by(model, left, result, options, worker)
            if culprit is None:
                break
            if (left[culprit].on_failure or options.on_failure) == "raise":
                raise GateError(f"the pass '{left[culprit].name}' failed: {reason}.", "", result.report)
            undone[_place(culprit, undone)] = _undone(result.report.passes[culprit], reason)
            del left[culprit]
            seconds += result.report.seconds
            result = loop.run_passes(model, left, chain_text, options)
        _write_down(result, undone, seconds, (options.budget or QuantizationBudget()).text)
        return result


def _first_broken_by(
    model: Model, passes: Sequence[Pass], result: RunResult, options: RunOptions, worker: SessionWorker
) -> int | None:
    """The place of the first pass with which the passes up to there break a probe, by bisection; None if that is not found.

    The passes are applied without their gates: all of them have got through these.
    """
    applied = [place for place, record in enumerate(result.report.passes) if record.status == "applied"]
    gate = ParityGate(
        model,
        options.input_sets,
        worker,
        seed=options.seed,
        budget=options.budget,
        lower=None if options.target == "cpu" else lower,
    )
    gate.kept.extend(passes[place].exactness for place in applied)
    gate.takes_other_types = any(passes[place].alters_interface for place in applied)
    quick = replace(options, verify="off", reproducers=None, progress=None)

    def is_broken(count: int) -> bool:
        chosen = [passes[place] for place in applied[:count]]
        return bool(broken_probe(probe(gate, loop.run_passes(model, chosen, "", quick).model)))

    sound, broken = 0, len(applied)
    if not is_broken(broken):
        return None
    while broken - sound > 1:
        middle = (sound + broken) // 2
        sound, broken = (sound, middle) if is_broken(middle) else (middle, broken)
    return applied[broken - 1]


def _place(culprit: int, undone: dict[int, PassReport]) -> int:
    """Where a pass stood in the chain before those that are undone were taken out."""
    for gone in sorted(undone):
        culprit += gone <= culprit
    return culprit


def _undone(record: PassReport, reason: str) -> PassReport:
    sites = [site.model_copy(update={"status": "rolled-back"}) for site in record.sites]
    changes = {"status": "rolled-back", "reason": reason, "sites": sites, "nodes_after": record.nodes_before}
    return record.model_copy(update=changes)


def _write_down(result: RunResult, undone: dict[int, PassReport], seconds: float, budget: str) -> None:
    """Put the records of the undone passes back in their places, and the time that finding them took."""
    report = result.report
    for place in sorted(undone):
        report.passes.insert(place, undone[place])
    report.seconds += seconds
    if undone:
        report.quantization = quantization_of(report.passes, budget)
    if undone and report.verdict == "passed":
        report.verdict = "passed-with-rollbacks"
