"""What is held of every pass on every graph: it does not crash or hang, keeps the numbers, and says the same thing twice."""

from __future__ import annotations

import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, Literal

from onnx import ModelProto

from rewright.api import Chain
from rewright.model.carrier import Model
from rewright.model.errors import RewrightError
from rewright.model.load import load
from rewright.passes.contract import Target
from rewright.quant.activations import CalibrationError
from rewright.registry.catalog import Catalog
from rewright.report.model import PassReport
from rewright.run import RunOptions, RunResult, VerifyMode, run_passes
from rewright.testing.fuzz.echo import Echo
from rewright.testing.fuzz.whole import digest, whole
from rewright.verify.process import SessionWorker

Kind = Literal["crash", "wrong", "hang", "not idempotent", "nondeterministic", "changed input", "died"]

FIRST: Final = "O1"
"""What runs before a pass that is tried by itself, so that it sees what it sees in a level."""


@dataclass(frozen=True)
class Finding:
    """Something that must not happen.

    Attributes:
        kind: "crash" of a pass, "wrong" (a gate failed: numbers, structure, interface, or a model that does not load), and so on.
        chain: what was run on the graph, as chain text.
        culprit: the pass, as far as it is known.
        reason: what was seen.
    """

    kind: Kind
    chain: str
    culprit: str
    reason: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for findings that are likely one: without names and numbers."""
        words = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", self.reason)
        return self.kind, self.culprit, re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "N", words)[:80]


@dataclass
class Tally:
    """What was done: rewrites (sites) and verified runs by pass, and how verified runs ended."""

    rewrites: Counter[str] = field(default_factory=Counter)
    verified: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.rewrites.update(other.rewrites)
        self.verified.update(other.verified)
        self.ends.update(other.ends)


class OutOfTime(BaseException):
    """Not an Exception: a pass that catches those must not catch this."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the middle of what runs too long. Main thread, and systems with timers, only."""
    if not hasattr(signal, "setitimer"):  # there the parent process sees a hang, somewhat later
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Examiner:
    """Runs chains on graphs.

    Attributes:
        catalog: of the passes.
        verify: the mode of verified runs.
        target: where results are to run.
        limit: seconds for one run.
        echo: repeats runs in a process with other hashes; None leaves that out.
        worker: runs models; None starts one for each run, which takes longer than most runs.
        tally: what was done so far.
    """

    catalog: Catalog
    verify: VerifyMode = "model"
    limit: float = 60.0
    echo: Echo | None = None
    worker: SessionWorker | None = None
    target: Target = "cpu"
    tally: Tally = field(default_factory=Tally)

    def judge(self, model: ModelProto, chain: str, *, is_idempotent: bool, seed: int = 0) -> Finding | None:
        """The first thing that is wrong with a chain on a model, or None.

        An unverified run comes first: where it changes nothing there is nothing to verify.
        """
        started = time.perf_counter()
        try:
            with time_limit(self.limit):
                return self._judged(model, chain, is_idempotent, seed)
        except OutOfTime:
            where = f"no end after {time.perf_counter() - started:.0f} s"
            return Finding("hang", chain, _last(chain), where)
        except CalibrationError:  # a pass that has to be given data, which no model comes with
            self.tally.ends["data wanted"] += 1
            return None
        except RewrightError as error:
            return Finding("crash", chain, _last(chain), f"{type(error).__name__}: {error}")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} (in {Path(place.filename).name}, line {place.lineno})"
            return Finding("crash", chain, _last(chain), reason)

    def prepared(self, model: ModelProto) -> ModelProto | None:
        """The model after what runs before a single pass; None if that fails, which is found elsewhere."""
        try:
            with time_limit(self.limit):
                return whole(self._run(model, FIRST, "off").model)
        except (OutOfTime, Exception):
            return None

    def _run(self, model: ModelProto | Model, chain: str, verify: VerifyMode, seed: int = 0) -> RunResult:
        made = Chain(chain, catalog=self.catalog)
        return run_passes(load(model), made.passes, made.text, self._options(verify, seed))

    def _options(self, verify: VerifyMode, seed: int) -> RunOptions:
        return RunOptions(target=self.target, verify=verify, seed=seed, worker=self.worker)

    def _judged(self, model: ModelProto, chain: str, is_idempotent: bool, seed: int) -> Finding | None:
        before = model.SerializeToString(deterministic=True)
        plain = self._run(model, chain, "off")
        finding = _failure(plain, chain)
        if finding is not None:
            return finding
        self.tally.rewrites.update(plain.report.counts())
        if any(record.status == "applied" for record in plain.report.passes):
            finding = self._verified(model, chain, plain, seed) or self._repeated(model, chain, plain, is_idempotent)
        if finding is None and model.SerializeToString(deterministic=True) != before:
            finding = Finding("changed input", chain, _last(chain), "the model that was given is not what it was")
        return finding

    def _verified(self, model: ModelProto, chain: str, plain: RunResult, seed: int) -> Finding | None:
        checked = self._run(model, chain, self.verify, seed)
        for record in checked.report.passes:
            self.tally.verified[record.name] += record.status == "applied"
        finding = _failure(checked, chain)
        if finding is not None:
            return finding
        if any(_is_overdone(record) for record in checked.report.passes):
            self.tally.ends["approximation undone"] += 1
            return None
        self.tally.ends[_end(checked)] += 1
        if digest(checked.model) != digest(plain.model):
            return Finding("nondeterministic", chain, _last(chain), "a verified run gives another model than an unverified one")
        return None

    def _repeated(self, model: ModelProto, chain: str, plain: RunResult, is_idempotent: bool) -> Finding | None:
        if self.echo is not None and self.echo.digest(model, chain, self.target) != digest(plain.model):
            return Finding("nondeterministic", chain, _last(chain), "a process with other hashes gives another model")
        if not is_idempotent:
            return None
        again = self._run(plain.model, chain, "off").report
        changed = [record for record in again.passes if record.status != "unchanged"]
        if changed:
            reason = f"run on its own result, {changed[0].name} fires again ({len(changed[0].sites)} sites)"
            return Finding("not idempotent", chain, changed[0].name, reason)
        return None


def _failure(result: RunResult, chain: str) -> Finding | None:
    for record in result.report.passes:
        if record.status == "failed":
            return Finding("crash", chain, record.name, record.reason)
        if _is_overdone(record) or record.backend == "ort":  # what ONNX Runtime does wrong, and is undone, is no finding
            continue
        if record.status == "rolled-back" or any(site.status != "kept" for site in record.sites):
            return Finding("wrong", chain, record.name, record.reason or "sites were rolled back")
    if result.report.verdict == "failed":
        return Finding("wrong", chain, _last(chain), result.report.reason)
    return None


def _is_overdone(record: PassReport) -> bool:
    """Whether a pass that promises an approximation, or a budget, was undone because the model's outputs move too far.

    Some graphs amplify any difference, such as a normalisation of nearly equal numbers: undoing the pass there is right.
    """
    return record.exactness in ("approximate", "quantizing") and any(told in record.reason for told in ("parity:", "the budget"))


def _end(result: RunResult) -> str:
    """How a verified run ended: "passed", or why it says nothing about the numbers."""
    if result.report.verdict == "passed":
        return "passed"
    if result.report.parity is not None and result.report.parity.status in ("vacuous", "not-run"):
        return result.report.parity.status
    return "self-test failed" if result.report.mutation is not None else "unverified"


def _last(chain: str) -> str:
    return chain.rpartition(",")[2].strip().partition("{")[0]
