"""The probes at the end of a run: what the original holds, the result has to hold."""

from __future__ import annotations

from collections.abc import Sequence

from rewright.model.carrier import Model
from rewright.verify.invariances import run_probes
from rewright.verify.parity import ParityGate
from rewright.verify.probes import ProbeEvidence
from rewright.verify.tolerance import least_exact


def probe(gate: ParityGate, result: Model) -> list[ProbeEvidence]:
    """Probe the original of a gate and the result; none are made of a result that is the original."""
    if result is gate.reference or result.fingerprint() == gate.reference.fingerprint():
        return []
    return run_probes(
        gate.reference,
        result,
        gate.worker,
        gate.input_sets,
        exactness=least_exact(gate.kept),
        lower=gate.runnable,
        budget=gate.budget,
        outputs=gate.original_outputs,
        candidate_outputs=gate.outputs_of(result),
    )


def broken_probe(probes: Sequence[ProbeEvidence]) -> str:
    """What the result no longer holds, in words; empty if it holds what the original does."""
    for evidence in probes:
        if evidence.status == "broken":
            return f"the probe '{evidence.name}' ({evidence.subject}): {evidence.reason}"
    return ""
