"""The tests of graphs that ONNX Runtime rewrites wrongly: alone it does, and through backend=ort that is undone or refused."""

from collections import Counter
from typing import Any

import onnx
import pytest
from ort_directly import order_problem, outcome
from side_by_side import differs, feeds_for, ops_behind, run_sets
from wrong_rewrites import WrongRewrite

import rewright
from rewright.registry.catalog import default_catalog
from rewright.report.model import SiteReport


def rewrite_tests(cases: dict[str, WrongRewrite]) -> tuple[Any, Any]:
    """The two tests over the cases."""
    runs = [
        pytest.param(case, chain, fate, id=f"{name}-{chain.partition('{')[0]}")
        for name, case in cases.items()
        for chain, fate in zip(case.chains, case.fates, strict=False)
    ]

    @pytest.mark.parametrize("case", cases.values(), ids=cases)
    def test_alone(case: WrongRewrite) -> None:
        """Where a new version of ONNX Runtime has mended a mistake this fails, and the case wants another one."""
        expected = {"wrong/": "wrong", "right/": "right"} if case.becomes == "wrong" else {"all": case.becomes}
        assert outcome(case.model, case.directly, ["wrong/", "right/"]) == expected

    @pytest.mark.parametrize(("case", "chain", "fate"), runs)
    def test_through_rewright(case: WrongRewrite, chain: str, fate: str) -> None:
        result = rewright.optimize(case.model, chain=chain, verify="model")
        after, (record,) = result.model.proto, result.report.passes
        sets = feeds_for(case.model)
        assert not differs(run_sets(case.model, sets), run_sets(result.model, sets))
        assert not order_problem(after)
        assert list(after.graph.input) == list(case.model.graph.input)
        assert list(after.graph.output) == list(case.model.graph.output)
        assert result.report.verdict == ("passed-with-rollbacks" if record.undone else "passed")
        assert_right_is_kept(case, after)
        assert fate_of_the_wrong(result) == fate

    return test_alone, test_through_rewright


def assert_right_is_kept(case: WrongRewrite, after: onnx.ModelProto) -> None:
    before, now = (Counter(ops_behind(model, "right/")) for model in (case.model, after))
    if case.kept:
        assert any(now[op] > before[op] for op in case.kept), now
    for op in case.gone:
        assert before[op] > now[op] == 0, now


def fate_of_the_wrong(result: rewright.RunResult) -> str:
    """What became of it; what is undone has a reason of its own, and what is left has one where the pass looks for anchors."""
    (record,) = result.report.passes
    undone = {name for change in record.undone for name in change.sites}
    assert undone == {site.id for site in record.sites if site.status == "rolled-back"}
    assert all(_is_of("wrong/", site) for site in record.sites if site.id in undone)
    for change in record.undone:
        assert "wrong/" in change.reason or "does not run" in change.reason, change.reason
    if undone:
        return "undone"
    if any(_is_of("wrong/", site) for site in record.sites):
        return "right"
    pass_class = default_catalog().get(record.name)
    has_anchors = pass_class.ort is not None and bool(pass_class.ort.anchors)
    told = [item.reason for item in record.rejections if item.node.startswith("wrong/")]
    told += [note for note in record.notes if "wrong/" in note]
    assert told or not has_anchors
    return "left"


def _is_of(prefix: str, site: SiteReport) -> bool:
    return all(name.startswith(prefix) for name in site.removed)
