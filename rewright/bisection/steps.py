"""Applying the passes of a chain one after the other; every model on the way is kept, which costs a reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rewright.bisection.record import Application, Kind
from rewright.model.carrier import Model
from rewright.model.regions import GraphIndex, regions
from rewright.model.view import View
from rewright.passes.bounds import BoundsFinder
from rewright.passes.contract import Exactness, Pass, Site, Target
from rewright.passes.session import Isolation, PassSession
from rewright.run.applying import apply_pass
from rewright.verify.interface import check_interface
from rewright.verify.structure import check_structure
from rewright.verify.tolerance import least_exact


@dataclass(frozen=True)
class Applied:
    """One pass on one model.

    Attributes:
        index: its place in the chain.
        step: the pass.
        before, after: the model without it and with it; ``after`` is None where the pass crashed.
        sites: what it recorded.
        kind, reason: what is wrong with the result as far as that shows without running it; empty where nothing is.
    """

    index: int
    step: Pass
    before: Model
    after: Model | None
    sites: Sequence[Site] = ()
    kind: Kind | None = None
    reason: str = ""

    @property
    def is_change(self) -> bool:
        """Whether there is another model after it."""
        return self.after is not None and self.after is not self.before

    def record(self) -> Application:
        """The application as the record has it."""
        return Application(
            index=self.index,
            name=self.step.name,
            backend=self.step.backend,
            exactness=self.step.exactness,
            status="failed" if self.kind is not None else "applied" if self.is_change else "unchanged",
            sites=len(self.sites),
            nodes_before=self.before.node_count(),
            nodes_after=(self.after or self.before).node_count(),
            reason=self.reason,
        )


@dataclass
class Walk:
    """Applies passes in order. The editing view is shared by consecutive passes, as in a run."""

    current: Model
    target: Target
    isolation: Isolation | None = field(default=None, repr=False)
    view: View | None = field(default=None, repr=False)
    bounds: BoundsFinder | None = field(default=None, repr=False)

    def apply(self, index: int, step: Pass) -> Applied:
        """Applies a pass to ``current`` and, where the result can be used, goes on to it."""
        before = self.current
        session = PassSession(step, before, self.target, self.view, isolation=self.isolation, bounds=self.bounds)
        after, reason = apply_pass(step, session)
        self.view = None if after is None else session.opened
        if after is None:
            return Applied(index, step, before, None, tuple(session.sites), "crash", reason)
        if after is not before and after.fingerprint() == before.fingerprint():
            after = before
        kind, reason = _problem(step, before, after, session.sites)
        if kind is not None:
            self.view = None  # it shows the model that cannot be used
        else:
            self.current = after
        return Applied(index, step, before, after, tuple(session.sites), kind, reason)

    def take_back(self, applied: Applied) -> None:
        """Goes on without a pass."""
        self.current, self.view = applied.before, None


def _problem(step: Pass, before: Model, after: Model, sites: Sequence[Site]) -> tuple[Kind | None, str]:
    if after is before:
        return ("contract", f"the pass reports {len(sites)} sites but changed nothing") if sites else (None, "")
    # without a change that has a place, more became known about values, and is written beside them
    if not sites and regions(GraphIndex(before), GraphIndex(after)):
        return "contract", "the pass changed the model but reports no site (Pass developer: record each change)"
    structure = check_structure(before, after)
    if structure.status == "failed":
        return "structure", structure.reason
    if not step.alters_interface:
        interface = check_interface(before, after)
        if interface.status == "failed":
            return "interface", interface.reason
    return None, ""


def promised(passes: Iterable[Applied]) -> Exactness:
    """The least exact promise of the passes that changed something."""
    return least_exact(applied.step.exactness for applied in passes if applied.is_change)
