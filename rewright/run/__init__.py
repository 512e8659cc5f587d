"""Running a chain of passes on a model."""

from rewright.passes.contract import FailurePolicy
from rewright.run.mending import run_passes
from rewright.run.options import (
    FAILURE_POLICIES,
    VERIFY_MODES,
    GateError,
    Progress,
    RunOptions,
    RunResult,
    VerifyMode,
)

__all__ = [
    "FAILURE_POLICIES",
    "VERIFY_MODES",
    "FailurePolicy",
    "GateError",
    "Progress",
    "RunOptions",
    "RunResult",
    "VerifyMode",
    "run_passes",
]
