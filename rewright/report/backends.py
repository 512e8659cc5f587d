"""Several backends on one model: what each made of every pass, and of every softmax, normalisation and activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rewright.passes.contract import Backend, Pass
from rewright.report.model import EnvironmentReport, Fate, FateKind, PassReport, Report, Status


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Undone(_Record):
    """A change that the checks took back.

    Attributes:
        by: who had made it, "standalone" or "ort".
        nodes: what it had taken away.
        ops: what it had put in.
        reason: what the checks found.
    """

    by: str
    nodes: list[str]
    ops: list[str]
    reason: str


class PassOutcome(_Record):
    """What one backend made of a pass.

    Attributes:
        status: that of the pass; the more telling one where two have carried it out.
        kept: sites that stay, by who made them: "standalone" or "ort".
        added: the ops that these put in, by how often.
        undone: what the checks took back, and why.
        reasons: why it did not fire elsewhere, by how often; the most frequent first.
        notes: what ONNX Runtime did, and what it could not.
        reason: why it failed or was undone.
        seconds: for the pass and its checks.
    """

    status: Status
    kept: dict[str, int] = Field(default_factory=dict)
    added: dict[str, int] = Field(default_factory=dict)
    undone: list[Undone] = Field(default_factory=list)
    reasons: dict[str, int] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0


class PassComparison(_Record):
    """One pass of the chain; ``declines`` tells why ONNX Runtime does not carry it out, so that it ran by itself everywhere."""

    name: str
    declines: str = ""
    backends: dict[Backend, PassOutcome]


class FateComparison(_Record):
    """One node of the model before the run, and what became of it with each backend."""

    kind: FateKind
    node: str
    op: str
    graph: str
    backends: dict[Backend, Fate]


class RunFacts(_Record):
    """One of the runs that are compared."""

    chain: str
    verdict: str
    nodes_after: int
    ops_after: dict[str, int]
    seconds: float
    warnings: list[str] = Field(default_factory=list)


class BackendComparison(_Record):
    """The same chain with several backends on one model. ``to_json()`` is the JSON form, schema 1."""

    schema_version: Literal[1] = 1
    model: str | None
    nodes_before: int
    target: str
    environment: EnvironmentReport
    runs: dict[Backend, RunFacts]
    passes: list[PassComparison]
    fates: list[FateComparison]

    def to_json(self) -> str:
        """The JSON form, indented."""
        return self.model_dump_json(indent=2)

    def show(self, *, is_complete: bool = False) -> None:
        """Prints one table to standard output, and what was undone; ``is_complete`` lists every pass and node."""
        from rewright.report.backends_table import show_backends

        show_backends(self, is_complete=is_complete)


@dataclass(frozen=True)
class BackendRun:
    """A chain's passes for one backend, and the report of their run, with its fates."""

    passes: Sequence[Pass]
    report: Report


def compare(runs: Mapping[Backend, BackendRun]) -> BackendComparison:
    """Puts runs of one chain on one model beside each other; their passes have the same names in the same order."""
    first = next(iter(runs.values())).report
    outcomes = {backend: list(_outcomes(run)) for backend, run in runs.items()}
    passes = [
        PassComparison(
            name=step.name,
            declines=step.ort.declines if step.ort is not None else "",
            backends={backend: found[number] for backend, found in outcomes.items()},
        )
        for number, step in enumerate(next(iter(runs.values())).passes)
    ]
    fates = [
        FateComparison(
            kind=fate.kind,
            node=fate.node,
            op=fate.op,
            graph=fate.graph,
            backends={backend: run.report.fates[number] for backend, run in runs.items()},
        )
        for number, fate in enumerate(first.fates)
    ]
    return BackendComparison(
        model=first.model.path,
        nodes_before=first.model.nodes_before,
        target=first.target,
        environment=first.environment,
        runs={backend: _facts(run.report) for backend, run in runs.items()},
        passes=passes,
        fates=fates,
    )


def _facts(report: Report) -> RunFacts:
    return RunFacts(
        chain=report.chain,
        verdict=report.verdict,
        nodes_after=report.model.nodes_after,
        ops_after=report.model.ops_after,
        seconds=report.seconds,
        warnings=report.warnings,
    )


def _outcomes(run: BackendRun) -> Iterator[PassOutcome]:
    """One for each pass: the records of the steps that it stood for, as one."""
    place = 0
    for step in run.passes:
        count = len(step.parts())
        yield _outcome(run.report.passes[place : place + count])
        place += count


_TELLING: Sequence[Status] = ("failed", "rolled-back", "applied", "skipped", "unchanged")


def _outcome(records: Sequence[PassReport]) -> PassOutcome:
    kept: Counter[str] = Counter()
    added: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for record in records:
        for site in record.sites:
            if site.status == "kept":
                kept[record.backend] += 1
                added.update(site.ops_added)
        reasons.update(rejection.reason for rejection in record.rejections)
    return PassOutcome(
        status=min((record.status for record in records), key=_TELLING.index),
        kept=dict(kept),
        added=dict(added),
        undone=[change for record in records for change in _undone(record)],
        reasons=dict(reasons.most_common()),
        notes=[note for record in records for note in record.notes],
        reason=next((record.reason for record in records if record.reason), ""),
        seconds=sum(record.seconds.apply + record.seconds.verify for record in records),
    )


def _undone(record: PassReport) -> Iterator[Undone]:
    sites = {site.id: site for site in record.sites}
    for change in record.undone:
        members = [sites[name] for name in change.sites if name in sites]
        yield Undone(
            by=record.backend,
            nodes=[node for site in members for node in site.removed] or [change.at],
            ops=[op for site in members for op in site.ops_added],
            reason=change.reason,
        )
