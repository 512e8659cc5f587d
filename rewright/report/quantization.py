"""What the quantizing passes of a run did, put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rewright.report.model import CoveredReport, OpCoverage, PassReport, QuantizationReport
from rewright.verify.parity import ParityEvidence

_MOST_WORST: Final = 10


def quantization_of(passes: Iterable[PassReport], budget: str) -> QuantizationReport | None:
    """The summary of the passes whose exactness is "quantizing"; None where there are none.

    What a pass that was undone, wholly or at a site, says that it quantized is missed, for the reason why it was undone.
    """
    records = [record for record in passes if record.exactness == "quantizing"]
    if not records:
        return None
    nodes: dict[tuple[str, str], list[CoveredReport]] = {}
    for record in records:
        _take_in(nodes, _as_kept(record))
    found = [entry for entries in nodes.values() for entry in entries]
    summary = QuantizationReport(budget=budget)
    for entry in found:
        counts = summary.coverage.setdefault(entry.op, OpCoverage())
        counts.total += 1
        if entry.outcome == "quantized":
            counts.quantized += 1
            summary.bytes_before += entry.bytes_before
            summary.bytes_after += entry.bytes_after
        else:
            summary.missed.append(entry)
    measured = [entry for entry in found if entry.outcome == "quantized" and entry.error is not None]
    summary.worst = sorted(measured, key=lambda entry: -(entry.worst_error or entry.error or 0.0))[:_MOST_WORST]
    return summary


def _take_in(nodes: dict[tuple[str, str], list[CoveredReport]], entries: Iterable[CoveredReport]) -> None:
    """Adds what one pass says of its nodes: of one that no pass before has quantized it takes the place.

    Several nodes may have one name, in the branches of an If: there are as many as the pass that names the most of them says.
    """
    by_name: dict[tuple[str, str], list[CoveredReport]] = {}
    for entry in entries:
        by_name.setdefault((entry.op, entry.node), []).append(entry)
    for key, given in by_name.items():
        known = nodes.setdefault(key, [])
        left = [place for place, entry in enumerate(known) if entry.outcome != "quantized"]
        for entry in given:
            if left:
                known[left.pop(0)] = entry
            elif len(known) < len(given):
                known.append(entry)


def doubts(passes: Iterable[PassReport], parity: ParityEvidence | None) -> list[str]:
    """What the figures of a quantized model do not say; nothing where no quantizing pass was kept."""
    is_quantized = any(record.exactness == "quantizing" and record.status == "applied" for record in passes)
    if not is_quantized or parity is None or parity.inputs != "made":
        return []
    return ["what quantization costs was measured on made-up inputs; representative ones (--inputs) tell what it costs on yours"]


def _as_kept(record: PassReport) -> list[CoveredReport]:
    if record.status in ("failed", "rolled-back"):
        gone, reasons = {entry.node for entry in record.coverage}, dict[str, str]()
    else:
        undone = {name: change.reason for change in record.undone for name in change.sites}
        sites = [(site, undone[site.id]) for site in record.sites if site.id in undone]
        reasons = {name: reason for site, reason in sites for name in (*site.removed, *site.added)}
        gone = set(reasons)
    return [
        entry.model_copy(update={"outcome": "missed", "reason": f"undone: {reasons.get(entry.node, record.reason)}"})
        if entry.outcome == "quantized" and entry.node in gone
        else entry
        for entry in record.coverage
    ]
