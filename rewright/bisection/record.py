"""The record of a bisection. ``bisection.to_json()`` is the JSON form, schema 1."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rewright.report.model import EnvironmentReport
from rewright.verify.divergence import Divergence
from rewright.verify.parity import ParityEvidence
from rewright.verify.sites.evidence import RegionEvidence

Kind = Literal["crash", "contract", "structure", "interface", "parity", "sites"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Application(_Record):
    """One pass of the chain, as it was applied.

    Attributes:
        index: its place in the chain, from 0.
        name, backend, exactness: the pass.
        status: "failed" where it crashed or left no usable model, "not-run" where the chain had ended by then.
        sites: how often it fired.
        nodes_before, nodes_after: of the model.
        reason: why it failed.
    """

    index: int
    name: str
    backend: str
    exactness: str
    status: Literal["applied", "unchanged", "failed", "not-run"]
    sites: int = 0
    nodes_before: int = 0
    nodes_after: int = 0
    reason: str = ""


class Trial(_Record):
    """One model that was compared with the original.

    Attributes:
        step: what was searched for: the pass, or its sites.
        culprit: the place in the chain of the pass whose sites were tried; None where passes were.
        applied: how many passes were applied, or how many of the pass's changes.
        total: how many there are.
        what: the last of these passes, or the changes that were left out.
        status: what the comparison found; "unusable" where the model has no valid structure.
        output, max_abs, needed_rtol, rtol: the output that is worst, and its figures, where numbers were compared.
        reason: why it failed.
    """

    step: Literal["pass", "sites"]
    culprit: int | None = None
    applied: int
    total: int
    what: str
    status: Literal["passed", "failed", "vacuous", "not-run", "unusable"]
    output: str = ""
    max_abs: float | None = None
    needed_rtol: float | None = None
    rtol: float | None = None
    reason: str = ""


class Change(_Record):
    """A change of a pass that can be undone by itself: the sites that it covers, the nodes that go and those that come.

    `evidence` is what running it alone has shown, where that was asked for.
    """

    sites: list[str]
    at: str
    removed: list[str]
    added: list[str]
    evidence: RegionEvidence | None = None


class Culprit(_Record):
    """A pass that makes the model wrong, and what of it does.

    Attributes:
        index, name: its place in the chain, and its name.
        chain: the pass with its options, as chain text.
        kind: "parity": other numbers, or ONNX Runtime does not load or run the result; "structure" and "interface": it leaves no
            valid model, or another interface; "sites": a change of it gives other numbers when it is run alone on hard values,
            though the model's outputs hide it; "contract": what it reports and what it changes contradict each other; "crash".
        reason: what is wrong, of the model after the pass.
        before, after: the models without it and with it against the original.
        alone: the model with it against the model without it, to the tolerance of this pass alone. Where it agrees, the
            difference from the original has grown over several passes, and this one exceeds what is allowed.
        changes: how many changes the pass made that can be told apart.
        undo: the changes without which the rest of the pass is right, as few as were found.
        is_enough: whether these alone, without the others, make the model wrong.
        divergence: where it begins, between the model before and the one with these changes.
        folder: where the models were kept.
    """

    index: int
    name: str
    chain: str
    kind: Kind
    reason: str
    before: ParityEvidence | None = None
    after: ParityEvidence | None = None
    alone: ParityEvidence | None = None
    changes: int = 0
    undo: list[Change] = Field(default_factory=list)
    is_enough: bool = True
    divergence: Divergence | None = None
    folder: str | None = None


class Bisection(_Record):
    """What was found out about a chain on one model.

    Attributes:
        verdict: "clean" if nothing diverges.
        model: the path of the model.
        chain, target: what was run.
        applications: the passes, in order.
        trials: the models that were compared, in the order in which they were tried.
        culprits: what is wrong; one, where not every pass was asked for.
        unexamined: the passes after the culprit, about which nothing is known.
        inputs: the input sets that were run.
    """

    schema_version: Literal[1] = 1
    verdict: Literal["clean", "found"]
    model: str | None
    chain: str
    target: str
    applications: list[Application] = Field(default_factory=list)
    trials: list[Trial] = Field(default_factory=list)
    culprits: list[Culprit] = Field(default_factory=list)
    unexamined: list[str] = Field(default_factory=list)
    inputs: list[str] = Field(default_factory=list)
    environment: EnvironmentReport
    seconds: float = 0.0

    def to_json(self) -> str:
        """The JSON form, indented."""
        return self.model_dump_json(indent=2)
