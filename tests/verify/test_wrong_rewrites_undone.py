"""Mistakes that are found by comparing sites: wrong sites are undone by themselves, and the right ones beside them stay."""

import pytest
import wrong_attention_passes
import wrong_graph_passes
import wrong_mask_passes
import wrong_passes
from mistakes import Mistake, kept, outputs_of, outputs_that_differ, undone

ROOMS = (wrong_passes, wrong_attention_passes, wrong_mask_passes, wrong_graph_passes)
MISTAKES = [mistake for room in ROOMS for mistake in room.MISTAKES]


def each(mistakes):
    return pytest.mark.parametrize("mistake", mistakes, ids=lambda mistake: mistake.name)


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
    (record,) = result.report.passes
    assert "'wrong0_minus' that nothing produces" in record.reason
    assert (undone(record), kept(record)) == ({"wrong0"}, {"right0"})
    assert outputs_that_differ(lost.proto, result.model) == set()


def test_what_a_pass_did_to_another_reader_of_a_weight_is_undone():
    mistake = wrong_graph_passes.IN_PLACE
    assert outputs_that_differ(mistake.proto, mistake.run(verify="off").model) == {"wrong0"}
    result = mistake.run(verify="sites")
    (record,) = result.report.passes
    assert [change.at for change in record.undone] == ["the change at wrong0_straight"]
    assert kept(record) == {"right0", "right1", "wrong0"}
    assert outputs_that_differ(mistake.proto, result.model) == set()
    names = [tensor.name for tensor in result.model.proto.graph.initializer]
    assert {"weight", "weight_1"} <= set(names)
