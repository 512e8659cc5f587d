"""The conformance suite passes a pass that is right, and fails a pass that breaks a promise, in the test of that promise."""

from __future__ import annotations

import pytest

from rewright.testing import PassConformance

RIGHT = """
from bad_passes import NEGATIONS, Negations
from rewright.testing import PassConformance

class TestNegations(PassConformance):
    pass_ = Negations
    fires = {"two": NEGATIONS, "four": (NEGATIONS.replace("y =", "c = Neg(b) d = Neg(c) y =").replace("(b) }", "(d) }"), 2)}
    opsets = (11, 23)
    dtypes = ("float64", "bfloat16")
    verify = "model"
    random_graphs = 2
"""

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


def outcomes(pytester: pytest.Pytester, source: str, *options: str) -> dict[str, set[str]]:
    """Names of test functions by outcome; one that has failed for some parameters has failed."""
    path = pytester.makepyfile(test_suite=source)
    reports = pytester.inline_run(path, "-p", "no:cacheprovider", "-p", "no:xdist", *options).listoutcomes()
    names = [{report.nodeid.rpartition("::")[2].partition("[")[0] for report in found} for found in reports]
    return dict(zip(("passed", "skipped", "failed"), names, strict=True))


def test_a_right_pass_conforms(pytester: pytest.Pytester) -> None:
    found = outcomes(pytester, RIGHT)
    assert not found["failed"]
    inherited = {name for name in dir(PassConformance) if name.startswith("test_")}
    without_model = {"test_refuses", "test_shared_weights", "test_weights_that_callers_may_replace"}  # no refusals, no weights
    assert found["passed"] == inherited - without_model
    assert without_model <= found["skipped"]


@pytest.mark.parametrize("name", BAD)
def test_a_broken_promise_fails_its_test(pytester: pytest.Pytester, name: str) -> None:
    model, expected = BAD[name]
    found = outcomes(pytester, SUITE.format(pass_=name, model=model), "-k", " or ".join({*ALWAYS, *expected}))
    assert found["failed"] == expected
    assert found["passed"] | found["failed"] == {*ALWAYS, *expected}


def test_a_suite_without_pass_or_model_says_so(pytester: pytest.Pytester) -> None:
    source = """
    from rewright.testing import PassConformance

    class TestNothing(PassConformance):
        pass
    """
    assert outcomes(pytester, source)["failed"] == {"test_something_is_tested"}


def test_refusals_have_to_give_their_reason(pytester: pytest.Pytester) -> None:
    source = """
    from bad_passes import BIAS_GELU, Undeclared
    from rewright.testing import PassConformance

    MATRIX = BIAS_GELU.replace("float[4] b", "float[1, 4] b")

    class TestTwo(PassConformance):
        passes = (Undeclared(), Undeclared(strict=True))
        fires = {"it": BIAS_GELU}
        refuses = {"matrix": (MATRIX, "no v.ctor"), "other": (MATRIX, "another reason")}
    """
    path = pytester.makepyfile(test_suite=source)
    passed, _, failed = pytester.inline_run(path, "-p", "no:xdist", "-k", "test_refuses").listoutcomes()
    names = [[report.nodeid.rpartition("::")[2] for report in found] for found in (passed, failed)]
    assert names == [
        ["test_refuses[undeclared-matrix]", "test_refuses[undeclared{strict=true}-matrix]"],
        ["test_refuses[undeclared-other]", "test_refuses[undeclared{strict=true}-other]"],
    ]


def test_opsets_at_which_it_has_to_fire(pytester: pytest.Pytester) -> None:
    source = """
    from bad_passes import NEGATIONS, BelowOpset18
    from rewright.testing import PassConformance

    class TestBelow18(PassConformance):
        pass_ = BelowOpset18
        fires = {"it": NEGATIONS}
        opsets = (14, 20)

    class TestAt14(TestBelow18):
        fires_at = (14,)

    class TestAt20(TestBelow18):
        fires_at = range(18, 24)
    """
    path = pytester.makepyfile(test_suite=source)
    passed, _, failed = pytester.inline_run(path, "-p", "no:xdist", "-k", "opsets").listoutcomes()
    assert len(passed) == 5
    assert [report.nodeid.partition("::")[2] for report in failed] == ["TestAt20::test_other_opsets[it-opset20]"]
