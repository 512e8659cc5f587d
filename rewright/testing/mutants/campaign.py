"""All mutants of some passes over some models, and the table of what was caught."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.registry.catalog import did_you_mean
from rewright.run import VerifyMode
from rewright.testing.mutants.models import EXAMPLES
from rewright.testing.mutants.subjects import CLEANUPS, FUSIONS, Subject, subject_for
from rewright.testing.mutants.trials import Trial, trials, unmutated


class Row(BaseModel):
    """One pass.

    Attributes:
        step: the pass.
        models: how many it fired on.
        mutants: how many faults were tried that can show.
        caught: how many of them a gate noticed.
        gates: how many each gate noticed.
        equivalent: how many faults cannot show, by a rule; ``flagged`` of them were noticed all the same, by their rounding.
        share: caught of mutants.
    """

    model_config = ConfigDict(extra="forbid")

    step: str
    models: int
    mutants: int
    caught: int
    gates: dict[str, int]
    equivalent: int
    flagged: int
    share: float


class Campaign(BaseModel):
    """What a run found out.

    Attributes:
        verify: the mode that the gates were run in.
        rows: one for each pass.
        trials: one for each mutant.
        false_alarms: the unmutated passes that a gate did not let pass, with its reason.
        beyond: the approximating passes that, as they are, move the outputs of a model by more than they may.
        idle: the passes that fired on no model.
        seconds: what it took.
    """

    model_config = ConfigDict(extra="forbid")

    verify: str
    rows: list[Row] = Field(default_factory=list)
    trials: list[Trial] = Field(default_factory=list)
    false_alarms: list[str] = Field(default_factory=list)
    beyond: list[str] = Field(default_factory=list)
    idle: list[str] = Field(default_factory=list)
    seconds: float = 0.0

    @property
    def missed(self) -> list[Trial]:
        """The mutants that no gate noticed although they can show."""
        return [trial for trial in self.trials if not trial.caught and not trial.equivalent]

    def table(self) -> Table:
        """The rows, for a terminal."""
        table = Table(title=f"mutants caught at --verify {self.verify}")
        table.add_column("pass", style="bold", no_wrap=True)
        for heading in ("models", "tried", "caught", "share", "cannot show"):
            table.add_column(heading, justify="right")
        table.add_column("by gate")
        for row in self.rows:
            gates = ", ".join(f"{gate} {count}" for gate, count in row.gates.items())
            numbers = (str(row.models), str(row.mutants), str(row.caught), f"{row.share:.1%}", str(row.equivalent))
            table.add_row(row.step, *numbers, gates)
        return table


Progress = Callable[[str], None]


def run_campaign(
    passes: Sequence[str] = (),
    models: Iterable[str | PathLike[str]] = (),
    *,
    verify: VerifyMode = "sites",
    progress: Progress | None = None,
) -> Campaign:
    """Tries the mutants of the passes on the models.

    Args:
        passes: their names, those of cleanup passes included; all fusions by default.
        models: paths of exports, or names in ``EXAMPLES``; all of these by default. An example is used for the passes that it
            was made for, an export for every pass.
        verify: the gates; see ``rewright.Chain.run``.
        progress: called with a line for each pass on each model.

    Raises:
        UsageError: there is no such pass, model or example.
        ModelError: a model cannot be read.
    """
    wanted, known = tuple(passes) or FUSIONS, (*FUSIONS, *CLEANUPS)
    for name in wanted:
        if name not in known:
            raise UsageError(f"there are no mutants of '{name}'.", did_you_mean(name, known) or f"Of these: {', '.join(known)}.")
    campaign = Campaign(verify=verify)
    began = time.perf_counter()
    for subject in _subjects(wanted, [str(model) for model in models] or list(EXAMPLES)):
        if not subject.sites:
            continue
        alone = unmutated(subject, verify)
        if alone.status != "applied":
            line = f"{subject.step.name} on {subject.label}: {alone.reason or alone.status}"
            (campaign.beyond if _is_beyond(subject, alone.reason) else campaign.false_alarms).append(line)
            continue  # what is flagged without a fault says nothing about faults
        found = list(trials(subject, subject.mutants(), verify))
        campaign.trials.extend(found)
        if progress is not None:
            telling = [trial for trial in found if not trial.equivalent]
            caught = sum(trial.caught for trial in telling)
            progress(f"{subject.step.name} on {subject.label}: {caught} of {len(telling)} mutants caught")
    campaign.rows = [_row(name, campaign.trials) for name in wanted if any(trial.step == name for trial in campaign.trials)]
    campaign.idle = [name for name in wanted if all(row.step != name for row in campaign.rows)]
    campaign.seconds = time.perf_counter() - began
    return campaign


def _subjects(passes: Sequence[str], models: Sequence[str]) -> Iterator[Subject]:
    for given in models:
        example = EXAMPLES.get(given)
        if example is not None:
            model = load(example.build())
            for name, options in example.passes.items():
                if name in passes:
                    yield subject_for(name, model, given, options)
            continue
        path = Path(given)
        if not path.exists():
            near = did_you_mean(given, EXAMPLES) or f"Give a path, or one of {', '.join(EXAMPLES)}."
            raise UsageError(f"there is no model '{given}'.", near)
        model = load(path)
        for name in passes:
            yield subject_for(name, model, path.stem)


def _is_beyond(subject: Subject, reason: str) -> bool:
    """Whether an approximation adds up over the layers of the model: the gate is right to say so, and the pass is as promised."""
    return subject.step.exactness == "approximate" and reason.startswith("parity")


def _row(name: str, found: Sequence[Trial]) -> Row:
    own = [trial for trial in found if trial.step == name]
    telling = [trial for trial in own if not trial.equivalent]
    caught = [trial for trial in telling if trial.caught]
    return Row(
        step=name,
        models=len({trial.model for trial in own}),
        mutants=len(telling),
        caught=len(caught),
        gates=dict(Counter(trial.gate for trial in caught).most_common()),
        equivalent=len(own) - len(telling),
        flagged=sum(trial.caught for trial in own if trial.equivalent),
        share=len(caught) / len(telling) if telling else 1.0,
    )
