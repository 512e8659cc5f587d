"""Runs mutants through the real loop, and says which gate caught each."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from types import new_class
from typing import ClassVar, Final, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict

from rewright.model.carrier import Model
from rewright.passes.contract import Pass
from rewright.passes.session import PassSession
from rewright.report.model import PassReport
from rewright.run import FailurePolicy, RunOptions, VerifyMode, run_passes
from rewright.testing.mutants.mutant import Mutant
from rewright.testing.mutants.subjects import Subject, promised_kernel

Gate = Literal["self", "structure", "interface", "kernels", "parity", "sites", "crash", "none"]
"""Who caught it; "self" is the comparison of what the pass reports with what it changed."""

_WHOLE: Final[FailurePolicy] = "skip"
"""A failing pass is undone as a whole, so that the next mutant starts from the same model."""


class Trial(BaseModel):
    """One mutant, and what became of it.

    Attributes:
        step: the pass.
        model: what it was applied to.
        op: the op that is broken.
        kind, fault: how.
        where: "one site" or "all sites".
        equivalent: the reason why it cannot show, or empty.
        caught: whether a gate failed.
        gate: which one; "none" if none did.
        reason: its words.
    """

    model_config = ConfigDict(extra="forbid")

    step: str
    model: str
    op: str
    kind: str
    fault: str
    where: str
    equivalent: str = ""
    caught: bool
    gate: Gate
    reason: str = ""


class _Mutated(Pass):
    """A pass that does what another one does, and then breaks what that has added; the model that it is for is its only one."""

    subject: ClassVar[Subject]
    mutant: ClassVar[Mutant | None]

    def apply(self, session: PassSession) -> None:
        if session.model.fingerprint() != self.subject.before.fingerprint():
            return
        session.result = self.subject.after if self.mutant is None else self.subject.broken(self.mutant)
        session.sites.extend(self.subject.sites)


def mutated(subject: Subject, mutant: Mutant | None) -> Pass:
    """The subject's pass with the fault, or without one; it has the name and the promise of the pass that it stands for."""
    namespace: dict[str, object] = {
        "__module__": __name__,
        "__doc__": subject.step.__doc__,
        "__annotations__": {},
        "name": subject.step.name,
        "exactness": subject.step.exactness,
        "changes_interface": subject.step.alters_interface,
        "subject": subject,
        "mutant": mutant,
    }
    made = new_class(f"Mutated{type(subject.step).__name__}", (_Mutated,), {}, lambda body: body.update(namespace))
    return cast(type[Pass], made)()


def unmutated(subject: Subject, verify: VerifyMode) -> PassReport:
    """What the gates say of the pass as it is: anything but "applied" is a false alarm."""
    return _run(subject, [None], verify)[0]


def trials(subject: Subject, mutants: Sequence[Mutant], verify: VerifyMode) -> Iterator[Trial]:
    """Each mutant through the gates of ``verify``.

    The mutants are the passes of one chain, so that the original runs once; what is caught is undone, and after one that was not
    the next chain starts with the mutant that follows it.
    """
    pending = list(mutants)
    while pending:
        for count, record in enumerate(_run(subject, pending, verify), start=1):
            yield _trial(subject, pending[count - 1], record)
            if record.status == "applied":
                break
        pending = pending[count:]


def _run(subject: Subject, mutants: Sequence[Mutant | None], verify: VerifyMode) -> list[PassReport]:
    options = RunOptions(target=subject.target, verify=verify, on_failure=_WHOLE)
    steps = [mutated(subject, mutant) for mutant in mutants]
    gc.freeze()  # a pass that is undone has the collector run, and what is there by now stays
    try:
        with promised_kernel(subject.step.name):
            return run_passes(_copy(subject.before), steps, subject.step.name, options).report.passes
    finally:
        gc.unfreeze()


def _copy(model: Model) -> Model:
    return model.with_proto(model.proto)


def _trial(subject: Subject, mutant: Mutant, record: PassReport) -> Trial:
    caught = record.status in ("failed", "rolled-back")
    word = record.reason.partition(":")[0]
    gate = word if word in get_args(Gate) else "self" if record.reason.startswith("the pass ") else "crash"
    return Trial(
        step=subject.step.name,
        model=subject.label,
        op=mutant.op,
        kind=mutant.kind,
        fault=mutant.fault,
        where=mutant.where,
        equivalent=mutant.equivalent,
        caught=caught,
        gate=cast(Gate, gate) if caught else "none",
        reason=record.reason,
    )
