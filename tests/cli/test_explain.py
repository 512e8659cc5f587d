"""`rewright explain`: sites and refusals by pass, with the nodes' names."""

from __future__ import annotations

import json
from pathlib import Path

from onnx import parser

ZOO = Path(__file__).parents[1] / "zoo"


def test_it_names_the_sites_of_each_pass(command_line, tmp_path):
    outcome = command_line("explain", ZOO / "bert.ts17.sdpa.onnx", "-p", "gelu")
    assert (outcome.status, outcome.err) == (0, "")
    assert "\ngelu  2 sites, 0 rejections\n" in outcome.out
    assert "com.microsoft::Gelu" in outcome.out
    assert "/bert/encoder/layer.0/intermediate/intermediate_act_fn/" in outcome.out
    assert "/bert/encoder/layer.1/intermediate/intermediate_act_fn/" in outcome.out


def test_it_says_why_a_pass_does_not_fire(command_line):
    outcome = command_line("explain", ZOO / "bert.ts17.sdpa.onnx", "-p", "gelu", "--target", "portable")
    assert "\ngelu  0 sites, 2 rejections\n" in outcome.out
    said = " ".join(outcome.out.split())
    assert "2x not: the target 'portable' has no kernel for com.microsoft.Gelu" in said
    erf = "/bert/encoder/layer.1/intermediate/intermediate_act_fn/Erf"
    assert f"{erf} (Erf) left: gelu: the target 'portable' has no kernel for com.microsoft.Gelu" in said


def test_long_lists_are_cut_unless_all_is_asked_for(command_line, tmp_path):
    body = "  ".join(f"i{n + 1} = Identity(i{n})" for n in range(30))
    text = f'<ir_version: 10, opset_import: ["": 17]> g (float[N] i0) => (float[N] y) {{ {body}  y = Relu(i30) }}'
    model = tmp_path / "identities.onnx"
    model.write_bytes(parser.parse_model(text).SerializeToString())
    short = command_line("explain", model, "-p", "identity-elimination").out
    assert "30 sites" in short
    assert "and 22 more (--all lists them)" in short
    full = command_line("explain", model, "-p", "identity-elimination", "--all").out
    assert "more" not in full
    assert len(full.splitlines()) > len(short.splitlines()) + 20


def test_each_softmax_normalisation_and_activation_has_a_line_with_its_fate(command_line):
    model = ZOO / "bert.ts17.sdpa.onnx"
    lines = command_line("explain", model, "-p", "O1, gelu, bias-gelu, skip-layer-norm").out.splitlines()
    assert "normalisation  5 of 5 nodes fused" in lines
    assert "activation  2 of 3 nodes fused" in lines
    assert "attention  0 of 2 nodes fused" in lines
    scope = "/bert/encoder/layer.1/intermediate/intermediate_act_fn"
    assert f"  {scope}/Erf (Erf) became com.microsoft.BiasGelu '{scope}/BiasGelu' (gelu, bias-gelu)" in lines
    assert "  /bert/pooler/activation/Tanh (Tanh) left: no pass of the chain is about it" in lines
    softmax = "/bert/encoder/layer.0/attention/self/Softmax"
    assert f"  {softmax} (Softmax) left: no pass of the chain is about it" in lines


def test_the_first_thing_in_the_way_is_said_for_what_is_left(command_line):
    lines = command_line("explain", ZOO / "vit.ts17.sdpa.onnx", "-p", "O1, fast-gelu, skip-layer-norm").out.splitlines()
    left = [line for line in lines if " left: " in line]
    assert any(line.startswith("  /vit/layernorm") or "LayerNormalization) left: skip-layer-norm: " in line for line in left)
    assert any("(Tanh) left: fast-gelu finds none of its formulas around it" in line for line in left) == any(
        "(Tanh)" in line for line in lines
    )


def test_json_is_a_report_without_verification(command_line):
    outcome = command_line("explain", ZOO / "bert.ts17.sdpa.onnx", "-O2", "--json")
    report = json.loads(outcome.out)
    assert report["verify"] == "off"
    assert {fate["became"] for fate in report["fates"] if fate["kind"] == "activation"} >= {"com.microsoft::BiasGelu"}
    assert {record["name"] for record in report["passes"] if record["sites"]} >= {"gelu", "skip-layer-norm", "bias-gelu"}


def test_the_target_decides_what_is_emitted(command_line):
    outcome = command_line(
        "explain", ZOO / "bert.ts17.sdpa.onnx", "-p", "gelu, skip-layer-norm", "--target", "portable", "--json"
    )
    assert not any(record["sites"] for record in json.loads(outcome.out)["passes"])


def test_backends_are_compared_in_one_table(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    outcome = command_line(
        "explain", ZOO / "vit.ts17.sdpa.onnx", "-p", "O1, layer-norm, attention, gelu, bias-gelu", "--backends"
    )
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["standalone", "ort", "auto"]
    (row,) = (line for line in lines if line.startswith("bias-gelu"))
    assert row.count("2 sites") == 3
    assert any(line.startswith("  2x Erf") for line in lines)


def test_the_comparison_as_json(command_line):
    arguments = ("explain", ZOO / "bert.ts17.sdpa.onnx", "-p", "gelu, dead-code", "--backends", "--json")
    found = json.loads(command_line(*arguments).out)
    assert [item["name"] for item in found["passes"]] == ["gelu", "dead-code"]
    assert found["passes"][0]["backends"]["ort"]["kept"] == {"ort": 2}
    assert found["passes"][1]["declines"]


def test_one_backend_is_explained(command_line):
    out = command_line("explain", ZOO / "bert.ts17.sdpa.onnx", "-p", "gelu", "--backend", "ort").out
    assert "\ngelu by ort  2 sites, 0 rejections\n" in out
    assert "(gelu by ort)" in out


def test_wrong_backends(command_line):
    model = ZOO / "bert.ts17.sdpa.onnx"
    assert "Did you mean ort" in command_line("explain", model, "--backend", "orf").assert_one_error()
    assert "--backends compares all" in command_line("explain", model, "--backend", "ort", "--backends").assert_one_error()
