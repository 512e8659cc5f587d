"""Discovery: each way to spell a plugin, each way to break one, and what is recorded."""

from __future__ import annotations

import sys
import textwrap

import pytest

from rewright.model.errors import PluginError
from rewright.registry.discovery import discover

HEADER = """
from rewright.passes.contract import Pass
from rewright.passes.graph_pass import GraphPass, graph_pass
from rewright.registry.hookspecs import hookimpl

class First(Pass):
    name = "first"

class Second(Pass):
    name = "second"

class Unnamed(Pass):
    pass

class Unfinished(GraphPass):
    name = "unfinished"

@graph_pass("third")
def third(graph):
    '''Leaves the graph as it is.'''

BOTH = [First, Second]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a module and a distribution's metadata for its entry points on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    installed = []

    def write(module: str, body: str, *entry_points: str, version: str = "1.0") -> None:
        (tmp_path / f"{module}.py").write_text(HEADER + textwrap.dedent(body), encoding="utf-8")
        installed.append(module)
        if entry_points:
            metadata = tmp_path / f"{module}-{version}.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
            (metadata / "entry_points.txt").write_text("\n".join(["[rewright]", *entry_points]))

    yield write
    for module in installed:
        sys.modules.pop(module, None)


def found(*plugins, autoload=None):
    """Everything but the built-in plugin: entry point name -> contribution."""
    contributions = discover(plugins, autoload)
    assert contributions[0].record.distribution == "rewright"
    return {c.record.name: c for c in contributions[1:]}


@pytest.mark.parametrize(
    ("value", "passes"),
    [
        ("acme:First", ("first",)),
        ("acme:BOTH", ("first", "second")),
        ("acme:third", ("third",)),
        ("acme", ("second", "third")),
    ],
)
def test_a_plugin_is_a_class_a_list_a_decorated_function_or_a_module_with_hooks(install, value, passes):
    body = """
        @hookimpl
        def rewright_passes():
            return (Second, third)
    """
    install("acme", body, f"entry = {value}")
    contribution = found()["entry"]
    assert contribution.record.passes == passes
    assert tuple(c.name for c in contribution.passes) == passes
    assert contribution.record.label == "acme 1.0 (plugin entry)"
    assert (contribution.record.status, contribution.record.error) == ("loaded", "")


def test_a_plugin_may_bring_levels_only(install):
    install("acme", "@hookimpl\ndef rewright_levels():\n    return {'mobile': 'O2'}", "acme = acme")
    assert found()["acme"].levels == {"mobile": "O2"}
    assert found()["acme"].passes == ()


@pytest.mark.parametrize(
    ("body", "value", "error"),
    [
        ("raise SystemExit('licence expired')", "acme", "SystemExit: licence expired"),
        ("import absent_module", "acme", "ModuleNotFoundError: No module named 'absent_module'"),
        ("", "acme:ABSENT", "AttributeError: module 'acme' has no attribute 'ABSENT'"),
        ("", "acme", "module acme has no function that implements a rewright hook"),
        ("@hookimpl\ndef rewright_pases(): return []", "acme", "unknown hook 'rewright_pases'"),
        ("@hookimpl\ndef rewright_passes(model): return []", "acme", "Argument(s) {'model'} are declared"),
        ("@hookimpl\ndef rewright_passes(): raise ValueError('no\\nluck')", "acme", "ValueError: no luck"),
        ("@hookimpl\ndef rewright_passes(): return First", "acme", "rewright_passes returned <class 'acme.First'>"),
        ("@hookimpl\ndef rewright_levels(): return {'a b': 'O1'}", "acme", "rewright_levels returned 'a b': 'O1'"),
        ("@hookimpl\ndef rewright_levels(): return {'a': ['O1']}", "acme", "rewright_levels returned 'a': ['O1']"),
        ("VALUE = [First, 'second']", "acme:VALUE", "'second' is not a pass"),
        ("", "acme:Unnamed", "the pass class acme.Unnamed has no name"),
        ("", "acme:Unfinished", "the pass class acme.Unfinished is not finished. It must define run."),
    ],
)
def test_a_broken_plugin_is_recorded_with_its_error_and_offers_nothing(install, body, value, error):
    install("acme", body, f"acme = {value}")
    install("sound", "", "sound = sound:First")
    contributions = found()
    record = contributions["acme"].record
    assert (record.distribution, record.version, record.status, record.passes) == ("acme", "1.0", "failed", ())
    assert error in record.error
    assert "\n" not in record.error
    assert contributions["acme"].passes == ()
    assert contributions["sound"].record.status == "loaded"


def test_entry_points_of_one_name_from_two_distributions_both_load(install):
    install("acme", "", "fusions = acme:First")
    install("other", "", "fusions = other:Second")
    contributions = [c for c in discover() if c.record.name == "fusions"]
    assert [(c.record.distribution, c.record.passes) for c in contributions] == [
        ("acme", ("first",)),
        ("other", ("second",)),
    ]


def test_autoload_is_switched_off_by_argument_or_environment_variable(install, monkeypatch):
    install("acme", "raise RuntimeError('imported')", "acme = acme")
    assert found(autoload=False)["acme"].record.status == "skipped"
    monkeypatch.setenv("REWRIGHT_DISABLE_PLUGIN_AUTOLOAD", "1")
    assert found()["acme"].record.status == "skipped"
    assert found(autoload=True)["acme"].record.status == "failed"
    monkeypatch.setenv("REWRIGHT_DISABLE_PLUGIN_AUTOLOAD", "0")
    assert found()["acme"].record.status == "failed"


def test_a_plugin_is_asked_for_by_entry_point_module_or_attribute(install):
    install("acme", "@hookimpl\ndef rewright_passes(): return BOTH", "fusions = acme")
    install("loose", "")
    assert found("fusions", autoload=False)["fusions"].record.passes == ("first", "second")
    by_module = found("acme", autoload=False)
    assert by_module["fusions"].record.status == "skipped"
    assert by_module["acme"].record.passes == ("first", "second")
    assert found("loose:Second", autoload=False)["loose:Second"].record.label == "plugin loose:Second"


def test_a_module_that_an_entry_point_brought_already_is_not_loaded_again(install):
    install("acme", "@hookimpl\ndef rewright_passes(): return BOTH", "fusions = acme")
    assert "acme" not in found("acme")


def test_a_plugin_that_is_asked_for_and_broken_is_an_error(install):
    install("acme", "raise RuntimeError('no licence')", "fusions = acme")
    message = "cannot be loaded: RuntimeError: no licence"
    with pytest.raises(PluginError, match=rf"acme 1\.0 \(plugin fusions\) {message}"):
        discover(["fusions"])
    with pytest.raises(PluginError, match=f"plugin acme {message}"):
        discover(["acme"])
    with pytest.raises(PluginError, match="plugin absent cannot be loaded: ModuleNotFoundError"):
        discover(["absent"])
