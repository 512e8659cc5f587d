"""Generated models show what the models of a pass's author do not."""

from __future__ import annotations

import pytest
from bad_passes import HALF, Negations, Reciprocals

from rewright.testing import check_pass
from rewright.testing.random_graphs import leaves_unharmed


def test_a_pass_that_is_exact_for_powers_of_two_only() -> None:
    check_pass(Reciprocals, HALF)
    with pytest.raises(AssertionError, match="on a generated model, the check of 'reciprocals'") as raised:
        leaves_unharmed(Reciprocals(), 60, ("activations", "attention"), shrinking_seconds=0.5)
    message, _, text = str(raised.value).partition("\nthe model:\n")
    assert "elements differ" in message
    assert "Div" in text


def test_a_right_pass_harms_none() -> None:
    leaves_unharmed(Negations(), 3)
