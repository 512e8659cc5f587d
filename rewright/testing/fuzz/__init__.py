"""Fuzzing: every pass over generated graphs. ``python -m rewright.testing.fuzz --seconds 60 --seed 1``."""

from rewright.testing.fuzz.checks import Examiner, Finding, Tally
from rewright.testing.fuzz.process import Assignment, Outcome, fuzz

__all__ = ["Assignment", "Examiner", "Finding", "Outcome", "Tally", "fuzz"]
