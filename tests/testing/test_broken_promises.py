"""A pass that breaks a promise fails in the conformance test of that promise, and in no other."""

from __future__ import annotations

import pytest
from conformance_run import outcomes

SUITE = """
import bad_passes
from bad_passes import *
from rewright.testing import PassConformance

class TestBad(PassConformance):
    pass_ = {pass_}
    fires = {{"it": {model}}}
    opsets = (18,)
    dtypes = ("float16",)
    random_graphs = 0
    verify = "model"
"""

ALWAYS = ("test_facts", "test_options", "test_fires", "test_is_deterministic", "test_emits_what_it_declares")
"""What is run of the suite whatever the promise, beside the tests that have to fail."""

INNER = "test_inner_values_that_are_used"
BAD = {
    "WrongEpsilon": ("NORM", {"test_fires", "test_other_opsets", "test_in_bodies"}),
    "NotIdempotent": ("NEGATIONS", {"test_fires"}),
    "DropsAnOutput": ("NEGATIONS", {INNER, "test_twice_in_one_model"}),
    "MutatesOnTheSecondRun": ("NEGATIONS", {"test_fires"}),
    "LiesAboutSites": ("NEGATIONS", {"test_fires"}),
    "SaysItFired": ("NEGATIONS", {"test_fires"}),
    "IgnoresOtherReaders": ("NEGATIONS", {INNER}),
    "IgnoresOutputs": ("NEGATIONS", {INNER}),
    "MainGraphOnly": ("NEGATIONS", {"test_in_bodies"}),
    "TakesDefaultsForConstants": ("ZERO", {"test_weights_that_callers_may_replace"}),
    "RandomNames": ("NEGATIONS", {"test_is_deterministic"}),
    "Undocumented": ("NEGATIONS", {"test_facts"}),
    "UnreadableOption(marker=Marker())": ("NEGATIONS", set(ALWAYS) - {"test_facts"}),  # it cannot even be run
    "Undeclared": ("BIAS_GELU", {"test_emits_what_it_declares"}),
    "AnyTarget": ("GELU", {"test_targets", "test_other_dtypes"}),
    "Float32Constant": ("DOUBLE", {"test_other_dtypes"}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_promise_fails_its_test(pytester: pytest.Pytester, name: str) -> None:
    model, expected = BAD[name]
    found = outcomes(pytester, SUITE.format(pass_=name, model=model), "-k", " or ".join({*ALWAYS, *expected}))
    assert found["failed"] == expected
    assert found["passed"] | found["failed"] == {*ALWAYS, *expected}
