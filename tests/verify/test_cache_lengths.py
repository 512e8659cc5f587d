"""Lengths of masks, caches and new tokens agree, in every spelling of exporters, and both branches of a merged decoder run."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from rewright.model.load import load
from rewright.verify.cache_lengths import agreeing_lengths, has_cache_branch, is_of_an_encoder
from rewright.verify.inputs import make_fallback_sets, make_input_sets
from rewright.verify.invariances import run_probes
from rewright.verify.original import Runner, measure
from rewright.verify.roles import InputRole
from rewright.verify.symbols import resolve, sizes, symbols_of


def role(name, *dims, kind="index"):
    return InputRole(name, np.dtype(np.int64), dims, kind)


def decoder(mask, *more):
    past = role("past_key_values.0.key", "b", 4, "past_len", 8, kind="past")
    return [role("input_ids", "b", "s"), role("attention_mask", "b", mask, kind="mask"), past, *more]


def lengths(roles, trial=0, **options):
    """New tokens, past and mask."""
    symbols = symbols_of(roles)
    chosen = agreeing_lengths(roles, symbols, sizes(symbols, trial), **options)
    shapes = {each.name: resolve(each.dims, chosen, least=0) for each in roles}
    return shapes["input_ids"][1], shapes["past_key_values.0.key"][2], shapes["attention_mask"][1]


@pytest.mark.parametrize("mask", ["past_len + s", "past_len + 1", "total_len", "attention_mask_sequence_length", "mask_len"])
@pytest.mark.parametrize("trial", range(4))
def test_a_mask_covers_the_past_and_what_is_new(mask, trial):
    new, past, total = lengths(decoder(mask), trial)
    assert new >= 1
    assert past >= 2
    assert total == past + new


@pytest.mark.parametrize("mask", ["past_len + s", "past_len + 1", "total_len", "attention_mask_sequence_length"])
def test_without_its_cache_a_merged_decoder_has_a_mask_of_the_new_tokens(mask):
    new, _, total = lengths(decoder(mask, role("use_cache_branch", 1, kind="flag")), reads_cache=False)
    assert new == total == 7


@pytest.mark.parametrize("mask", ["past_len + s", "total_len", "attention_mask_sequence_length"])
def test_an_empty_cache(mask):
    assert lengths(decoder(mask), past=0) == (7, 0, 7)


def test_a_mask_of_the_new_tokens_alone_stays():
    assert lengths(decoder("s")) == (7, 3, 7)


def test_an_encoder_has_one_length_that_no_cache_adds_to():
    roles = [
        *decoder("mask_len"),
        role("encoder_attention_mask", "b", "encoder_sequence_length", kind="mask"),
        role("past_key_values.0.encoder.key", "b", 4, "encoder_sequence_length_out", 8, kind="past"),
    ]
    symbols = symbols_of(roles)
    before = sizes(symbols, 1)
    chosen = agreeing_lengths(roles, symbols, before, past=0)
    assert before["encoder_sequence_length"] != before["encoder_sequence_length_out"]
    assert chosen["encoder_sequence_length_out"] == chosen["encoder_sequence_length"] == before["encoder_sequence_length"]
    assert not is_of_an_encoder("decoder_input_ids")


def test_a_model_without_a_cache_keeps_its_sizes():
    roles = [role("input_ids", "b", "s"), role("attention_mask", "b", "m", kind="mask"), role("flag", 1, kind="flag")]
    symbols = symbols_of(roles)
    assert agreeing_lengths(roles, symbols, sizes(symbols, 0)) == sizes(symbols, 0)
    assert not has_cache_branch(roles)


CACHED = """<ir_version: 8, opset_import: ["" : 17]>
    g (int64[b, s] input_ids, float[b, past_len, 2] past_key) => (float[b, all, 2] present_key)
    <float[5, 2] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1}> {
    new = Gather(table, input_ids) present_key = Concat<axis = 1>(past_key, new) }"""

MERGED = """<ir_version: 8, opset_import: ["" : 17]>
    g (int64[b, s] input_ids, float[b, past_len, 2] past_key, bool[1] use_cache_branch) => (float[b, all, 2] present_key)
    <float[5, 2] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1}> {
    new = Gather(table, input_ids)
    present_key = If (use_cache_branch) <
        then_branch = following () => (float[b, all, 2] longer) { longer = Concat<axis = 1>(past_key, new) },
        else_branch = first () => (float[b, all, 2] same) { same = Identity(new) }> }"""


def test_a_cache_is_empty_once():
    made = make_input_sets(load(parser.parse_model(CACHED)))
    assert [each.name for each in made] == ["set-0", "set-1", "set-2", "set-3", "empty-cache"]
    assert [each.arrays["past_key"].shape[1] for each in made] == [3, 5, 2, 4, 0]
    assert "past_len=0" in made[-1].description


def test_both_branches_of_a_merged_decoder_have_the_first_two_recipes():
    made = make_input_sets(load(parser.parse_model(MERGED)))
    flags = {each.name: bool(each.arrays["use_cache_branch"][0]) for each in made}
    assert flags == {
        "set-0": True,
        "set-1": False,
        "set-2": True,
        "set-3": False,
        "set-0-other-branch": False,
        "set-1-other-branch": True,
    }
    assert all(each.arrays["past_key"].shape[1] > 0 for each in made if flags[each.name])


@pytest.mark.parametrize(("shape", "names"), [("{2, 8, 2}", ["set-0", "set-2", "fallback-0", "fallback-3"]), ("{9, 9, 9}", None)])
def test_a_branch_that_no_set_runs_is_tried_further_and_told(shape, names, worker):
    """The branch without the cache runs on two rows of eight tokens only, or never."""
    text = MERGED.replace("same = Identity(new)", "same = Reshape(new, only)").replace(
        "9, 1}>", f"9, 1}}, int64[3] only = {shape}>"
    )
    model = load(parser.parse_model(text))
    found = measure(model, make_input_sets(model)[:3], make_fallback_sets(model), Runner(worker, None))
    told = "every set with use_cache_branch = false, so that what it switches on is not compared"
    assert (told in found.dropped) == (names is None)
    assert [each.name for each in found.sets] == (names or ["set-0", "set-2", "fallback-0"])
    assert {bool(each.arrays["use_cache_branch"][0]) for each in found.sets} == ({True, False} if names else {True})


def test_probes_begin_with_a_cache_that_holds_something(worker):
    model = load(parser.parse_model(CACHED))
    wrong = load(
        parser.parse_model(
            CACHED.replace(
                "new = Gather(table, input_ids) present_key = Concat<axis = 1>(past_key, new)",
                """
        new = Gather(table, input_ids) all_keys = Concat<axis = 1>(past_key, new) start = Constant<value = int64[1] {-11}>()
        end = Constant<value = int64[1] {1000}>() length = Constant<value = int64[1] {1}>()
        present_key = Slice(all_keys, start, end, length)""",
            )
        )
    )
    sets = make_input_sets(model)
    (steps,) = (each for each in run_probes(model, wrong, worker, sets) if each.name == "cached-steps")
    assert (steps.status, steps.reason.partition(":")[0]) == ("broken", "step 3")
