"""What a run is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from rewright.model.carrier import Model
from rewright.model.errors import RewrightError
from rewright.passes.contract import FailurePolicy, Target
from rewright.report.model import Report
from rewright.verify.budget import QuantizationBudget
from rewright.verify.inputs import InputSet
from rewright.verify.process import SessionWorker

VerifyMode = Literal["off", "structure", "model", "sites", "strict"]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many passes are done, and how many there are."""

VERIFY_MODES: Final[tuple[VerifyMode, ...]] = ("off", "structure", "model", "sites", "strict")
FAILURE_POLICIES: Final[tuple[FailurePolicy, ...]] = get_args(FailurePolicy)
PARITY_MODES: Final[tuple[VerifyMode, ...]] = ("model", "sites", "strict")
"""The modes that compare numbers with the original."""

SITE_MODES: Final[tuple[VerifyMode, ...]] = ("sites", "strict")


class GateError(RewrightError):
    """A gate failed, or a pass crashed, and the policy is to raise. ``report`` is the record up to there."""

    exit_status = 1

    def __init__(self, message: str, hint: str, report: Report) -> None:
        super().__init__(message, hint)
        self.report = report


@dataclass(frozen=True)
class RunOptions:
    """How a chain is run.

    Attributes:
        target: where the result will run; decides which fused ops may be emitted.
        verify: "off" (what passes record is believed; a crash is undone), "structure" (no inference), "model" (parity after
            every pass), "sites" (and every site by itself, on hard values), "strict" (more inputs as well, and a last comparison
            under ONNX Runtime's own optimizations).
        on_failure: "rollback" undoes the sites that fail, keeps the others and goes on; "skip" undoes the whole pass; "raise"
            ends the run with GateError. A pass can have a policy of its own.
        input_sets: what parity runs on; None makes inputs from the model.
        seed: of the made inputs.
        budget: what quantizing passes may lose; None takes the default.
        reproducers: where a failure leaves a folder that reproduces it; None leaves none.
        progress: called before each step.
        plugins: the catalog's plugin records, for the report.
        worker: what runs models, for callers of many runs, who end it; None starts one for this run.
    """

    target: Target = "cpu"
    verify: VerifyMode = "model"
    on_failure: FailurePolicy = "rollback"
    input_sets: Sequence[InputSet] | None = None
    seed: int = 0
    budget: QuantizationBudget | None = None
    reproducers: Path | None = None
    progress: Progress | None = None
    plugins: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()
    worker: SessionWorker | None = None


@dataclass
class RunResult:
    """What a run gives: the model and the report."""

    model: Model
    report: Report

    def save(self, path: str | Path, external_data: bool | None = None) -> None:
        """Writes the model; see ``Model.save``."""
        self.model.save(path, external_data)
