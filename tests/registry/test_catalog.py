"""The catalog: owners, clashes, near names, and the built-in passes and levels."""

from __future__ import annotations

import pytest

from rewright import api
from rewright.model.errors import PluginError, UsageError
from rewright.passes.contract import Pass
from rewright.registry.catalog import Catalog, default_catalog
from rewright.registry.chain import Chain
from rewright.registry.discovery import Contribution, PluginRecord


class Mobile(Pass):
    name = "acme-mobile"


class OtherMobile(Pass):
    name = "acme-mobile"


ACME = PluginRecord("acme", "acme-rewright", "1.2")
CLASH = PluginRecord("clash", "clash-rewright", "2.0")
BROKEN = PluginRecord("broken", "broken-rewright", "0.3", "failed", "ImportError: no libbroken.so.3")
SKIPPED = PluginRecord("quiet", "quiet-rewright", "0.1", "skipped", "installed plugins are not loaded")


def test_a_pass_is_found_with_its_owner(catalog):
    assert "gelu" in catalog
    assert "O1" not in catalog
    assert list(catalog) == ["fold", "gelu", "bias-gelu", "attention", "clean"]
    assert len(catalog) == 5
    assert catalog.get("gelu").name == "gelu"
    assert catalog.owner("gelu").label == catalog.owner("O1").label == "test-passes 1.0 (plugin test)"


def test_one_class_by_two_roads_is_one_pass():
    catalog = Catalog([Contribution.of(ACME, [Mobile], {}), Contribution.of(CLASH, [Mobile], {})])
    assert catalog.owner("acme-mobile").name == "acme"


def test_a_name_that_two_plugins_claim_is_an_error_with_both_owners():
    both = r"both acme-rewright 1\.2 \(plugin acme\) and clash-rewright 2\.0 \(plugin clash\) register a "
    with pytest.raises(PluginError, match=both + "pass 'acme-mobile'"):
        Catalog([Contribution.of(ACME, [Mobile], {}), Contribution.of(CLASH, [OtherMobile], {})])
    with pytest.raises(PluginError, match=both + "level 'mobile'"):
        Catalog([Contribution.of(ACME, [], {"mobile": ""}), Contribution.of(CLASH, [], {"mobile": ""})])
    with pytest.raises(PluginError, match=both + "level 'acme-mobile'"):
        Catalog([Contribution.of(ACME, [Mobile], {}), Contribution.of(CLASH, [], {"acme-mobile": ""})])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("acme-mobil", UsageError, r"there is no pass 'acme-mobil'\. Did you mean acme-mobile\?"),
        ("zzz", UsageError, r"`rewright passes` and `rewright chains` list what there is\. \(Not loaded: broken-rewright"),
        ("small", UsageError, r"'small' is a level, not a pass\."),
        (
            "broken-gelu",
            PluginError,
            r"may belong to broken-rewright 0\.3 \(plugin broken\), which failed to load: ImportError: no libbroken\.so\.3\."
            r" Mend or reinstall broken-rewright",
        ),
        ("brokn", PluginError, "which failed to load: ImportError"),
        ("quiet-gelu", PluginError, r"was skipped: installed plugins are not loaded\. Ask for it with --plugin quiet\."),
    ],
)
def test_an_unknown_name_is_answered_with_what_may_be_meant(name, error, message):
    absent = [Contribution(BROKEN), Contribution(SKIPPED)]
    catalog = Catalog([Contribution.of(ACME, [Mobile], {"small": ""}), *absent])
    for ask in (catalog.get, catalog.owner):
        if ask == catalog.owner and name == "small":
            continue
        with pytest.raises(error, match=message):
            ask(name)


def test_extending_leaves_the_catalog_as_it_was(catalog):
    extended = catalog.extended(Mobile)
    assert "acme-mobile" in extended
    assert "acme-mobile" not in catalog
    assert extended.levels == catalog.levels
    assert extended.owner("acme-mobile").label == "plugin this program"


def test_the_built_in_passes_come_by_the_same_hook():
    catalog = Catalog.load(autoload=False)
    record = catalog.plugins[0]
    assert (record.name, record.status) == ("rewright", "loaded")
    assert set(record.passes) == {*catalog}
    assert {"constant-folding", "dead-code", "layer-norm", "bias-gelu", "ort-session", "ort-transformers"} <= {*catalog}
    assert "quantize-dynamic" in catalog
    assert {"quantize-static", "smooth-quant"} <= {*catalog}
    assert "quantize-weights" in catalog
    assert {"float16", "bfloat16"} <= {*catalog}
    assert all(catalog.get(name).summary() for name in catalog)
    assert default_catalog() is default_catalog()


def test_the_built_in_levels_build_on_each_other():
    catalog = Catalog.load(autoload=False)
    assert Chain("O0", catalog=catalog).passes == ()
    first, second, third = (Chain(level, catalog=catalog) for level in ("O1", "O2", "O3"))
    cleanups = {"inline-functions", "constant-folding", "identity-elimination", "common-subexpression"}
    assert cleanups | {"inline-conditionals", "shape-simplification", "dead-code"} == {step.name for step in first}
    fusions = {"layer-norm", "gelu", "skip-layer-norm", "bias-gelu"}
    assert fusions <= {step.name for step in second} - {step.name for step in first}
    names = [[step.name for step in chain] for chain in (second, third)]
    assert names[1] == [*names[0], "gelu-approximation", "dead-code"]
    assert all(catalog.get(name).exactness in ("exact", "reassociating") for name in names[0])
    for chain in (first, second, third):
        assert chain.warnings == ()
        assert chain.inserted == ()
        assert chain[-1].name == "dead-code"
        assert Chain(chain.text, catalog=catalog) == chain


@pytest.mark.parametrize("level", ["O4", "o4", "4", 4])
def test_the_last_level_is_the_third_and_float16(level):
    third = [step.name for step in Chain("O3")]
    assert [step.name for step in api.Chain.at_level(level)] == [*third, "float16", "identity-elimination"]


def test_a_plugin_may_bring_a_level_of_its_own():
    catalog = Catalog([Contribution.of(ACME, [Mobile], {"O5": "acme-mobile"})])
    assert api.Chain.at_level("5", catalog=catalog).text == "acme-mobile"
    assert Chain("O5", catalog=catalog).text == "acme-mobile"
