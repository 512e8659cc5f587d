"""What outputs may lose where nobody says."""

from __future__ import annotations

from collections.abc import Iterable

from rewright.passes.contract import Pass
from rewright.passes.selection import QuantizingPass
from rewright.verify.budget import QuantizationBudget


def usual_budget(passes: Iterable[Pass]) -> QuantizationBudget:
    """The budget of the quantizing pass that expects to lose most, which is that of its number of bits."""
    budgets = [QuantizationBudget.parse(step.usual_budget) for step in passes if isinstance(step, QuantizingPass)]
    return min(budgets, key=lambda budget: budget.sqnr_db, default=QuantizationBudget())
