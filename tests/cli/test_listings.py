"""`rewright passes`, `rewright chains`, `rewright plugins`."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace

import yaml

from rewright import Chain
from rewright.ops.contract import CONTRACTS
from rewright.registry.catalog import Catalog


def test_passes_are_listed_with_what_they_do(command_line):
    outcome = command_line("passes")
    assert (outcome.status, outcome.err) == (0, "")
    assert "constant-folding" in outcome.out
    assert "reassociating" in outcome.out


def test_a_pass_has_a_page(command_line):
    out = command_line("passes", "bias-gelu").out
    assert out.startswith("bias-gelu\n")
    for heading in (
        "exactness",
        "emits",
        "com.microsoft.BiasGelu",
        "after",
        "backends",
        "owner",
        "options",
        "standalone | ort | auto",
    ):
        assert heading in out, heading


def test_options_have_types_and_defaults(command_line):
    page = json.loads(command_line("passes", "constant-folding", "--json").out)
    assert page["options"]["max_bytes"]["type"] == "int"
    assert page["options"]["max_bytes"]["default"].isdigit()
    assert page["options"]["backend"]["default"] == "standalone"
    assert page["owner"].startswith("rewright")
    assert page["exactness"] == "exact"
    everything = json.loads(command_line("passes", "--json").out)
    assert page in everything


def test_a_page_says_who_carries_the_pass_out_and_what_has_kernels(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    page = command_line("passes", "bias-gelu").out
    ort = Catalog.load(autoload=False).get("bias-gelu").ort
    said = " ".join(page.split())
    assert all(name in said for name in (*ort.optimizers, *ort.classes))
    assert "ort puts in com.microsoft.BiasGelu, com.microsoft.FastGelu" in said
    (line,) = (line for line in page.splitlines() if line.startswith("  com.microsoft.BiasGelu"))
    assert re.split(r"\s{2,}", line.strip())[1:] == [
        "float32",
        "float32, float16, bfloat16, float64",
        "float32, float16",
        "none",
    ]
    assert "not by ort" in command_line("passes", "gemm-fast-gelu").out
    assert "kernels" not in command_line("passes", "dead-code").out


def test_another_onnx_runtime_than_the_contracts_know_is_told_of(command_line, monkeypatch):
    known = CONTRACTS["com.microsoft::Gelu"]
    monkeypatch.setitem(CONTRACTS, "com.microsoft::Gelu", replace(known, kernels={"cpu": ("float32", "float16")}))
    said = " ".join(command_line("passes", "gelu").out.split())
    assert "com.microsoft.Gelu on cpu in float16: ONNX Runtime" in said
    assert "has no kernel, and the contract claims one" in said
    assert "the contract claims" not in command_line("passes", "quick-gelu").out


def test_json_has_what_carries_the_pass_out_and_the_kernels(command_line):
    described = {item["name"]: item for item in json.loads(command_line("passes", "--json").out)}
    assert "GeluFusionL2" in described["gelu"]["ort"]["optimizers"]
    assert described["gemm-fast-gelu"]["ort"]["declines"]
    assert described["gemm-fast-gelu"]["backends"] == ["standalone"]
    assert described["ort-session"]["ort"] is None
    assert described["rms-norm"]["kernels"]["SimplifiedLayerNormalization"]["dml"] == ["float32", "float16"]
    assert described["dead-code"]["kernels"] == {}


def test_an_unknown_pass_names_the_near_ones(command_line):
    assert "Did you mean gelu" in command_line("passes", "gellu").assert_one_error()
    assert "is a level" in command_line("passes", "O2").assert_one_error()


def test_levels_are_listed_in_canonical_text(command_line):
    levels = json.loads(command_line("chains", "--json").out)
    assert list(levels) == ["O0", "O1", "O2", "O3", "O4"]
    assert levels["O0"] == ""
    assert Chain(levels["O2"]) == Chain("O2")
    assert "constant-folding" in command_line("chains").out


def test_a_chain_in_every_form(command_line, tmp_path):
    text = "O1, constant-folding{max_bytes=64}"
    wanted = Chain(text)
    assert Chain(command_line("chains", text).out.strip()) == wanted
    assert Chain.from_data(yaml.safe_load(command_line("chains", text, "--as", "yaml").out)) == wanted
    assert Chain.from_data(tomllib.loads(command_line("chains", text, "--as", "toml").out)) == wanted
    assert Chain.from_data(json.loads(command_line("chains", text, "--json").out)) == wanted
    assert eval(command_line("chains", text, "--as", "python").out, {"Chain": Chain}) == wanted
    (tmp_path / "chain.toml").write_text(wanted.to_toml())
    assert command_line("chains", "-c", tmp_path / "chain.toml").out.strip() == wanted.text


def test_a_chain_in_an_odd_order_is_warned_of(command_line):
    outcome = command_line("chains", "bias-gelu, gelu")
    assert outcome.out == "bias-gelu, gelu\n"
    assert "warning: bias-gelu asks to run after gelu" in outcome.err


def test_wrong_forms(command_line):
    command_line("chains", "O1", "--as", "xml").assert_one_error()
    command_line("chains", "gellu").assert_one_error()
    command_line("chains", "O1", "-c", "chain.yaml").assert_one_error()


def test_plugins_are_listed_with_their_passes(command_line):
    (record,) = json.loads(command_line("plugins", "--no-plugins", "--json").out)
    assert record["name"] == "rewright"
    assert record["status"] == "loaded"
    assert "gelu" in record["passes"]
    assert "loaded" in command_line("plugins").out


def test_a_module_is_a_plugin_when_asked_for(process, tmp_path):
    (tmp_path / "mine.py").write_text("from rewright import graph_pass\n@graph_pass('mine-noop')\ndef noop(graph): 'Nothing.'\n")
    page = process("passes", "mine-noop", "--plugin", "mine:noop", path=tmp_path)
    assert page.out.startswith("mine-noop\nNothing.\n")
