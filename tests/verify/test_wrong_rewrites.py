"""Passes that make known mistakes at some of their sites: what they err on, and what the outputs of a whole model hide."""

import pytest
import wrong_attention_passes
import wrong_graph_passes
import wrong_passes
from mistakes import Mistake, outputs_of, outputs_that_differ

MISTAKES = wrong_passes.MISTAKES + wrong_attention_passes.MISTAKES + wrong_graph_passes.MISTAKES
HIDDEN = [mistake for mistake in MISTAKES if mistake.is_hidden]
EACH = pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)


@EACH
def test_the_pass_errs_where_it_is_meant_to(mistake: Mistake):
    result = mistake.run(verify="off")
    (record,) = result.report.passes
    assert len(record.sites) == (mistake.sites_recorded or len(mistake.sites)), record.rejections
    assert outputs_that_differ(mistake.proto, result.model) == {name for name in mistake.sites if name.startswith("wrong")}


@pytest.mark.parametrize("mistake", HIDDEN, ids=lambda mistake: mistake.name)
def test_the_outputs_of_a_whole_model_hide_some_mistakes(mistake: Mistake):
    assert mistake.run(verify="model").report.verdict == "passed"


def test_a_pass_that_loses_an_output_makes_no_model():
    lost = wrong_graph_passes.LOST_OUTPUT
    with pytest.raises(Exception, match="wrong0_minus"):
        outputs_of(lost.run(verify="off").model, {})
