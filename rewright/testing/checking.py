"""One call that checks a pass on a model: how often it fires, every gate, idempotence, refusals, and the input's bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rewright.api import Chain, Inputs
from rewright.model.carrier import Model
from rewright.passes.contract import Pass, Target
from rewright.passes.session import PassSession
from rewright.registry.catalog import default_catalog
from rewright.report.model import PassReport
from rewright.run import GateError, RunResult, VerifyMode
from rewright.run.applying import apply_pass
from rewright.run.options import PARITY_MODES
from rewright.testing import wording
from rewright.testing.sources import Seal, Source, model_of

PassLike: TypeAlias = Pass | type[Pass] | str
"""A configured pass, a pass class with its default options, or chain text."""


@dataclass(frozen=True)
class CheckedRun:
    """One check of a pass: what was run, on what, what came out, and what was wrong."""

    asked: str
    origin: Model
    result: RunResult
    problems: tuple[str, ...]

    @property
    def message(self) -> str:
        """Everything that is wrong, in one text; empty if nothing is."""
        return wording.failure(self.asked, self.origin, self.result, self.problems) if self.problems else ""

    @property
    def cannot_run(self) -> str:
        """Why the model itself cannot be run here, or an empty string."""
        report = self.result.report
        if report.parity is not None and report.parity.status == "not-run":
            return report.parity.reason
        return report.reason if report.reason.startswith("parity could not be run") else ""


OBSERVERS: list[Callable[[CheckedRun], None]] = []
"""Called with every run of ``check_pass`` before it raises; the pytest plugin collects its report here."""


def check_pass(
    pass_: PassLike,
    model: Source,
    *,
    sites: int | None = 1,
    refuses: str | None = None,
    becomes: Mapping[str, int] | None = None,
    inputs: Inputs | None = None,
    target: Target = "cpu",
    before: str = "",
    verify: VerifyMode = "sites",
    idempotent: bool = True,
) -> RunResult:
    """Runs a pass on a model and raises one AssertionError that lists everything that is wrong.

    Checked are: how often the pass fires; that the model is left as it is if it does not; structure, interface and parity
    (``verify``), and that the comparison could have failed; that a second run changes nothing; that the input is untouched.

    Args:
        pass_: a configured pass, a pass class, or chain text. Of chain text the sites of all passes count.
        model: ONNX text (a graph alone is enough), a path, a ModelProto, a Model or a GraphBuilder.
        sites: how often it fires; 0 for a refusal; None for any number of times.
        refuses: a regular expression that the reason of at least one rejection has to match.
        becomes: how often ops occur in the result, as ``{"BiasGelu": 1, "ai.onnx::Add": 0}``; without a domain, in any.
            Ops that are not named may occur any number of times.
        inputs: what parity runs on, as in ``Chain.run``; made from the model by default.
        target: where the result will run.
        before: chain text that is run first, unverified; the pass is compared with what that leaves.
        verify: "sites" (the default), "model", "strict", or without numbers "structure". A run that leaves the model as it is
            has nothing to compare, and is not verified.
        idempotent: whether a second run must change nothing.

    Returns:
        The run: ``result.model`` and ``result.report``.

    Raises:
        AssertionError: something is wrong.
        UsageError: the model's text does not parse, or an argument is wrong.
        ModelError: the model cannot be read.
    """
    __tracebackhide__ = True
    checked = examine(
        pass_,
        model,
        sites=sites,
        refuses=refuses,
        becomes=becomes,
        inputs=inputs,
        target=target,
        before=before,
        verify=verify,
        idempotent=idempotent,
    )
    if checked.problems:
        raise AssertionError(checked.message)
    return checked.result


def examine(
    pass_: PassLike,
    model: Source,
    *,
    sites: int | None = 1,
    refuses: str | None = None,
    becomes: Mapping[str, int] | None = None,
    inputs: Inputs | None = None,
    target: Target = "cpu",
    before: str = "",
    verify: VerifyMode = "sites",
    idempotent: bool = True,
    must_prove: bool = True,
) -> CheckedRun:
    """What ``check_pass`` found, for callers that do more with it than raise.

    ``must_prove`` says whether a comparison that could not have failed, or could not be made, is a problem.
    """
    chain = chain_of(pass_)
    start = model_of(model)
    seal = Seal(model, start)
    origin = Chain(before).run(start, target=target, verify="off").model if before else start
    own = list(chain) if isinstance(pass_, str) else [step for step in chain if step.name == pass_.name]
    mode: VerifyMode = verify if sites else "off"
    result = _run(chain, origin, target, mode, inputs)
    if sites is None and any(record.sites for record in result.report.passes):
        mode = verify  # only now is there something to compare
        result = _run(chain, origin, target, mode, inputs)
    records = [record for record in result.report.passes if record.name in {step.name for step in own}]

    problems = wording.firing_problems(records, sites)
    problems += wording.gate_problems(result.report.passes)
    problems += _refusal_problems(records, refuses)
    problems += _result_problems(result, becomes)
    if must_prove and mode in PARITY_MODES and result.report.verdict in ("failed", "unverified"):
        problems += wording.verdict_problems(result.report)
    if not problems and not any(record.sites for record in records):
        problems += [f"it {problem}" for problem in unrest(own, result.model, target)]
    elif idempotent and not problems:
        problems += [f"a second run {problem}" for problem in unrest(own, result.model, target)]
    problems += [f"the input was modified: {name} is not what it was before the run" for name in seal.broken()]

    checked = CheckedRun(chain.text, origin, result, tuple(problems))
    for observe in OBSERVERS:
        observe(checked)
    return checked


def refuses(pass_: PassLike, model: Source, reason: str, *, target: Target = "cpu", before: str = "") -> RunResult:
    """Checks that a pass leaves a model as it is and gives a reason that the regular expression ``reason`` matches.

    Raises: see ``check_pass``.
    """
    __tracebackhide__ = True
    return check_pass(pass_, model, sites=0, refuses=reason, target=target, before=before)


def chain_of(pass_: PassLike) -> Chain:
    """The chain of one pass, or of chain text; a pass need not be in the catalog."""
    if isinstance(pass_, str):
        return Chain(pass_)
    step = pass_() if isinstance(pass_, type) else pass_
    catalog = default_catalog()
    return Chain([step], catalog=catalog if step.name in catalog else catalog.extended(type(step)))


def _run(chain: Chain, model: Model, target: Target, verify: VerifyMode, inputs: Inputs | None) -> RunResult:
    """The run; where a pass has the policy to raise, with the model as it was and the report up to there."""
    try:
        return chain.run(model, target=target, verify=verify, inputs=inputs)
    except GateError as error:
        return RunResult(model, error.report)


def _refusal_problems(records: list[PassReport], reason: str | None) -> list[str]:
    if reason is None:
        return []
    given = [rejection for record in records for rejection in record.rejections]
    if any(re.search(reason, rejection.reason) for rejection in given):
        return []
    return [f"no rejection gives a reason that matches {reason!r}" + wording.rejections(records)]


def _result_problems(result: RunResult, becomes: Mapping[str, int] | None) -> list[str]:
    wrong = []
    for op, wanted in (becomes or {}).items():
        found = sum(count for key, count in result.model.op_counts().items() if op in (key, key.rpartition("::")[2]))
        if found != wanted:
            wrong.append(f"{found} x {op} instead of {wanted}")
    return [f"the result has {', '.join(wrong)}; it holds {wording.ops(result.model)}"] if wrong else []


def unrest(passes: Sequence[Pass], model: Model, target: Target = "cpu") -> list[str]:
    """What passes do to a model that they should leave as it is: sites, changes without a site, crashes.

    The passes are applied without the loop, which believes unverified passes that say that they did nothing.
    """
    for step in (part for whole in passes for part in whole.parts()):
        session = PassSession(step, model, target)
        after, problem = apply_pass(step, session)
        if after is None:
            return [f"crashes: {problem}"]
        if session.sites:
            return [f"fires again at {wording.count(len(session.sites), 'site')}:" + wording.sites(session.sites)]
        if after.fingerprint(with_facts=False) != model.fingerprint(with_facts=False):
            return [f"records no site, but changes the model{wording.difference(model, after)}"]
    return []
