"""What the kit says when something is wrong: one message, everything in it."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import onnx

from rewright.model.carrier import Model
from rewright.passes.contract import Site
from rewright.report.model import PassReport, Report, SiteReport
from rewright.report.wording import common_reasons, error_against_tolerance, figure
from rewright.run import RunResult
from rewright.verify.comparison import OutputEvidence
from rewright.verify.divergence import Divergence
from rewright.verify.parity import ParityEvidence

_LONGEST: Final = 200
_LISTED: Final = 8
"""Sites, reasons and outputs that a message lists of each kind."""


def failure(asked: str, origin: Model, result: RunResult, problems: Sequence[str]) -> str:
    """The whole message: what was checked, each problem, and what the model was and became."""
    heading = f"the check of '{asked}' found {count(len(problems), 'problem')}:"
    numbered = [f"{number}. {problem}" for number, problem in enumerate(problems, 1)]
    changed = ops(origin) if result.model.fingerprint() == origin.fingerprint() else f"{ops(origin)} -> {ops(result.model)}"
    return "\n".join([heading, *numbered, f"ops: {changed}"])


def firing_problems(records: Sequence[PassReport], wanted: int | None) -> list[str]:
    """Whether the passes fire as often as they should; else with their rejections, or with the sites that are too many."""
    fired = sum(len(record.sites) for record in records)
    if wanted is None or fired == wanted:
        return []
    said = f"it fires at {count(fired, 'site')}, {wanted} expected"
    if any(record.status == "failed" and not record.sites for record in records):
        return [said]
    return [said + (rejections(records) if fired < wanted else sites(site for record in records for site in record.sites))]


def gate_problems(records: Iterable[PassReport]) -> list[str]:
    """What gates found, with the figures of sites and outputs; also single sites that were undone."""
    problems = []
    for record in records:
        if record.status in ("failed", "rolled-back"):
            what = record.status.replace("-", " ")
        elif record.undone:
            what = f"{count(len(record.undone), 'change')} rolled back"
        else:
            continue
        problems.append(f"{record.name} {what}: {record.reason}" + _undone(record) + _figures(record.parity))
    return problems


def _undone(record: PassReport) -> str:
    """The regions that failed by themselves, one a line."""
    regions = record.site_parity.regions if record.site_parity is not None else []
    failed = [region for region in regions if region.status == "failed"]
    lines = []
    for region in failed[:_LISTED]:
        parts = [] if region.reason in record.reason else [region.reason]
        if region.max_abs is not None:
            allowed = f"where {figure(region.allowed)} is allowed, against {region.reference}"
            parts.append(f"max abs {figure(region.max_abs)} {allowed}")
        lines.append(f"\n     {', '.join(region.sites) or 'no site'} at {region.at}: {'; '.join(parts) or 'so'}")
    return "".join([*lines, f"\n     and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""])


def verdict_problems(report: Report) -> list[str]:
    """Why a run that was to be compared has not proven anything."""
    if report.verdict == "failed":
        return [f"the result failed: {report.reason}" + _figures(report.parity)]
    hint = "give inputs= that tell a wrong result from a right one, or verify='structure'"
    return [f"the comparison proves nothing: {report.reason} ({hint})"]


def rejections(records: Iterable[PassReport]) -> str:
    """The reasons that passes gave, one a line, the most frequent first."""
    reasons = common_reasons(records)
    if not reasons:
        return "; it gives no reason: no other place in the model came near"
    lines = [f"\n     {reason.text} ({_places(reason.nodes)})" for reason in reasons[:_LISTED]]
    more = [f"\n     and {len(reasons) - _LISTED} more reasons"] if len(reasons) > _LISTED else []
    return "; its reasons are:" + "".join([*lines, *more])


def sites(found: Iterable[SiteReport | Site]) -> str:
    """Where passes fired, one site a line."""
    listed = list(found)
    lines = [f"\n     {site.id}: {_tally(site.ops_removed)} -> {_tally(site.ops_added)}" for site in listed[:_LISTED]]
    return "".join([*lines, f"\n     and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""])


def _tally(names: Iterable[str]) -> str:
    """ "Add, Constant x 12"."""
    counts = Counter(names)
    return ", ".join(f"{op} x {number}" if number > 1 else op for op, number in counts.items()) or "nothing"


def difference(before: Model, after: Model) -> str:
    """The first lines of two models' texts that differ, each with its sign."""
    old, new = (onnx.printer.to_text(model.proto).splitlines() for model in (before, after))
    lines = [line for line in difflib.unified_diff(old, new, n=0, lineterm="") if not line.startswith(("---", "+++", "@@"))]
    return "".join(f"\n     {line[:_LONGEST]}" for line in lines[:_LISTED])


def outputs(evidences: Iterable[OutputEvidence]) -> str:
    """The figures of outputs, one a line, the wrong ones first."""
    ranked = sorted(evidences, key=lambda output: output.equal)
    lines = []
    for output in ranked[:_LISTED]:
        error, tolerance = error_against_tolerance(output)
        needed, _, limit = tolerance.partition("/")
        judged = f"needs rtol {needed} where {limit} is allowed" if limit else tolerance
        shown = output.message or ("equal" if output.equal else "differs")
        lines.append(f"\n     output '{output.name}' {output.dtype}{output.shape}: {shown}; max abs {error}, {judged}")
    return "".join(lines)


def beginning(divergence: Divergence | None) -> str:
    """Where two models begin to differ, on one line; nothing where that is not known, or is at the outputs themselves."""
    if divergence is None or divergence.first.reference.name in divergence.outputs:
        return ""
    place, evidence = divergence.first.reference, divergence.first.evidence
    made = f", made by {place.op} '{place.node}'" if place.op else ""
    return f"\n     it begins at '{place.name}'{made}: {evidence.message or 'differs'}; max abs {figure(evidence.max_abs)}"


def ops(model: Model) -> str:
    """ "Add 2, com.microsoft::Gelu 1"."""
    counts = {key.removeprefix("ai.onnx::"): number for key, number in model.op_counts().items()}
    return ", ".join(f"{key} {number}" for key, number in counts.items()) or "no node"


def count(number: int, what: str) -> str:
    """ "1 site", "2 sites"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _figures(parity: ParityEvidence | None) -> str:
    return "" if parity is None else outputs(output for output in parity.outputs if not output.equal or output.vacuous)


def _places(nodes: Sequence[str]) -> str:
    named = ", ".join(f"'{node}'" for node in nodes[:3])
    return named + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
