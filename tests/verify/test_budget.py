"""What quantizing passes may lose: reading it, and judging by it."""

from __future__ import annotations

import numpy as np
import pytest

from rewright.model.errors import UsageError
from rewright.verify.budget import QuantizationBudget
from rewright.verify.comparison import compare
from rewright.verify.tolerance import tolerance_for


def judged(budget: str, wanted: np.ndarray, got: np.ndarray) -> str:
    return compare("y", wanted, got, tolerance_for(wanted.dtype, "quantizing"), QuantizationBudget.parse(budget)).message


def test_what_is_not_named_stays_as_it_is() -> None:
    budget = QuantizationBudget.parse(" sqnr = 25, top1=0.99 ")
    assert (budget.sqnr_db, budget.top1, budget.cosine) == (25.0, 0.99, QuantizationBudget().cosine)
    assert QuantizationBudget.parse(budget.text) == budget
    assert QuantizationBudget.parse("") == QuantizationBudget()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sqnr", "'sqnr' is no part of a budget"),
        ("sqrn=3", "Did you mean sqnr"),
        ("top1=99", "share between 0 and 1"),
        ("top1=high", "top1 is 'high'"),
        ("sqnr=nan", "number of decibels"),
        ("max_abs=-1", "0 or more"),
        ("step=1.5", "whole number"),
    ],
)
def test_what_makes_no_sense_is_said(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        QuantizationBudget.parse(text)


def test_each_bound_can_fail() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((64, 10), dtype=np.float32)
    noisy = wanted + 0.02 * rng.standard_normal(wanted.shape, dtype=np.float32)
    assert judged("sqnr=20", wanted, noisy) == ""
    assert "SQNR" in judged("sqnr=60", wanted, noisy)
    assert "cosine" in judged("sqnr=0, cosine=0.99999", wanted, noisy)
    assert "largest difference" in judged("max_abs=0.001", wanted, noisy)
    swapped = wanted.copy()
    top = np.argsort(wanted[0])[-2:]
    swapped[0, top] = swapped[0, top[::-1]]
    assert "top element agrees" in judged("sqnr=0, cosine=0, top1=1", wanted, swapped)
    assert judged("sqnr=0, cosine=0, top1=0.9", wanted, swapped) == ""
