"""The page on testing passes runs as it stands."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing-passes.md"


def test_the_page_is_a_test_module_that_passes(pytester: pytest.Pytester) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = pytester.makepyfile(test_page="\n".join(blocks))
    # the suite's other tests on these models take half a minute
    few = "not (opsets or dtypes or targets or random or inner or deterministic)"
    passed, skipped, failed = pytester.inline_run(path, "-p", "no:cacheprovider", "-p", "no:xdist", "-k", few).listoutcomes()
    assert not failed
    assert not skipped
    names = {report.nodeid.rpartition("::")[2] for report in passed}
    assert {"test_bias_gelu", "test_two_layers_and_a_branch", "test_a_rewrite_by_hand", "test_with_fixtures"} <= names
    assert {"test_fires[two layers]", "test_refuses[a matrix]", "test_in_bodies[plain]"} <= names


def test_the_page_lists_every_test_of_the_suite() -> None:
    from rewright.testing import PassConformance

    inherited = {name for name in dir(PassConformance) if name.startswith("test_")} - {"test_something_is_tested"}
    assert inherited <= set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
