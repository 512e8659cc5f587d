"""The one loop: apply a pass, check it, keep it or roll it back, write down what happened."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.memory import rss_peak
from rewright.model.order import stable_order
from rewright.model.view import View, collector_paused
from rewright.ops.lowering import lower
from rewright.passes.bounds import ModelBounds
from rewright.passes.contract import FailurePolicy, Pass, Site
from rewright.passes.session import PassSession
from rewright.report.environment import environment
from rewright.report.model import (
    CoveredReport,
    ModelReport,
    PassReport,
    RejectionReport,
    Report,
    Seconds,
    SiteReport,
    Verdict,
)
from rewright.report.quantization import doubts, quantization_of
from rewright.run.applying import apply_pass
from rewright.run.gates import Gates
from rewright.run.options import PARITY_MODES, SITE_MODES, GateError, RunOptions, RunResult
from rewright.run.probing import broken_probe, probe
from rewright.run.reducing import leave_reproducer
from rewright.verify.budget import QuantizationBudget
from rewright.verify.inputs import DEFAULT_COUNT, InputSet, make_input_sets
from rewright.verify.mutation import self_test
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.probes import ProbeEvidence
from rewright.verify.process import SessionError, SessionWorker, first_line
from rewright.verify.sites.gate import SiteGate
from rewright.verify.static.checks import static_checks
from rewright.verify.static.value_bounds import value_bounds
from rewright.verify.tolerance import least_exact

_STRICT_INPUT_SETS: Final = 8
_LOADED_WHOLE: Final = 20_000


def run_passes(model: Model, passes: Sequence[Pass], chain_text: str, options: RunOptions) -> RunResult:
    """Runs configured passes on ``model`` in order.

    Raises:
        GateError: a gate failed or a pass crashed, and ``options.on_failure`` is "raise".
        UsageError: the inputs that the caller gave do not fit the model.
    """
    # A run makes millions of objects and, but for views that are rolled back, little garbage.
    own = SessionWorker() if options.worker is None else nullcontext(options.worker)
    with collector_paused(), own as worker:
        if options.verify == "off":
            try:
                return _Run(model, passes, chain_text, options, worker, trusting=True).run()
            except _Mistrust:  # again, to learn which pass it was, and to do without it
                gc.collect()
        return _Run(model, passes, chain_text, options, worker).run()


class _Mistrust(Exception):  # noqa: N818  (control flow, never seen by a user)
    """A pass crashed, or its sites and its changes do not agree, and nobody has kept the model before it."""


@dataclass
class _Run:
    """One run of a chain.

    ``trusting``: the model is exported from the view only where something needs it, not after each pass, because nothing is
    checked then. What passes that edit a view record is taken for what they did; _Mistrust is raised where that proves wrong.
    """

    original: Model
    passes: Sequence[Pass]
    chain_text: str
    options: RunOptions
    worker: SessionWorker
    trusting: bool = False
    records: list[PassReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.warnings: list[str] = []
        self.current = self.original
        self.node_count = self.original.node_count()
        self.view: View | None = None
        self.is_ahead = False  # whether the view has changes that ``current`` has not
        self.no_parity = f"parity was not asked for (verify: {self.options.verify})"
        self.gate = self._parity_gate() if self.options.verify in PARITY_MODES else None
        self.gates = Gates(
            worker=self.worker,
            parity=self.gate,
            make_sites=self._site_gate,
            site_mode="all" if self.options.verify in SITE_MODES else "failed" if self.gate is not None else "deferred",
            loads_kernels=self.options.target == "cpu",
        )
        self.last_parity: ParityEvidence | None = None

    def _parity_gate(self) -> ParityGate | None:
        try:
            return ParityGate(
                self.original,
                self.options.input_sets,
                self.worker,
                seed=self.options.seed,
                lower=None if self.options.target == "cpu" else lower,
                budget=self.options.budget,
                count=_STRICT_INPUT_SETS if self.options.verify == "strict" else DEFAULT_COUNT,
            )
        except UsageError as error:  # no inputs can be made for this model; the caller's own were checked before
            self.no_parity = f"parity could not be run: {error}"
            return None

    def _site_gate(self) -> SiteGate:
        sets = self.gate.input_sets if self.gate is not None else []
        return SiteGate(
            self.original,
            # where the original does not run as a whole, what makes the values around a site may still do
            sets or self.options.input_sets or make_input_sets(self.original, self.options.seed),
            self.worker,
            lower=None if self.options.target == "cpu" else lower,
            budget=self.options.budget,
            seed=self.options.seed,
        )

    def run(self) -> RunResult:
        if self.options.verify != "off":
            self.worker.warm_up()
        for index, step in enumerate(self.passes):
            self._progress(step.name, index)
            record = self._step(step, index)
            self.records.append(record)
            if (record.status in ("failed", "rolled-back") or record.undone) and self._policy(step) == "raise":
                report = self._report("failed", f"{step.name}: {record.reason}")
                hint = f"`rewright reproduce {record.reproducer}` runs it again." if record.reproducer else ""
                raise GateError(f"the pass '{step.name}' failed: {record.reason}.", hint, report)
        self._catch_up()
        self._progress("final checks", len(self.passes))
        return self._finish()

    def _bounds(self, model: Model) -> ModelBounds:
        """What a pass is told of the numbers that values hold: on the sets of the gate, where there is one."""
        try:
            sets: Sequence[InputSet] = self.gate.input_sets if self.gate is not None else []
            sets = sets or self.options.input_sets or make_input_sets(self.original, self.options.seed)
        except UsageError as error:
            return replace(value_bounds(model, (), self.worker), problems=(error.message,))
        return value_bounds(model, sets, self.worker)

    def _policy(self, step: Pass) -> FailurePolicy:
        return step.on_failure or self.options.on_failure

    def _progress(self, what: str, index: int) -> None:
        if self.options.progress is not None:
            self.options.progress(what, index, len(self.passes))

    def _step(self, step: Pass, index: int) -> PassReport:
        """Applies one pass and runs the gates; on return ``self.current``, or the view if that is ahead, is what is kept."""
        is_trusted = self.trusting and step.edits_view and not step.is_deferred
        if not is_trusted:
            self._catch_up()
        record = PassReport(
            name=step.name,
            backend=step.backend,
            status="unchanged",
            exactness=step.exactness,
            options=step.model_dump(mode="json", exclude_defaults=True, exclude={"backend", "on_failure"}),
            nodes_before=self.node_count,
        )
        session = PassSession(step, self.current, self.options.target, self.view, isolation=self.worker, bounds=self._bounds)
        began = time.perf_counter()
        candidate = self._apply_trusted(step, session, record) if is_trusted else self._apply(step, session, record)
        applied = time.perf_counter()
        before = self.current
        kept: Model | None = candidate
        if candidate is not None and not is_trusted:
            kept = self._judge(step, session.sites, candidate, record)
        record.seconds = Seconds(apply=applied - began, verify=time.perf_counter() - applied)
        record.rejections = [RejectionReport(node=item.node, reason=item.reason) for item in session.rejections]
        record.notes = list(session.notes)
        record.coverage = [CoveredReport(**asdict(entry)) for entry in session.coverage]
        undone = {name for change in record.undone for name in change.sites}
        is_applied = record.status == "applied" and kept is not None
        record.sites = [_site(site, is_applied and site.id not in undone) for site in session.sites]
        if is_applied and kept is not None:
            self.current = kept
        if record.status == "unchanged" or (is_applied and kept is candidate):
            self.view = session.opened
        else:
            self.view = None  # it shows what was rolled back
            del session, candidate, kept
            gc.collect()  # a view is one large cycle, and the collector is paused
            self._reproduce(step, index, before, record)
        self.node_count = _nodes_of(self.view) if self.is_ahead and self.view is not None else self.current.node_count()
        record.nodes_after = self.node_count
        record.rss_peak = rss_peak()
        return record

    def _apply(self, step: Pass, session: PassSession, record: PassReport) -> Model | None:
        """The candidate, or None if the pass crashed. A crash of a pass is a failed pass, not a failed run."""
        candidate, reason = apply_pass(step, session)
        if candidate is None:
            record.status, record.reason = "failed", reason
        return candidate

    def _apply_trusted(self, step: Pass, session: PassSession, record: PassReport) -> Model:
        """Applies a pass to the view, which runs ahead of the model that is returned if the pass has changed anything."""
        try:
            step.apply(session)
            if session.result is not None:
                raise _Mistrust
            if session.sites:
                record.status = "applied"
                self.is_ahead = True
                for graph in session.view.graphs():
                    graph.nodes = stable_order(graph.nodes)
        except Exception as error:
            raise _Mistrust from error
        return self.current

    def _catch_up(self) -> None:
        """Exports what the view has changed since ``current``."""
        if self.view is None or not self.is_ahead:
            return
        try:
            candidate = self.view.to_model()
        except Exception as error:
            raise _Mistrust from error
        if candidate.fingerprint() == self.current.fingerprint():
            raise _Mistrust
        self.current, self.is_ahead = candidate, False

    def _judge(self, step: Pass, sites: Sequence[Site], candidate: Model, record: PassReport) -> Model | None:
        """Fills in the record; returns what is kept of the candidate, None if nothing is."""
        if candidate is self.current or candidate.fingerprint() == self.current.fingerprint():
            if sites:
                record.status, record.reason = "failed", f"the pass reports {len(sites)} sites but changed nothing"
            return candidate
        if not sites and candidate.fingerprint(with_facts=False) == self.current.fingerprint(with_facts=False):
            return candidate  # more became known about the outputs of ops that onnx does not know, and is written beside them
        if not sites:
            record.status = "failed"
            record.reason = "the pass changed the model but reports no site (Pass developer: record each change)"
            return None
        record.status = "applied"
        if self.options.verify == "off":
            return candidate
        kept = self.gates.pass_through(step, self.current, candidate, sites, record, self._policy(step))
        self.last_parity = self.gates.last_parity
        if kept is None:
            record.status = "rolled-back"
        return kept

    def _reproduce(self, step: Pass, index: int, before: Model, record: PassReport) -> None:
        if self.options.reproducers is None:
            return
        self._progress(f"reducing what {step.name} fails on", index)
        sets = self.gate.input_sets if self.gate is not None else []
        folder = self.options.reproducers / f"{index:02d}-{step.name}"
        leave_reproducer(folder, step, before, record, sets, lambda *part: self._attempt(step, *part), self.options)

    def _attempt(self, step: Pass, model: Model, input_sets: Sequence[InputSet], worker: SessionWorker) -> PassReport:
        """The pass on a part of the model, judged as it is judged here."""
        options = replace(self.options, input_sets=input_sets or None, reproducers=None, progress=None)
        return _Run(model, [step], "", options, worker)._step(step, 0)

    def _finish(self) -> RunResult:
        """The last gates, on the result as a whole."""
        mutation, reason = None, ""
        probes: list[ProbeEvidence] = []
        rolled_back = [record.name for record in self.records if record.status in ("failed", "rolled-back") or record.undone]
        verdict: Verdict = "unverified"
        if self.gate is None:
            problem = self._load_problem()
            verdict, reason = ("failed", problem) if problem else ("unverified", self.no_parity)
        else:
            if self.last_parity is None:
                self.last_parity = self.gate.check(self.current, "exact")
            if self.options.verify == "strict" and self.last_parity.status == "passed":
                self.last_parity = self._under_ort_optimizations()
            if self.last_parity.status == "passed":
                mutation, probes = self_test(self.original, self.gate), probe(self.gate, self.current)
                if broken := broken_probe(probes):
                    verdict, reason = "failed", broken
                elif mutation.status == "failed" and not mutation.noticed:
                    reason = mutation.reason
                else:
                    verdict = "passed-with-rollbacks" if rolled_back else "passed"
            elif self.last_parity.status == "failed":
                verdict, reason = "failed", self.last_parity.reason
            else:
                what = "could not be run" if self.last_parity.status == "not-run" else "is vacuous"
                reason = f"parity {what}: {self.last_parity.reason}"
        report = self._report(verdict, reason)
        report.mutation, report.probes = mutation, probes
        if self.options.verify == "strict":
            sets = self.gate.input_sets if self.gate is not None else ()
            report.static = static_checks(self.current, self.options.target, input_sets=sets, worker=self.worker)
        return RunResult(self.current, report)

    def _load_problem(self) -> str:
        """Why ONNX Runtime does not load the result although it loads the original, or an empty string."""
        if self.options.verify == "off" or self.current is self.original or self.options.target != "cpu":
            return ""
        if self.current.node_count() > _LOADED_WHOLE:
            self.warnings.append(
                f"the result has {self.current.node_count()} nodes and was not loaded as a whole, because ONNX Runtime's loading"
                " time grows faster than the model; every new kind of node was loaded by itself (verify: model runs it all)"
            )
            return ""
        try:
            self.worker.load(self.current)
        except SessionError as error:
            try:
                self.worker.load(self.original)
            except SessionError:
                return ""
            return "ONNX Runtime does not load the result: " + first_line(error.message)
        return ""

    def _under_ort_optimizations(self) -> ParityEvidence:
        gate = ParityGate(
            self.original,
            self.gate.input_sets if self.gate is not None else None,
            self.worker,
            budget=self.options.budget,
            candidate_optimization="ORT_ENABLE_ALL",
        )
        gate.takes_other_types = self.gate is not None and self.gate.takes_other_types
        evidence = gate.check(self.current, least_exact(["reassociating", *(self.gate.kept if self.gate is not None else ())]))
        if evidence.status == "failed":
            evidence.reason = f"under ONNX Runtime's own optimizations: {evidence.reason}"
        return evidence

    def _report(self, verdict: Verdict, reason: str) -> Report:
        before, after = self.original, self.current
        return Report(
            verdict=verdict,
            reason=reason,
            model=ModelReport(
                path=str(before.path) if before.path is not None else None,
                nodes_before=before.node_count(),
                nodes_after=after.node_count(),
                ops_before=before.op_counts(),
                ops_after=after.op_counts(),
                bytes_before=before.nbytes(),
                bytes_after=after.nbytes(),
            ),
            chain=self.chain_text,
            target=self.options.target,
            verify=self.options.verify,
            environment=environment(self.options.plugins),
            passes=self.records,
            parity=self.last_parity,
            quantization=quantization_of(self.records, (self.options.budget or QuantizationBudget()).text),
            warnings=[*self.options.warnings, *self.warnings, *doubts(self.records, self.last_parity)],
            seconds=time.perf_counter() - self.started,
            rss_peak=rss_peak(),
        )


def _nodes_of(view: View) -> int:
    return sum(len(graph.nodes) for graph in view.graphs())


def _site(site: Site, kept: bool) -> SiteReport:
    return SiteReport(
        id=site.id,
        status="kept" if kept else "rolled-back",
        graph=site.graph,
        removed=list(site.removed),
        added=list(site.added),
        ops_removed=list(site.ops_removed),
        ops_added=list(site.ops_added),
    )
