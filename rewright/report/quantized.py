"""How the figures of quantizing passes are worded, for the terminal and the page alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rewright.report.model import CoveredReport, QuantizationReport, Report
from rewright.report.wording import Reason, byte_size, figure, unquoted
from rewright.verify.comparison import MAXIMUM_SQNR_DB, OutputEvidence
from rewright.verify.parity import ParityEvidence


def is_judged_by_budget(parity: ParityEvidence | None) -> bool:
    """Whether the outputs were held against a budget, not against a tolerance."""
    return parity is not None and parity.exactness == "quantizing"


def output_figures(output: OutputEvidence) -> str:
    """ "SQNR 34.1 dB, cosine 0.99981, max error 3.1e-02, top-1 99.2 %"; integers have a share of equal elements instead."""
    if output.max_abs == 0:
        return "equal"
    parts = []
    if output.sqnr_db is not None:
        parts.append("equal" if output.sqnr_db >= MAXIMUM_SQNR_DB else f"SQNR {output.sqnr_db:.1f} dB")
    if output.cosine is not None:
        parts.append(f"cosine {output.cosine:.5f}")
    parts.append(f"max error {figure(output.max_abs)}")
    if output.top1 is not None:
        parts.append(f"{'top-1' if output.sqnr_db is not None else 'equal elements'} {_percent(output.top1)}")
    return ", ".join(parts)


def coverage_rows(quantization: QuantizationReport) -> list[tuple[str, str, str]]:
    """(op, "72 of 73", share) of each op that quantizing passes are for."""
    return [
        (op, f"{counts.quantized} of {counts.total}", _percent(counts.quantized / max(1, counts.total)))
        for op, counts in sorted(quantization.coverage.items())
    ]


def missed_reasons(quantization: QuantizationReport) -> list[Reason]:
    """Why nodes were not quantized, the most frequent reason first; reasons that differ only in what they quote are one."""
    nodes: dict[tuple[str, str], list[str]] = defaultdict(list)
    text: dict[tuple[str, str], str] = {}
    for entry in quantization.missed:
        key = entry.op, unquoted(entry.reason)
        nodes[key].append(entry.node)
        text.setdefault(key, entry.reason)
    return [Reason(key[0], text[key], found) for key, found in sorted(nodes.items(), key=lambda item: -len(item[1]))]


def weight_bytes(quantization: QuantizationReport) -> str:
    """ "340.1 MB -> 85.4 MB, 25 %" of the weights that were quantized, or the empty string where none was."""
    if not quantization.bytes_before:
        return ""
    share = _percent(quantization.bytes_after / quantization.bytes_before)
    return f"{byte_size(quantization.bytes_before)} -> {byte_size(quantization.bytes_after)}, {share}"


def worst_rows(quantization: QuantizationReport, limit: int) -> list[tuple[str, str, str, str]]:
    """(node, what it became, error of the weight, its worst channel with that one's error), the worst first."""
    return [(each.node, each.became, _share(each.error), _channel(each)) for each in quantization.worst[:limit]]


def coverage_sentence(quantization: QuantizationReport) -> str:
    """ "73 of 74 nodes are quantized", or that nothing was, with the reasons."""
    total = sum(counts.total for counts in quantization.coverage.values())
    quantized = sum(counts.quantized for counts in quantization.coverage.values())
    if quantized:
        return f"{quantized} of {total} nodes are quantized"
    if not total:
        return "nothing was quantized: the model has no node that the pass is for"
    return f"nothing was quantized: {_listed(missed_reasons(quantization))}"


def quantization_sentence(report: Report) -> str:
    """What a rendering ends with where quantizing passes left the model as it was; the empty string elsewhere."""
    if report.quantization is None or any(counts.quantized for counts in report.quantization.coverage.values()):
        return ""
    if any(each.status == "applied" and not each.coverage for each in report.passes if each.exactness == "quantizing"):
        return ""  # a pass that says nothing of its nodes has done something all the same
    failed = [each.name for each in report.passes if each.exactness == "quantizing" and each.status == "failed"]
    sentence = coverage_sentence(report.quantization)
    if failed and not report.quantization.coverage:
        sentence = f"nothing was quantized: {', '.join(failed)} failed"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _listed(reasons: Sequence[Reason], limit: int = 3) -> str:
    said = [f"{len(reason.nodes)} {reason.owner}: {reason.text}" for reason in reasons[:limit]]
    return "; ".join(said) + (f"; and for {len(reasons) - limit} more reasons" if len(reasons) > limit else "")


def _channel(entry: CoveredReport) -> str:
    if entry.worst_error is None:
        return ""
    return f"{_share(entry.worst_error)}" + (f" in {entry.worst_channel}" if entry.worst_channel is not None else "")


def _share(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.2g} %"


def _percent(share: float) -> str:
    """Never rounded up to a whole: what is not all of it does not look so."""
    text = f"{100 * share:.1f}"
    return "100 %" if share == 1 else f"{'99.9' if text == '100.0' else text} %"
