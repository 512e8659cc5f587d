"""Installed plugin distributions, seen from a process of its own."""

from __future__ import annotations

import json

import pytest

STATE = """
import json, sys
from rewright.registry.catalog import Catalog
catalog = Catalog.load(sys.argv[1:])
print(json.dumps({
    "plugins": {p.name: [p.distribution, p.version, p.status, p.error, list(p.passes)] for p in catalog.plugins},
    "passes": list(catalog),
    "levels": dict(catalog.levels),
}))
"""

GET = """
import sys
from rewright.model.errors import RewrightError
from rewright.registry.catalog import Catalog
try:
    print(Catalog.load().get(sys.argv[1]))
except RewrightError as error:
    print(type(error).__name__, error)
"""

FIRE = """
import json
from onnx.parser import parse_model
from rewright.model.load import load
from rewright.passes.session import PassSession
from rewright.registry.catalog import Catalog

TEXT = '<ir_version: 8, opset_import: ["":17]> g (float[2] x) => (float[2] y) {a=Neg(x) b=Neg(a) c=Relu(b) d=Relu(c) y=Erf(d)}'
catalog, fired = Catalog.load(), {}
for name in ("acme-double-negation", "acme-relu-once", "acme-wrong-gelu"):
    session = PassSession(catalog.get(name)(), load(parse_model(TEXT)))
    session.current.apply(session)
    session.editor.finish()
    fired[name] = [len(session.sites), [node.op_type for node in session.view.to_model().proto.graph.node]]
print(json.dumps(fired))
"""


@pytest.fixture
def state(plugin_site, run_python):
    def load(names, *plugins, **variables):
        done = run_python(plugin_site(*names), "-c", STATE, *plugins, **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return load


def test_an_installed_plugin_is_found_with_its_distribution_and_version(state):
    found = state(["acme-rewright"])
    assert found["plugins"]["acme"] == [
        "acme-rewright",
        "1.2.0",
        "loaded",
        "",
        ["acme-double-negation", "acme-relu-once"],
    ]
    assert found["plugins"]["acme-wrong"] == ["acme-rewright", "1.2.0", "loaded", "", ["acme-wrong-gelu"]]
    assert {"constant-folding", "acme-double-negation", "acme-relu-once", "acme-wrong-gelu"} <= set(found["passes"])
    assert found["levels"]["acme"] == "O1, acme-double-negation, acme-relu-once"


def test_the_passes_of_an_installed_plugin_fire(plugin_site, run_python):
    done = run_python(plugin_site("acme-rewright"), "-c", FIRE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "acme-double-negation": [1, ["Identity", "Relu", "Relu", "Erf"]],
        "acme-relu-once": [1, ["Neg", "Neg", "Relu", "Erf"]],
        "acme-wrong-gelu": [1, ["Neg", "Neg", "Relu", "Relu", "Tanh"]],
    }


def test_a_broken_plugin_is_recorded_and_the_others_still_load(state):
    plugins = state(["acme-rewright", "broken-rewright"])["plugins"]
    error = "RuntimeError: libbroken.so.3 is missing"
    assert plugins["broken"] == ["broken-rewright", "0.3.1", "failed", error, []]
    assert plugins["acme"][2] == "loaded"
    assert plugins["rewright"][2] == "loaded"


def test_a_pass_of_a_broken_plugin_is_answered_with_the_plugins_error(plugin_site, run_python):
    site = plugin_site("acme-rewright", "broken-rewright")
    answer = run_python(site, "-c", GET, "broken-fusion").stdout
    assert answer.startswith("PluginError there is no pass 'broken-fusion'; it may belong to broken-rewright 0.3.1")
    assert "RuntimeError: libbroken.so.3 is missing" in answer
    misspelt = run_python(site, "-c", GET, "acme-duoble-negation").stdout
    assert misspelt.startswith("UsageError there is no pass 'acme-duoble-negation'. Did you mean acme-double-negation?")
    assert "Not loaded: broken-rewright 0.3.1" in misspelt


def test_two_plugins_that_claim_one_name_are_both_named(plugin_site, run_python):
    answer = run_python(plugin_site("acme-rewright", "clash-rewright"), "-c", GET, "gelu").stdout
    assert answer.startswith(
        "PluginError both acme-rewright 1.2.0 (plugin acme) and clash-rewright 2.0.0 (plugin clash)"
        " register a pass 'acme-double-negation'."
    )


def test_autoload_off_skips_installed_plugins_but_not_one_that_is_asked_for(state):
    sites = ["acme-rewright", "clash-rewright"]
    off = state(sites, REWRIGHT_DISABLE_PLUGIN_AUTOLOAD="1")
    assert [off["plugins"][name][2] for name in ("rewright", "acme", "clash")] == ["loaded", "skipped", "skipped"]
    assert "acme-double-negation" not in off["passes"]
    asked = state(sites, "acme", REWRIGHT_DISABLE_PLUGIN_AUTOLOAD="1")
    assert [asked["plugins"][name][2] for name in ("acme", "acme-wrong", "clash")] == ["loaded", "skipped", "skipped"]
    assert "acme-double-negation" in asked["passes"]


def test_a_module_can_be_asked_for_and_still_tells_its_distribution(state):
    found = state(["acme-rewright"], "acme_rewright.wrong_gelu:WrongGelu", REWRIGHT_DISABLE_PLUGIN_AUTOLOAD="1")
    record = found["plugins"]["acme_rewright.wrong_gelu:WrongGelu"]
    assert record == ["acme-rewright", "1.2.0", "loaded", "", ["acme-wrong-gelu"]]


def test_finding_plugins_imports_neither_passes_nor_onnx(plugin_site, run_python):
    code = """
import sys
import rewright.registry.discovery, rewright.registry.catalog
heavy = {"onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "pydantic", "acme_rewright"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run_python(plugin_site("acme-rewright"), "-c", code).stdout.strip() == "[]"
