"""How a report's figures and statuses are worded, for the terminal and the page alike."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rewright.report.directory import DirectoryReport
from rewright.report.model import Fate, PassReport, Report
from rewright.verify.comparison import OutputEvidence
from rewright.verify.parity import ParityEvidence
from rewright.verify.static.evidence import is_wrong

VERDICTS = {
    "passed": "Passed: the result agrees with the original.",
    "passed-with-rollbacks": "Passed with rollbacks: the result agrees with the original, without what failed.",
    "failed": "Failed: the result does not agree with the original.",
    "unverified": "Unverified: the numbers were not compared.",
}

_PARTS = frozenset(("Softmax", "ReduceMean", "Erf", "Tanh", "Sigmoid"))
"""Ops that are left of a computation which is written in several; the others that a fate is of compute the whole."""

UNSPECIFIC = "completes the pattern around it"
"""Part of the reason of a pattern pass for a node that is in none of its patterns."""

UNSAID = "ONNX Runtime left it, and does not say why"
"""The reason of a pass that ONNX Runtime carries out, for what is still there afterwards."""

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def printable(text: str) -> str:
    """The text with control characters spelled out; names in a model may hold anything, terminal sequences included."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def byte_size(count: int) -> str:
    """ "812 B", "3.4 MB", "2.8 GB": decimal units."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def seconds(value: float) -> str:
    """ "0.12", "4.1", "75"."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 60 else f"{value:.0f}"


def figure(value: float | None) -> str:
    """A measured error: "0", "3.1e-07", "-" where it could not be measured."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}".replace(".0e", "e")


def difference(before: int, after: int) -> str:
    """ "480 -34": what is left, and how that differs."""
    return f"{after:,}" if before == after else f"{after:,} {after - before:+,}"


def worst_output(parity: ParityEvidence | None) -> OutputEvidence | None:
    """The output that is nearest to its tolerance, or farthest beyond it; outputs that prove nothing come last."""
    if parity is None or not parity.outputs:
        return None
    return max(parity.outputs, key=_strain)


def _strain(output: OutputEvidence) -> tuple[bool, bool, float, float]:
    needed = output.needed_rtol if output.needed_rtol is not None else 0.0 if output.equal else float("inf")
    share = needed / output.rtol if output.rtol else needed
    return not output.equal, not output.vacuous, share, output.max_abs or 0.0


def error_against_tolerance(output: OutputEvidence) -> tuple[str, str]:
    """(largest absolute error, "needed/allowed" relative tolerance) of an output."""
    if output.vacuous:
        return figure(output.max_abs), "proves nothing"
    if output.sqnr_db is not None:
        return figure(output.max_abs), f"{output.sqnr_db:.1f} dB"
    if output.rtol == 0 and output.atol == 0 and output.equal:
        return figure(output.max_abs), "bit-equal"
    return figure(output.max_abs), f"{figure(output.needed_rtol)}/{figure(output.rtol)}"


@dataclass(frozen=True)
class Reason:
    """Why a pass did not fire, and at which nodes."""

    owner: str
    text: str
    nodes: Sequence[str]


def common_reasons(passes: Iterable[PassReport]) -> list[Reason]:
    """Rejections by pass and reason, the most frequent first.

    Reasons that differ only in what they quote (a node, a value) are one; the first one's text stands for them.
    """
    nodes: dict[tuple[str, str], list[str]] = defaultdict(list)
    text: dict[tuple[str, str], str] = {}
    for record in passes:
        for rejection in record.rejections:
            key = record.name, unquoted(rejection.reason)
            nodes[key].append(rejection.node)
            text.setdefault(key, rejection.reason)
    return [Reason(key[0], text[key], found) for key, found in sorted(nodes.items(), key=lambda item: -len(item[1]))]


def unquoted(reason: str) -> str:
    """The reason without what it quotes, which is the same for nodes that it holds for."""
    return _QUOTED.sub("''", reason)


def fate(fate: Fate) -> str:
    """What became of a node, or why it is left, in a clause."""
    by = f" ({', '.join(makers(fate))})" if fate.passes else ""
    if fate.outcome == "became":
        named = f" '{fate.name}'" if fate.name else ""
        return f"became {fate.became.replace('::', '.')}{named}{by}"
    if fate.outcome == "removed":
        return f"went{by}"
    if UNSPECIFIC in fate.reason:
        return f"left: {fate.reason.partition(':')[0]} finds none of its formulas around it"
    if is_one_op_already(fate):
        return "left: it is one op already"
    return f"left: {fate.reason or 'no pass of the chain is about it'}"


def makers(fate: Fate) -> list[str]:
    """The passes that have made the node what it became, and which of them ONNX Runtime carried out: "gelu by ort"."""
    named = zip_longest(fate.passes, fate.backends, fillvalue="")
    return list(dict.fromkeys(f"{name} by ort" if backend == "ort" else name for name, backend in named))


def says_little(reason: str) -> bool:
    """Whether a reason is of no use where there is another."""
    return UNSPECIFIC in reason or UNSAID in reason


def is_one_op_already(fate: Fate) -> bool:
    """Whether the node is left because the model had the fused op from the start."""
    return fate.outcome == "left" and not fate.reason and fate.op not in _PARTS


def verdict_sentence(report: Report) -> str:
    """One sentence that ends every rendering."""
    return f"{VERDICTS[report.verdict]} {report.reason}".strip()


def directory_sentence(report: DirectoryReport) -> str:
    """One sentence that ends every rendering of a directory's report."""
    count = len(report.files)
    what = "The one model" if count == 1 else f"All {count} models"
    agrees = "agrees with its original" if count == 1 else "agree with their originals"
    sentences = {
        "passed": f"Passed: {what[0].lower()}{what[1:]} {agrees}.",
        "passed-with-rollbacks": f"Passed with rollbacks: {what[0].lower()}{what[1:]} {agrees}, without what failed.",
        "failed": "Failed: nothing was written.",
        "unverified": "Unverified: the numbers were not compared everywhere.",
    }
    return f"{sentences[report.verdict]} {report.reason}".strip()


def changed_ops(report: Report) -> dict[str, tuple[int, int]]:
    """The ops of which there are more or fewer than before: how many there were, how many there are."""
    before, after = report.model.ops_before, report.model.ops_after
    counts = {op: (before.get(op, 0), after.get(op, 0)) for op in sorted({*before, *after})}
    return {op: count for op, count in counts.items() if count[0] != count[1]}


def mutation_sentence(report: Report) -> str:
    """What the mutation self-test showed, or the empty string if it was not made."""
    test = report.mutation
    if test is None:
        return ""
    if test.status == "not-run":
        return f"not run: {test.reason}"
    return f"{len(test.noticed)} of {len(test.tried)} planted faults noticed"


def static_sentence(report: Report) -> str:
    """What was found of the result without comparing it, or the empty string if that was not asked for."""
    found = report.static
    if found is None:
        return ""
    told = f"{found.bounded} of {found.values} values have proven bounds"
    wrong = [finding for finding in found.findings if is_wrong(finding)]
    if not wrong:
        return told
    return f"{told}; {found.reason}" + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")


def sites_of(record: PassReport) -> str:
    """How many sites a pass has, and how many of them were undone: "24", "23 of 24"."""
    if not record.sites:
        return ""
    kept = sum(site.status == "kept" for site in record.sites)
    return str(kept) if kept == len(record.sites) else f"{kept} of {len(record.sites)}"


def site_parity_sentence(report: Report) -> str:
    """What the comparison of single sites covered, or the empty string if none was made."""
    regions = [region for record in report.passes if record.site_parity is not None for region in record.site_parity.regions]
    if not regions:
        return ""
    compared = [region for region in regions if region.status in ("passed", "failed")]
    alike = sum(bool(region.shared_with) for region in compared)
    failed = sum(region.status == "failed" for region in compared)
    seconds_taken = sum(record.site_parity.seconds for record in report.passes if record.site_parity is not None)
    parts = [f"{len(compared)} changes run by themselves, {alike} of them like another", f"{failed} wrong"]
    not_run = sum(region.status == "not-run" for region in regions)
    if not_run:
        parts.append(f"{not_run} could not be run")
    return f"{', '.join(parts)}, in {seconds(seconds_taken)} s"


def undone_lines(record: PassReport, limit: int) -> list[str]:
    """What the gates undid of a pass, and why: one line a change; nothing where the whole pass went for one reason."""
    if record.status != "applied" and len({change.reason for change in record.undone}) <= 1:
        return []
    lines = [f"undone: {change.at}: {change.reason}" for change in record.undone[:limit]]
    return lines if len(record.undone) <= limit else [*lines, f"and {len(record.undone) - limit} more"]


def input_sets_sentence(parity: ParityEvidence | None) -> str:
    """Which inputs the comparison ran on and who they are from, or the empty string."""
    if parity is None or not parity.input_sets:
        return ""
    dropped = f" ({len(parity.dropped)} that the original cannot run on were dropped)" if parity.dropped else ""
    return f"{_ORIGINS[parity.inputs]}: {', '.join(parity.input_sets)}{dropped}"


_ORIGINS = {"made": "made from the model", "given": "given", "plugin": "from a plugin"}


def expected_sentences(parity: ParityEvidence | None) -> list[str]:
    """Whether the original reproduces the outputs that came with the inputs: how many, then each that it does not."""
    if parity is None or not parity.expected:
        return []
    missed = [each for each in parity.expected if not each.reproduced]
    reproduced = f"the original reproduces {len(parity.expected) - len(missed)} of {len(parity.expected)} expected outputs"
    return [reproduced, *(f"{each.output} of {each.input_set}: {each.message}" for each in missed)]


def probe_sentences(report: Report) -> list[str]:
    """What the probes showed: those that both models hold, each that was broken, those that the original does not hold."""
    names: dict[str, list[str]] = defaultdict(list)
    for probe in report.probes:
        if probe.name not in names[probe.status]:
            names[probe.status].append(probe.name)
    broken = [each for each in report.probes if each.status == "broken"]
    return [
        *([f"held: {', '.join(names['held'])}"] if names["held"] else []),
        *(f"broken: {each.name} ({each.subject}): {each.reason}" for each in broken),
        *([f"not held by the original: {', '.join(names['not-held'])}"] if names["not-held"] else []),
    ]


def output_note(output: OutputEvidence) -> str:
    """Why agreement on an output needs a word more, or the empty string."""
    if output.vacuous:
        return output.vacuous
    return "within the rounding noise of the original" if output.equal and output.noise is not None else ""
