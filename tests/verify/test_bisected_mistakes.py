"""Bisection over passes that make known mistakes: it names the sites at which they err, and no others."""

from __future__ import annotations

import pytest
import wrong_attention_passes
import wrong_graph_passes
import wrong_passes
from mistakes import NOTHING_ELSE, Mistake

import rewright
from rewright import Chain

SOME = (wrong_passes.MISTAKES + wrong_attention_passes.MISTAKES + wrong_graph_passes.MISTAKES)[::3]


@pytest.mark.parametrize("mistake", SOME, ids=lambda mistake: mistake.name)
def test_the_sites_at_which_a_pass_errs(mistake: Mistake):
    chain = Chain([mistake.step], catalog=NOTHING_ELSE)
    found = rewright.bisect(mistake.proto, chain=chain, verify="sites")
    (culprit,) = found.culprits
    nodes = [node for change in culprit.undo for node in (*change.removed, *change.added)]
    blamed = {name for name in mistake.sites if any(name in node for node in nodes)}
    assert blamed == mistake.wrong_outputs
    assert culprit.kind == "sites" or (culprit.divergence and culprit.divergence.first.reference.name.startswith("wrong"))


@pytest.mark.parametrize("mistake", [mistake for mistake in SOME if mistake.is_hidden], ids=lambda mistake: mistake.name)
def test_what_the_outputs_hide_is_not_found_by_them(mistake: Mistake):
    assert rewright.bisect(mistake.proto, chain=Chain([mistake.step], catalog=NOTHING_ELSE)).verdict == "clean"
