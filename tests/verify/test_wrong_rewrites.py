"""Passes that make known mistakes at some of their sites: those are undone by themselves, and the right ones beside them stay."""

import numpy as np
import pytest
import wrong_attention_passes
import wrong_graph_passes
import wrong_passes
from mistakes import Mistake, kept, outputs_of, outputs_that_differ, undone

from rewright import GateError
from rewright.model.load import load
from rewright.verify.inputs import make_input_sets

MISTAKES = wrong_passes.MISTAKES + wrong_attention_passes.MISTAKES + wrong_graph_passes.MISTAKES
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


@each([mistake for mistake in MISTAKES if mistake.sites_recorded is None])
def test_wrong_sites_are_undone_and_right_ones_kept(mistake: Mistake):
    result = mistake.run(verify="sites")
    (record,) = result.report.passes
    assert (result.report.verdict, record.status) == ("passed-with-rollbacks", "applied")
    assert undone(record) == mistake.wrong_outputs
    assert kept(record) == mistake.sites.keys() - mistake.wrong_outputs
    wrong = {site.id for site in record.sites if site.status == "rolled-back"}
    assert {name for change in record.undone for name in change.sites} == wrong
    assert all("value '" in change.reason for change in record.undone)
    assert f"{len(wrong)} of {len(record.sites)} sites were undone" in record.reason
    assert outputs_that_differ(mistake.proto, result.model) == set()


@each([mistake for mistake in MISTAKES if mistake.sites_recorded is not None])
def test_a_pass_that_does_not_tell_its_sites_apart_is_undone_where_it_is_wrong(mistake: Mistake):
    result = mistake.run(verify="sites")
    (record,) = result.report.passes
    assert result.report.verdict == "passed-with-rollbacks"
    assert any("wrong0" in change.at or "wrong0" in change.reason for change in record.undone)
    assert outputs_that_differ(mistake.proto, result.model) == set()


def test_a_pass_that_loses_an_output_makes_no_model_and_is_undone():
    lost = wrong_graph_passes.LOST_OUTPUT
    with pytest.raises(Exception, match="wrong0_minus"):
        outputs_of(lost.run(verify="off").model, {})
    result = lost.run(verify="sites")
    assert result.report.verdict == "passed-with-rollbacks"
    assert "'wrong0_minus' that nothing produces" in result.report.passes[0].reason
    assert outputs_that_differ(lost.proto, result.model) == set()


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
