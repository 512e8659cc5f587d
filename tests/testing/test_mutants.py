"""Mutation testing of the fusion passes: faults are faults, gates notice them, and a gate that does not is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.registry.builtin import PASSES
from rewright.registry.catalog import default_catalog
from rewright.testing.mutants.__main__ import app
from rewright.testing.mutants.campaign import run_campaign
from rewright.testing.mutants.models import EXAMPLES
from rewright.testing.mutants.subjects import FUSIONS, Subject, subject_for
from rewright.testing.mutants.trials import trials, unmutated

ZOO = Path(__file__).parent.parent / "zoo"


def subject(step: str, example: str) -> Subject:
    return subject_for(step, load(EXAMPLES[example].build()), example, EXAMPLES[example].passes.get(step))


def test_every_fusion_of_the_catalog_has_an_example():
    modules = {name: module for module, name in PASSES}
    catalog = default_catalog()
    fusions = {name for name in catalog if modules.get(catalog.get(name).__name__, "").startswith("rewright.passes.fusion.")}
    assert set(FUSIONS) == fusions
    assert {name for example in EXAMPLES.values() for name in example.passes} == fusions


@pytest.mark.parametrize("example", EXAMPLES)
def test_passes_fire_on_their_examples_and_each_mutant_is_another_model(example):
    for step in EXAMPLES[example].passes:
        found = subject(step, example)
        mutants = found.mutants()
        assert len(mutants) >= 4, step
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


def test_the_models_outputs_show_most_and_hide_epsilons():
    campaign = run_campaign(["skip-rms-norm"], ["rms-norms"], verify="model")
    assert not campaign.false_alarms
    assert {trial.fault.partition(" ")[0] for trial in campaign.missed} == {"epsilon"}
    assert {trial.gate for trial in campaign.trials if trial.caught} <= {"parity", "structure"}


def test_an_export_at_one_site_and_at_all():
    found = subject_for("gelu", load(ZOO / "bert.ts17.sdpa.onnx"), "bert")
    mutants = [mutant for mutant in found.mutants() if mutant.fault == "taken for FastGelu"]
    assert [mutant.where for mutant in mutants] == ["one site", "all sites"]
    assert [trial.gate for trial in trials(found, mutants, "sites")] == ["sites", "sites"]


def test_a_gate_that_sleeps_is_noticed():
    """Without numeric gates nearly all mutants live, and the next mutant starts from the same model all the same."""
    found = subject("gelu", "gelu-20")
    assert unmutated(found, "structure").status == "applied"
    outcomes = list(trials(found, found.mutants(), "structure"))
    assert len(outcomes) == len(found.mutants())
    assert not any(outcome.caught for outcome in outcomes)
    result = CliRunner().invoke(app, ["gelu-20", "--passes", "gelu", "--verify", "structure", "--at-least", "0.5"])
    assert result.exit_code == 1
    assert "missed: gelu on gelu-20: Gelu: approximate none to tanh, one site" in result.stdout


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


def test_a_campaign_as_data(tmp_path):
    target = tmp_path / "mutants.json"
    result = CliRunner().invoke(app, ["quick-gelu", "--verify", "model", "--json", str(target)])
    assert result.exit_code == 0, result.output
    data = json.loads(target.read_text())
    assert [(row["step"], row["share"]) for row in data["rows"]] == [("quick-gelu", 1.0)]
    assert len(data["trials"]) == data["rows"][0]["mutants"]
    assert "layer-norm" in data["idle"]


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
