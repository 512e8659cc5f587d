"""The report: what ran, what it did, what was measured, and what it cost. ``report.to_json()`` is the JSON form, schema 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rewright.passes.coverage import Outcome
from rewright.verify.interface import InterfaceEvidence
from rewright.verify.kernels import KernelEvidence
from rewright.verify.mutation import MutationEvidence
from rewright.verify.parity import ParityEvidence
from rewright.verify.probes import ProbeEvidence
from rewright.verify.sites.evidence import SiteParityEvidence
from rewright.verify.static.evidence import StaticEvidence
from rewright.verify.structure import StructureEvidence

if TYPE_CHECKING:
    from rich.console import Console

Verdict = Literal["passed", "passed-with-rollbacks", "failed", "unverified"]
Status = Literal["applied", "unchanged", "rolled-back", "failed", "skipped"]
FateKind = Literal["attention", "normalisation", "activation"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class SiteReport(_Record):
    """One place where a pass fired; ``status`` is "rolled-back" where the gates undid it."""

    id: str
    status: Literal["kept", "rolled-back"]
    graph: str
    removed: list[str]
    added: list[str]
    ops_removed: list[str]
    ops_added: list[str]


class UndoneReport(_Record):
    """A change that the gates undid: the sites that it covers (none where the pass named none), where it is, and why."""

    sites: list[str]
    at: str
    reason: str


class RejectionReport(_Record):
    """A place where a pass nearly fired, and the first thing that stood in the way."""

    node: str
    reason: str


class Seconds(_Record):
    """Wall time of a pass."""

    apply: float = 0.0
    verify: float = 0.0


class CoveredReport(_Record):
    """One node that a quantizing pass is for; see ``rewright.passes.coverage.Covered``."""

    node: str
    op: str
    outcome: Outcome
    reason: str = ""
    weight: str = ""
    became: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    error: float | None = None
    worst_channel: int | None = None
    worst_error: float | None = None


class OpCoverage(_Record):
    """How many nodes of one op were quantized, of those that quantizing passes are for."""

    quantized: int = 0
    total: int = 0


class QuantizationReport(_Record):
    """What quantizing passes did to the model as a whole.

    Attributes:
        coverage: by op; a node that one pass missed and another one quantized counts as quantized.
        missed: the nodes that none of them quantized, with the last reason; excluded ones too.
        bytes_before, bytes_after: of the quantized weights, scales and zero points included.
        budget: what outputs may lose.
        worst: the quantized nodes whose weights lost most, the worst first.
    """

    coverage: dict[str, OpCoverage] = Field(default_factory=dict)
    missed: list[CoveredReport] = Field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    budget: str = ""
    worst: list[CoveredReport] = Field(default_factory=list)


class PassReport(_Record):
    """One pass of the chain.

    ``rss_peak`` is the process's largest resident set so far, in bytes (mapped weights count while they are resident).
    """

    name: str
    backend: str
    status: Status
    exactness: str
    options: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    sites: list[SiteReport] = Field(default_factory=list)
    rejections: list[RejectionReport] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    coverage: list[CoveredReport] = Field(default_factory=list)
    structure: StructureEvidence | None = None
    interface: InterfaceEvidence | None = None
    kernels: KernelEvidence | None = None
    parity: ParityEvidence | None = None
    site_parity: SiteParityEvidence | None = None
    undone: list[UndoneReport] = Field(default_factory=list)
    nodes_before: int = 0
    nodes_after: int = 0
    seconds: Seconds = Field(default_factory=Seconds)
    rss_peak: int = 0
    reproducer: str | None = None


class ModelReport(_Record):
    """The model before and after; ops are counted with bodies and functions."""

    path: str | None
    nodes_before: int
    nodes_after: int
    ops_before: dict[str, int]
    ops_after: dict[str, int]
    bytes_before: int
    bytes_after: int


class Fate(_Record):
    """What became of a softmax, a normalisation or an activation of the model.

    Attributes:
        kind: what the node is for.
        node, op, graph: the node in the model before the run.
        outcome: it "became" another op, was "left" as it is, or was "removed" without a successor.
        became, name: the op that stands for it in the result, and that node's name.
        passes, backends: by which passes, in order, and who carried each out.
        reason: the first thing that stood in the way of (more), after the name of the pass that says so.
    """

    kind: FateKind
    node: str
    op: str
    graph: str
    outcome: Literal["became", "left", "removed"] = "left"
    became: str = ""
    name: str = ""
    passes: list[str] = Field(default_factory=list)
    backends: list[str] = Field(default_factory=list)
    reason: str = ""


class PluginReport(_Record):
    """A plugin that was found."""

    name: str
    distribution: str = ""
    version: str = ""
    status: str = "loaded"
    error: str = ""


class EnvironmentReport(_Record):
    """Where the run took place."""

    versions: dict[str, str]
    providers: list[str]
    cpu: str
    plugins: list[PluginReport] = Field(default_factory=list)


class Report(_Record):
    """The record of one run.

    ``parity`` is the last comparison of the result with the original. ``verdict`` is "passed" only if that comparison was
    made, was not vacuous, the gate noticed the faults of the mutation self-test, and the result holds what the original holds
    of ``probes``. ``fates`` is filled by ``explain``. ``quantization`` is there if a quantizing pass was in the chain.
    """

    schema_version: Literal[1] = 1
    verdict: Verdict
    reason: str = ""
    model: ModelReport
    chain: str
    target: str = "cpu"
    verify: str = "model"
    environment: EnvironmentReport
    passes: list[PassReport] = Field(default_factory=list)
    fates: list[Fate] = Field(default_factory=list)
    parity: ParityEvidence | None = None
    mutation: MutationEvidence | None = None
    static: StaticEvidence | None = None
    probes: list[ProbeEvidence] = Field(default_factory=list)
    quantization: QuantizationReport | None = None
    warnings: list[str] = Field(default_factory=list)
    seconds: float = 0.0
    rss_peak: int = 0

    def to_json(self) -> str:
        """The JSON form, indented."""
        return self.model_dump_json(indent=2)

    def save(self, path: str | Path) -> None:
        """Writes the report: ``.html`` as a page, anything else as JSON."""
        from rewright.report.files import write

        write(self, Path(path))

    def show(self, console: Console | None = None) -> None:
        """Prints the report to the terminal: to standard output unless a console of rich is given."""
        from rewright.report.terminal import show

        show(self, console)

    def counts(self) -> Mapping[str, int]:
        """Sites kept, by pass."""
        kept: dict[str, int] = {}
        for item in self.passes:
            kept[item.name] = kept.get(item.name, 0) + sum(site.status == "kept" for site in item.sites)
        return kept
