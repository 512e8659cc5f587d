"""Mutation testing of the fusion passes: faults are faults, gates notice them, and a gate that does not is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.registry.builtin import PASSES
from rewright.registry.catalog import default_catalog
from rewright.testing.mutants.__main__ import app
from rewright.testing.mutants.campaign import Campaign, run_campaign
from rewright.testing.mutants.models import EXAMPLES
from rewright.testing.mutants.subjects import CLEANUPS, FUSIONS, Subject, subject_for
from rewright.testing.mutants.trials import trials, unmutated

ZOO = Path(__file__).parent.parent / "zoo"


def subject(step: str, example: str) -> Subject:
    return subject_for(step, load(EXAMPLES[example].build()), example, EXAMPLES[example].passes.get(step))


def test_every_fusion_of_the_catalog_has_an_example():
    modules = {name: module for module, name in PASSES}
    catalog = default_catalog()
    fusions = {name for name in catalog if modules.get(catalog.get(name).__name__, "").startswith("rewright.passes.fusion.")}
    assert set(FUSIONS) == fusions
    assert {name for example in EXAMPLES.values() for name in example.passes} == fusions | set(CLEANUPS)


@pytest.mark.parametrize("example", EXAMPLES)
def test_passes_fire_on_their_examples_and_each_mutant_is_another_model(example):
    for step in EXAMPLES[example].passes:
        found = subject(step, example)
        mutants = found.mutants()
        assert len(mutants) >= (4 if step in FUSIONS else 1), step
        prints = [found.broken(mutant).fingerprint() for mutant in mutants]
        assert found.after.fingerprint() not in prints
        assert len({mutant.name for mutant in mutants if not mutant.equivalent}) == len([m for m in mutants if not m.equivalent])


@pytest.mark.parametrize(
    ("step", "example"),
    [
        ("skip-rms-norm", "residual-rms"),
        ("gelu-approximation", "gelu-20"),
        ("multi-head-attention", "attention-selected"),
        ("group-query-attention", "grouped-window"),
        ("rotary-embedding", "rotary-partial"),
        ("embed-layer-norm", "embeddings-positions"),
    ],
)
def test_sites_notice_every_mutant_that_can_show(step, example):
    campaign = run_campaign([step], [example], verify="sites")
    assert not campaign.false_alarms
    assert not campaign.missed
    (row,) = campaign.rows
    assert row.caught == row.mutants >= 5
    assert row.flagged == 0


def test_sites_notice_what_cleanup_passes_break():
    campaign = run_campaign(CLEANUPS, ["untidy"], verify="sites")
    assert not campaign.false_alarms
    assert not campaign.missed
    assert [row.step for row in campaign.rows] == list(CLEANUPS)


def test_the_models_outputs_show_most_and_hide_epsilons(tmp_path):
    target = tmp_path / "mutants.json"
    wanted = ["rms-norms", "--passes", "skip-rms-norm,gelu", "--verify", "model", "--at-least", "0.95", "--json", str(target)]
    result = CliRunner().invoke(app, wanted)
    assert result.exit_code == 1, result.output
    assert "fewer than 95% were caught of: skip-rms-norm" in result.stderr
    name = "com.microsoft::SkipSimplifiedLayerNormalization"
    assert f"missed: skip-rms-norm on rms-norms: {name}: epsilon x 10, one site" in result.stdout
    campaign = Campaign.model_validate_json(target.read_text())
    assert {trial.fault.partition(" ")[0] for trial in campaign.missed} == {"epsilon"}
    assert {trial.gate for trial in campaign.trials if trial.caught} <= {"parity", "structure"}
    assert campaign.idle == ["gelu"]
    assert not campaign.false_alarms


def test_an_export_at_one_site_and_at_all():
    found = subject_for("gelu", load(ZOO / "bert.ts17.sdpa.onnx"), "bert")
    mutants = [mutant for mutant in found.mutants() if mutant.fault == "taken for FastGelu"]
    assert [mutant.where for mutant in mutants] == ["one site", "all sites"]
    assert [trial.gate for trial in trials(found, mutants, "sites")] == ["sites", "sites"]


def test_a_gate_that_sleeps_is_noticed():
    """Without numeric gates mutants live, and the next one starts from the same model all the same."""
    found = subject("gelu", "gelu-20")
    assert unmutated(found, "structure").status == "applied"
    some = found.mutants()[:3]
    outcomes = list(trials(found, some, "structure"))
    assert [outcome.fault for outcome in outcomes] == [mutant.fault for mutant in some]
    assert not any(outcome.caught for outcome in outcomes)


def test_what_cannot_show_is_decided_by_rules():
    equal = {mutant.fault: mutant.equivalent for mutant in subject("skip-layer-norm", "residual").mutants()}
    assert "commutes" in equal["input and skip exchanged"]
    assert equal["gamma and beta exchanged"] == ""
    keys = {mutant.fault: mutant.equivalent for mutant in subject("attention", "attention-scale").mutants()}
    assert "softmax cancels" in keys["the key part of bias off in one element"]
    assert keys["the value part of bias off in one element"] == ""
    heads = {mutant.fault: mutant.equivalent for mutant in subject("rotary-embedding", "rotary-partial").mutants()}
    assert "not read" in heads["num_heads halved"]
    assert heads["rotary_embedding_dim halved"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passes", "gelo"], "error: there are no mutants of 'gelo'."),
        (["no-such-model.onnx"], "error: there is no model 'no-such-model.onnx'."),
        (["--verify", "all"], "error: --verify is 'all'."),
    ],
)
def test_wrong_usage_is_one_error(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "hint: " in result.stderr


def test_unknown_passes_are_refused():
    with pytest.raises(UsageError, match="no mutants of"):
        run_campaign(["ort-session"])
