"""The conformance suite: a pass that is right conforms; refusals, opsets, and what a subclass has to name."""

from __future__ import annotations

import pytest
from conformance_run import outcomes

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


def test_a_right_pass_conforms(pytester: pytest.Pytester) -> None:
    found = outcomes(pytester, RIGHT)
    assert not found["failed"]
    inherited = {name for name in dir(PassConformance) if name.startswith("test_")}
    without_model = {"test_refuses", "test_shared_weights", "test_weights_that_callers_may_replace"}  # no refusals, no weights
    assert found["passed"] == inherited - without_model
    assert without_model <= found["skipped"]


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
