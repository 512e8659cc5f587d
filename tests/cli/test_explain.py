"""`rewright explain`: sites and refusals by pass, with the nodes' names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from onnx import parser

ZOO = Path(__file__).parents[1] / "zoo"


def test_it_names_the_sites_of_each_pass(command_line, tmp_path):
    outcome = command_line("explain", ZOO / "bert.ts17.sdpa.onnx", "-p", "gelu")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("gelu  2 sites, 0 rejections\n")
    assert "com.microsoft::Gelu" in outcome.out
    assert "/bert/encoder/layer.0/intermediate/intermediate_act_fn/" in outcome.out
    assert "/bert/encoder/layer.1/intermediate/intermediate_act_fn/" in outcome.out


def test_it_says_why_a_pass_does_not_fire(command_line):
    outcome = command_line("explain", ZOO / "bert.ts14.eager.onnx", "-p", "layer-norm")
    assert outcome.out.startswith("layer-norm  0 sites, ")
    said = " ".join(outcome.out.split())
    assert re.search(r"\dx not: LayerNormalization is standard from opset 17 on", said)
    assert "/bert/encoder/layer.1/output/LayerNorm/ReduceMean" in said


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


def test_json_is_a_report_without_verification(command_line):
    outcome = command_line("explain", ZOO / "bert.ts17.sdpa.onnx", "-O2", "--json")
    report = json.loads(outcome.out)
    assert report["verify"] == "off"
    assert {record["name"] for record in report["passes"] if record["sites"]} >= {"gelu", "skip-layer-norm", "bias-gelu"}


def test_the_target_decides_what_is_emitted(command_line):
    outcome = command_line(
        "explain", ZOO / "bert.ts17.sdpa.onnx", "-p", "gelu, skip-layer-norm", "--target", "portable", "--json"
    )
    assert not any(record["sites"] for record in json.loads(outcome.out)["passes"])
