"""The process that examines graphs, and the one that watches it.

Whatever kills or stops the first, the second goes on: it keeps the graph that did it, and starts a new one.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import onnx
from onnx import ModelProto

from rewright.model.carrier import all_nodes
from rewright.passes.contract import Target
from rewright.registry.catalog import Catalog
from rewright.run import VerifyMode
from rewright.testing.fuzz.checks import Examiner, Finding, Tally
from rewright.testing.fuzz.echo import Echo
from rewright.testing.fuzz.examination import examine, generate
from rewright.testing.fuzz.findings import Kept, keep, minimize
from rewright.verify.process import SessionWorker

_BATCH = 25
"""Graphs from one seed; hypothesis remembers what it has tried, and that grows."""

_STEP = 1_000_003
_PATIENCE = 4.0
"""Times the limit of one run without a sign of life, after which a process is taken for hanging."""


@dataclass(frozen=True)
class Assignment:
    """What a run of the fuzzer is asked for.

    Attributes:
        passes: names of passes and levels.
        seconds: how long, at most.
        graphs: how many graphs, at most; None for no limit.
        seed: the same seed gives the same graphs.
        folder: where findings are kept.
        verify: the mode of verified runs.
        target: where results are to run.
        limit: seconds for one run of a chain.
        minimizing: seconds for making one finding small; 0 keeps it as it is.
        jobs: processes.
        plugins, autoload: where the catalog comes from.
    """

    passes: tuple[str, ...]
    seconds: float
    seed: int
    folder: Path
    graphs: int | None = None
    verify: VerifyMode = "model"
    target: Target = "cpu"
    limit: float = 60.0
    minimizing: float = 30.0
    jobs: int = 1
    plugins: tuple[str, ...] = ()
    autoload: bool = True


@dataclass
class Outcome:
    """What a run of the fuzzer gave.

    Attributes:
        graphs: how many were examined.
        tally: rewrites and verified runs.
        findings: the first of each sort, with its folder.
        repeats: how often each sort was seen.
    """

    graphs: int = 0
    tally: Tally = field(default_factory=Tally)
    findings: dict[tuple[str, str, str], tuple[Finding, Path]] = field(default_factory=dict)
    repeats: dict[tuple[str, str, str], int] = field(default_factory=dict)


Progress = Callable[[Outcome], None]


def fuzz(assignment: Assignment, progress: Progress | None = None) -> Outcome:
    """Runs the fuzzer. ``progress`` is called now and then with what is known so far."""
    with tempfile.TemporaryDirectory(prefix="rewright-fuzz-") as scratch:
        return _Watch(assignment, Path(scratch), progress).run()


@dataclass
class _Child:
    process: BaseProcess
    messages: Connection
    current: Path
    seed: int
    alive_at: float


class _Watch:
    def __init__(self, assignment: Assignment, scratch: Path, progress: Progress | None) -> None:
        self.assignment, self.scratch, self.progress = assignment, scratch, progress
        self.outcome = Outcome()
        self.end = time.monotonic() + assignment.seconds
        self.context = multiprocessing.get_context("spawn")

    def run(self) -> Outcome:
        children = [self._started(job, self.assignment.seed + job * _STEP) for job in range(self.assignment.jobs)]
        try:
            while children and not self._is_complete():
                ready = wait([child.messages for child in children], timeout=1.0)
                for child in list(children):
                    is_open = self._heard(child) if child.messages in ready else True
                    if is_open and not self._hangs(child):
                        continue
                    children.remove(child)
                    self._buried(child, is_open)
                    if time.monotonic() < self.end:
                        children.append(self._started(len(children), child.seed + 1))
        finally:
            for child in children:
                child.process.kill()
                child.process.join()
        return self.outcome

    def _is_complete(self) -> bool:
        return self.assignment.graphs is not None and self.outcome.graphs >= self.assignment.graphs

    def _started(self, job: int, seed: int) -> _Child:
        messages, other_end = self.context.Pipe(duplex=False)
        current = self.scratch / f"{job}-{seed}.onnx"
        remaining = self.end - time.monotonic()
        process = self.context.Process(target=_work, args=(self.assignment, seed, remaining, current, other_end), daemon=False)
        process.start()
        other_end.close()
        return _Child(process, messages, current, seed, time.monotonic())

    def _heard(self, child: _Child) -> bool:
        """Takes one message; whether more may come."""
        try:
            message = child.messages.recv()
        except (EOFError, OSError):
            return False
        child.alive_at = time.monotonic()
        if isinstance(message, Tally):
            self.outcome.graphs += 1
            self.outcome.tally.add(message)
        elif isinstance(message, int):
            child.seed = message
        else:
            self._note(*message)
        if self.progress is not None:
            self.progress(self.outcome)
        return True

    def _note(self, key: tuple[str, str, str], finding: Finding, place: Path | None) -> None:
        self.outcome.repeats[key] = self.outcome.repeats.get(key, 0) + 1
        if place is not None and key not in self.outcome.findings:
            self.outcome.findings[key] = finding, place

    def _hangs(self, child: _Child) -> bool:
        patience = _PATIENCE * self.assignment.limit + self.assignment.minimizing * 2
        return time.monotonic() - child.alive_at > patience

    def _buried(self, child: _Child, hung: bool) -> None:
        """Ends a child that hangs, or has ended; what it died of is a finding."""
        if hung:
            child.process.kill()
        child.process.join()
        child.messages.close()
        status = child.process.exitcode
        if (status or hung) and child.current.is_file():
            reason = "no sign of life" if hung else f"the process ended with status {status}"
            finding = Finding("hang" if hung else "died", ", ".join(self.assignment.passes), "", reason)
            model = onnx.load(child.current)
            kept = Kept(model, finding, self.assignment.verify, child.seed, self.assignment.target)
            place = keep(self.assignment.folder, kept)
            self._note(finding.key, finding, place)


def _work(assignment: Assignment, seed: int, seconds: float, current: Path, messages: Connection) -> None:
    """Examines graphs until the time is over; one message for each graph, and one for each finding."""
    end = time.monotonic() + seconds
    catalog = Catalog.load(assignment.plugins, assignment.autoload)
    with Echo(assignment.plugins, assignment.autoload) as echo, SessionWorker(timeout=assignment.limit) as sessions:
        worker = _Worker(assignment, catalog, echo, sessions, current, messages)
        while time.monotonic() < end:
            messages.send(seed)
            count = 0

            def take(model: ModelProto, seed: int = seed) -> bool:
                nonlocal count
                if time.monotonic() >= end or count >= _BATCH:
                    return False
                if worker.is_new(model):
                    worker.examine(model, seed * _BATCH + count)
                count += 1
                return True

            generate(seed, take)
            seed += 1


@dataclass
class _Worker:
    assignment: Assignment
    catalog: Catalog
    echo: Echo
    sessions: SessionWorker
    current: Path
    messages: Connection
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    shapes: set[int] = field(default_factory=set)

    def is_new(self, model: ModelProto) -> bool:
        """Whether no graph had these ops in this order: hypothesis likes to vary one choice, or none."""
        shape = hash(tuple(node.op_type for node in all_nodes(model)))
        if shape in self.shapes:
            return False
        self.shapes.add(shape)
        return True

    def examine(self, model: ModelProto, number: int) -> None:
        onnx.save(model, self.current)
        examiner = self._examiner()
        found = list(examine(examiner, model, self.assignment.passes, number))
        self.messages.send(examiner.tally)
        for shown_on, finding in found:
            self._report(shown_on, finding, number)

    def _examiner(self) -> Examiner:
        assigned = self.assignment
        return Examiner(
            self.catalog,
            verify=assigned.verify,
            limit=assigned.limit,
            echo=self.echo,
            worker=self.sessions,
            target=assigned.target,
        )

    def _report(self, model: ModelProto, finding: Finding, number: int) -> None:
        key, place = finding.key, None
        if key not in self.seen:
            self.seen.add(key)
            if self.assignment.minimizing:
                model, finding = minimize(self._examiner(), model, finding, number, self.assignment.minimizing)
            place = keep(self.assignment.folder, Kept(model, finding, self.assignment.verify, number, self.assignment.target))
        self.messages.send((key, finding, place))
