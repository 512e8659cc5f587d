"""What a reproducer is made of: the smallest part of the model on which the pass still fails in the same way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rewright.model.carrier import Model
from rewright.model.errors import RewrightError
from rewright.ops.lowering import lower
from rewright.passes.contract import Pass
from rewright.report.environment import environment
from rewright.report.model import PassReport
from rewright.reproducer import write_reproducer
from rewright.run.options import RunOptions
from rewright.verify.inputs import InputSet
from rewright.verify.process import TOO_SLOW, SessionWorker
from rewright.verify.reduction import Reduction, reduce_failure

Attempt = Callable[[Model, Sequence[InputSet], SessionWorker], PassReport]
"""Applies the pass to a part of the model, and judges it as it was judged on the whole."""

_TRIAL_SECONDS: Final = 30.0
"""After which one run of a part is ended."""

_MOST_SETS: Final = 4
"""Input sets whose inner values are held while parts are tried."""

_WAYS: Final = (
    ("is too slow", re.compile(TOO_SLOW)),
    ("crashes", re.compile(r"\bdied of\b|\bended with status\b")),
    ("breaks the structure", re.compile("^structure: ")),
    ("breaks the interface", re.compile("^interface: ")),
    ("has no kernel", re.compile("^kernels: ")),
    ("does not run", re.compile("does not run|^parity: (?!output)")),
)


def leave_reproducer(
    folder: Path,
    step: Pass,
    before: Model,
    record: PassReport,
    input_sets: Sequence[InputSet],
    attempt: Attempt,
    options: RunOptions,
) -> None:
    """Writes a reproducer of what the record says, and notes in it where that is, or why there is none."""
    found: Reduction | None = None
    try:
        found = _reduced(before, record, input_sets, attempt, None if options.target == "cpu" else lower)
    except Exception as error:  # the whole model reproduces it as well
        record.notes.append(f"the reproducer is not reduced: {type(error).__name__}: {error}")
    try:
        record.reproducer = str(folder)
        write_reproducer(
            folder,
            found.model if found is not None else before,
            step,
            found.input_sets if found is not None else input_sets,
            record,
            environment(options.plugins),
            options.target,
            options.verify,
            found.evidence if found is not None else None,
            _command_options(step.name, options),
        )
    except RewrightError as error:
        record.reproducer = None
        record.notes.append(f"no reproducer was written: {error}")


def _reduced(
    before: Model,
    record: PassReport,
    input_sets: Sequence[InputSet],
    attempt: Attempt,
    lowering: Callable[[Model], Model] | None,
) -> Reduction | None:
    """The model before the pass, reduced; None for a failure that takes too long to be seen again and again."""
    ways = ways_of(record)
    if "is too slow" in ways:
        return None
    worst = record.parity.worst_input_set if record.parity is not None else ""
    ordered = sorted(input_sets, key=lambda one: one.name != worst)[:_MOST_SETS]
    with SessionWorker(timeout=_TRIAL_SECONDS) as worker:

        def still_fails(part: Model, sets: Sequence[InputSet]) -> bool:
            return not ways.isdisjoint(ways_of(attempt(part, sets, worker)))

        return reduce_failure(before, _names_of_sites(record), ordered, worker, still_fails, lower=lowering)


def ways_of(record: PassReport) -> set[str]:
    """In which ways a pass failed, in words that are the same on a part of the model; empty if it did not fail."""
    if record.status == "failed":
        return {re.sub(r"\d+|'[^']*'", "", record.reason.partition(":")[0])}
    reasons = [change.reason for change in record.undone]
    if not reasons and record.status == "rolled-back":
        reasons = [record.reason]
    return {next((way for way, words in _WAYS if words.search(reason)), "gives other numbers") for reason in reasons}


def _names_of_sites(record: PassReport) -> list[list[str]]:
    """The names of the nodes of each change that failed; none where the pass crashed, or named none."""
    if record.status == "failed":
        return []
    removed = {site.id: site.removed for site in record.sites}
    if record.undone:
        groups = [
            [name for site in change.sites for name in removed.get(site, ())] or [change.at.removeprefix("the change at ")]
            for change in record.undone
        ]
    else:
        groups = [list(site.removed) for site in record.sites if site.status == "rolled-back"]
    return [group for group in groups if group]


def _command_options(step_name: str, options: RunOptions) -> list[str]:
    """What `rewright reproduce` needs beside the folder: the module of a pass that no installed distribution brings."""
    return [f"--plugin {plugin.name}" for plugin in options.plugins if step_name in plugin.passes and not plugin.distribution]
