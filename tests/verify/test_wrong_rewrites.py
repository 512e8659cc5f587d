"""Passes that make known mistakes at some of their sites: what they err on, what hides it, what policies do."""

import numpy as np
import pytest
import wrong_attention_passes
import wrong_graph_passes
import wrong_mask_passes
import wrong_passes
from mistakes import Mistake, outputs_that_differ, undone

from rewright import GateError
from rewright.model.load import load
from rewright.verify.inputs import make_input_sets

ROOMS = (wrong_passes, wrong_attention_passes, wrong_mask_passes, wrong_graph_passes)
MISTAKES = [mistake for room in ROOMS for mistake in room.MISTAKES]
HIDDEN = [mistake for mistake in MISTAKES if mistake.is_hidden]
BY_NAME = {mistake.name: mistake for mistake in MISTAKES}


def each(mistakes):
    return pytest.mark.parametrize("mistake", mistakes, ids=lambda mistake: mistake.name)


@each(MISTAKES)
def test_the_pass_errs_where_it_is_meant_to(mistake: Mistake):
    result = mistake.run(verify="off")
    (record,) = result.report.passes
    assert len(record.sites) == (mistake.sites_recorded or len(mistake.sites)), record.rejections
    assert outputs_that_differ(mistake.proto, result.model) == mistake.wrong_outputs


@each(HIDDEN)
def test_the_outputs_of_a_whole_model_hide_some_mistakes(mistake: Mistake):
    assert mistake.run(verify="model").report.verdict == "passed"


@pytest.mark.parametrize("name", ["long-epsilon", "dropped-mask", "scaled-weight", "folded-norm"])
def test_skip_undoes_the_whole_pass_and_raise_ends_the_run(name: str):
    mistake = BY_NAME[name]
    result = mistake.run(verify="sites", on_failure="skip")
    (record,) = result.report.passes
    assert record.status == "rolled-back"
    assert record.reason.startswith("sites: ")
    assert result.model.fingerprint() == load(mistake.proto).fingerprint()
    with pytest.raises(GateError, match=f"the pass '{name}' failed: .*value 'wrong"):
        mistake.run(verify="sites", on_failure="raise")


def test_a_mask_is_not_dropped_because_the_inputs_that_were_given_have_no_padding():
    original = BY_NAME["inverted-mask"]
    mistake = Mistake(
        wrong_attention_passes.NeverMasked(),
        original.template,
        right=[{"sense": "right0_mask = Mul(right0_float, zero)"}],
        wrong=[{"sense": "wrong0_mask = Sub(one, wrong0_float)"}],
        inputs=original.inputs,
        output=original.output,
        weights=original.weights,
    )
    feeds = dict(make_input_sets(load(mistake.proto))[0].arrays)
    feeds["mask"] = np.ones_like(feeds["mask"])
    assert mistake.run(verify="model", inputs=feeds).report.verdict == "passed"
    report = mistake.run(verify="sites", inputs=feeds).report
    assert report.verdict == "passed-with-rollbacks"
    assert undone(report.passes[0]) == {"wrong0"}


FIRST = np.broadcast_to(np.arange(4), (2, 4)).copy()


@pytest.mark.parametrize(("name", "given"), [("positions", FIRST), ("rows_of_the_table", FIRST), ("token_types", 0 * FIRST)])
def test_what_picks_rows_is_not_dropped_because_the_usual_rows_were_given(name: str, given: np.ndarray):
    rewrite = wrong_attention_passes.FirstPositions() if given.any() else wrong_attention_passes.FirstRow()
    mistake = Mistake(
        rewrite,
        "{p}_rows = Gather({table}, picked)  {p} = Add({x}, {p}_rows)",
        right=[{"x": "x", "table": "same_rows"}],
        wrong=[{"x": "x", "table": "table"}],
        prelude=f"picked = Identity({name})  ",
        inputs=f"float[B, S, 8] x, int64[B, S] {name}",
        weights={"same_rows": np.ones((16, 8), np.float32)},
    )
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 4, 8), np.float32), name: given}
    assert mistake.run(verify="model", inputs=feeds).report.verdict == "passed"
    report = mistake.run(verify="sites", inputs=feeds).report
    assert report.verdict == "passed-with-rollbacks"
    assert undone(report.passes[0]) == {"wrong0"}


def test_a_flag_is_tried_both_ways():
    mistake = BY_NAME["power-in-branch"]
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 4, 8), np.float32), "flag": np.array(False)}
    assert mistake.run(verify="model", inputs=feeds).report.verdict == "passed"
    report = mistake.run(verify="sites", inputs=feeds).report
    assert undone(report.passes[0]) == {"wrong0"}
