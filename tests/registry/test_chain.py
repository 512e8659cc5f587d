"""Chains: names, options and levels resolved against a catalog, and forms that round-trip."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

from rewright.model.errors import PluginError, UsageError
from rewright.passes.contract import Pass
from rewright.registry.catalog import Catalog
from rewright.registry.chain import Chain
from rewright.registry.discovery import Contribution, PluginRecord


class Grain(Enum):
    TENSOR = "tensor"
    CHANNEL = "channel"


class Budget(BaseModel, frozen=True):
    sqnr: float = 20.0
    top1: float | None = None


class Everything(Pass):
    """One option of every kind that a pass may declare."""

    name = "everything"

    flag: bool = False
    count: int = 3
    ratio: float = 0.5
    label: str = "none"
    limit: int | None = 7
    mode: Literal["none", "tanh"] = "none"
    grain: Grain = Grain.TENSOR
    exclude: tuple[str, ...] = ()
    only: frozenset[str] = frozenset()
    pairs: tuple[tuple[int, float], ...] = ((1, 2.0),)
    bits: dict[str, int] = Field(default_factory=lambda: {"*": 8})
    budget: Budget = Budget()
    folder: Path = Path()

    @field_validator("count")
    @classmethod
    def _not_negative(cls, count: int) -> int:
        if count < 0:
            raise ValueError("it must not be negative")
        return count


EVERYTHING = Catalog([Contribution.of(PluginRecord("test"), [Everything], {})])

finite = st.floats(allow_nan=False)
everything = st.builds(
    Everything,
    flag=st.booleans(),
    count=st.integers(min_value=0, max_value=2**80),
    ratio=finite,
    label=st.text(),
    limit=st.integers(),
    mode=st.sampled_from(["none", "tanh"]),
    grain=st.sampled_from(Grain),
    exclude=st.lists(st.text(), max_size=3).map(tuple),
    only=st.frozensets(st.text(), max_size=3),
    pairs=st.lists(st.tuples(st.integers(), finite), max_size=3).map(tuple),
    bits=st.dictionaries(st.text(), st.integers(), max_size=3),
    budget=st.builds(Budget, sqnr=finite),
    folder=st.sampled_from([Path(), Path("a b/c"), Path("true")]),
)
nullable = everything | st.builds(Everything, limit=st.none())
chains = st.lists(nullable, max_size=3).map(lambda passes: Chain(passes, catalog=EVERYTHING))
relaxed = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@relaxed
@given(chains)
def test_the_text_form_round_trips(chain):
    again = Chain(chain.text, catalog=EVERYTHING)
    assert again == chain
    assert again.text == chain.text
    assert hash(again) == hash(chain)


@relaxed
@given(chains)
def test_the_yaml_form_round_trips(chain):
    assert Chain.from_yaml(chain.to_yaml(), catalog=EVERYTHING) == chain


@relaxed
@given(st.lists(everything, max_size=3).map(lambda passes: Chain(passes, catalog=EVERYTHING)))
def test_the_toml_form_round_trips(chain):
    assert Chain.from_toml(chain.to_toml(), catalog=EVERYTHING) == chain


def test_the_python_form_round_trips(catalog):
    chain = Chain("fold{max_bytes=9}, gelu{approximate='t \"x\"'}", catalog=catalog)
    assert eval(repr(chain), {"Chain": lambda text: Chain(text, catalog=catalog)}) == chain


def test_toml_cannot_say_null():
    chain = Chain("everything{limit=null}", catalog=EVERYTHING)
    with pytest.raises(UsageError, match="null, which TOML cannot say"):
        chain.to_toml()


def test_the_text_is_canonical(catalog):
    chain = Chain('fold{exclude=["/a/*" "b c"], max_bytes=1024}, gelu {tolerance = 1e-5}', catalog=catalog)
    assert chain.text == 'fold{exclude=[/a/*, "b c"]}, gelu{tolerance=1e-05}'
    assert str(chain) == chain.text
    assert repr(chain) == f"Chain({chain.text!r})"
    assert Chain("gelu{tolerance=1e-4}", catalog=catalog).text == "gelu"


def test_a_chain_is_made_of_texts_passes_and_chains(catalog):
    gelu = catalog.get("gelu")
    first = Chain("fold", catalog=catalog)
    chain = Chain([first, gelu(approximate="tanh"), "bias-gelu, clean"], catalog=catalog)
    assert chain.text == "fold, gelu{approximate=tanh}, bias-gelu, clean"
    assert [step.name for step in chain] == ["fold", "gelu", "bias-gelu", "clean"]
    assert len(chain) == 4
    assert chain[1] == gelu(approximate="tanh")
    assert Chain(chain) == chain
    assert Chain(chain).catalog is catalog
    assert Chain(chain[:2], catalog=catalog).text == "fold, gelu{approximate=tanh}"
    assert chain != first
    assert chain != chain.text


def test_what_is_no_pass_is_refused(catalog):
    with pytest.raises(UsageError, match=r"Gelu is a pass class\. A chain takes configured passes: Gelu\(\)"):
        Chain([catalog.get("gelu")], catalog=catalog)
    with pytest.raises(UsageError, match="a chain cannot hold 7"):
        Chain([7], catalog=catalog)


def test_a_pass_outside_the_catalog_runs_but_cannot_take_a_name_that_is_taken(catalog):
    class Mine(Pass):
        name = "mine"

    class Impostor(Pass):
        name = "gelu"

    assert Chain([Mine(), "gelu"], catalog=catalog).text == "mine, gelu"
    with pytest.raises(UsageError, match=r"Impostor has the name 'gelu', which belongs to test-passes 1\.0"):
        Chain([Impostor()], catalog=catalog)
    assert Chain("mine", catalog=catalog.extended(Mine)) == Chain([Mine()], catalog=catalog)
    with pytest.raises(PluginError, match="both test-passes"):
        catalog.extended(Impostor)


@pytest.mark.parametrize(
    ("text", "message", "hint", "column"),
    [
        ("clean, gleu", "there is no pass 'gleu'.", "Did you mean gelu?", 8),
        ("o2", "there is no pass 'o2'.", "Did you mean O2?", 1),
        ("gelu{aproximate=tanh}", "pass gelu has no option 'aproximate'.", "Did you mean approximate? Its options:", 6),
        (
            "fold{max_bytes=x}",
            "pass fold: option max_bytes: input should be a valid integer, unable to parse string as an integer, got 'x'.",
            "",
            6,
        ),
        (
            "gelu{approximate=12}",
            "pass gelu: option approximate: input should be a valid string, got 12.",
            "Put quotes around it",
            6,
        ),
        (
            "fold{exclude=[a 1]}",
            "pass fold: option exclude.1: input should be a valid string, got 1.",
            "Put quotes around it",
            6,
        ),
        ("clean, attention", "pass attention: option heads is required.", "", 8),
        ("clean{backend=ort}", "pass clean has no backend 'ort'.", "It has: standalone.", 7),
        ("clean, O2{heads=2}", "level O2 has no options.", "Set them on its passes instead.", 8),
    ],
)
def test_an_error_names_the_pass_and_points_at_the_place(catalog, text, message, hint, column):
    with pytest.raises(UsageError) as caught:
        Chain(text, catalog=catalog)
    assert caught.value.message == f"chain text, column {column}: {message}"
    assert caught.value.hint.startswith(hint)
    assert caught.value.hint.splitlines()[-1] == " " * (4 + column - 1) + "^"


def test_a_validator_of_a_pass_speaks_for_itself():
    with pytest.raises(UsageError, match=r"pass everything: option count: it must not be negative, got -1\."):
        Chain("everything{count=-1}", catalog=EVERYTHING)


def test_an_option_without_a_text_form_is_the_pass_developers_error():
    class Odd(Pass):
        name = "odd"
        blob: bytes = b""

    with pytest.raises(UsageError, match=r"pass odd: option blob holds a bytes, which has no text form\."):
        _ = Chain([Odd(blob=b"x")], catalog=EVERYTHING).text


def test_levels_expand_and_are_sorted_by_their_constraints(catalog):
    assert Chain("O0", catalog=catalog).text == ""
    assert Chain("O2", catalog=catalog).text == "fold, gelu, bias-gelu, clean"
    assert Chain("clean, O1", catalog=catalog).text == "clean, fold, gelu, bias-gelu"
    assert Chain("O2", catalog=catalog).warnings == ()


def test_outside_levels_the_order_is_the_users_and_a_broken_wish_is_a_warning(catalog):
    chain = Chain("bias-gelu, gelu", catalog=catalog)
    assert chain.text == "bias-gelu, gelu"
    assert chain.warnings == ("bias-gelu asks to run after gelu, but runs the other way round in this chain",)


def test_a_required_pass_is_inserted_once_and_on_record(catalog):
    chain = Chain("clean, attention{heads=2}, attention{heads=4}", catalog=catalog)
    assert chain.text == "clean, fold, attention{heads=2}, attention{heads=4}"
    assert chain.inserted == ("fold was inserted, because attention requires it",)
    again = Chain(chain.text, catalog=catalog)
    assert again == chain
    assert again.inserted == ()


def test_levels_that_contain_each_other_are_refused():
    circular = Catalog([Contribution.of(PluginRecord("acme", "acme", "1"), [], {"A": "B", "B": "A"})])
    with pytest.raises(UsageError, match=r"levels contain each other: A -> B -> A"):
        Chain("A", catalog=circular)


def test_an_error_inside_a_level_names_its_owner():
    faulty = Catalog([Contribution.of(PluginRecord("acme", "acme-rewright", "1.2"), [], {"A": "nothing"})])
    with pytest.raises(UsageError, match=r"level A of acme-rewright 1\.2 \(plugin acme\): .*there is no pass 'nothing'"):
        Chain("A", catalog=faulty)


def test_an_option_is_set_in_every_occurrence_of_its_pass(catalog):
    chain = Chain("fold, gelu{approximate=tanh}, fold{max_bytes=5}", catalog=catalog)
    assert chain.with_option("fold.max_bytes", 9).text == "fold{max_bytes=9}, gelu{approximate=tanh}, fold{max_bytes=9}"
    assert chain.with_setting("gelu.tolerance=1e-3").text == ("fold, gelu{tolerance=0.001, approximate=tanh}, fold{max_bytes=5}")
    assert chain.with_setting("fold.exclude=[/a/* b]")[0].exclude == ("/a/*", "b")
    assert chain.text == "fold, gelu{approximate=tanh}, fold{max_bytes=5}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("gelu.backend", "'gelu.backend' sets nothing"),
        ("backend=ort", "'backend' names no option"),
        ("gleu.backend=ort", r"the chain holds no pass 'gleu' to set backend on\. Did you mean gelu\?"),
        ("gelu.heads=1", "pass gelu has no option 'heads'"),
        ("gelu.tolerance=x y", "column 3: expected nothing more after the value, found 'y'"),
        ("fold.backend=ort", "pass fold has no backend 'ort'"),
    ],
)
def test_a_setting_that_fits_nothing_is_refused(catalog, setting, message):
    with pytest.raises(UsageError, match=message):
        Chain("fold, gelu", catalog=catalog).with_setting(setting)


def test_a_backend_goes_to_the_passes_that_have_it_and_were_not_given_one(catalog):
    chain = Chain("fold, gelu, bias-gelu{backend=standalone}", catalog=catalog)
    moved, without = chain.with_backend("ort")
    assert moved.text == "fold, gelu{backend=ort}, bias-gelu"
    assert without == ("fold",)


def test_a_chain_file_is_read_by_its_suffix(catalog, tmp_path):
    files = {
        "chain.txt": "O1,\n  attention{heads=12}\n",
        "chain.yaml": "chain:\n- O1\n- attention:\n    heads: 12\n",
        "chain.yml": 'chain: [O1, "attention{heads=12}"]\n',
        "chain.toml": 'chain = ["O1", { attention = { heads = 12 } }]\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        found = Chain.from_file(tmp_path / name, catalog=catalog)
        assert found.text == "fold, gelu, bias-gelu, attention{heads=12}", name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "chain: [gleu]", "there is no pass 'gleu'"),
        ("a.yaml", "passes: [gelu]", "this is no chain"),
        ("a.yaml", "- gelu", "this is no chain"),
        ("a.yaml", "chain:\n- gelu: {tolerance: 1, tolerance: 2}", "'tolerance' is given twice"),
        ("a.yaml", "chain: [7]", "entry 1 of the chain is 7"),
        ("a.yaml", "chain: [gelu: 7]", "entry 1 of the chain gives gelu the options 7"),
        ("a.yaml", "chain: [O2: {heads: 1}]", "'O2' is a level, not a pass"),
        ("a.yaml", "chain: !!python/object/apply:os.getcwd []", "the YAML is malformed: could not determine a constr"),
        ("a.yaml", "chain: [2020-99-99]", "the YAML is malformed"),
        ("a.yaml", "[" * 5000, "the YAML is malformed"),
        ("a.toml", "chain = [", "the TOML is malformed"),
        ("a.txt", "gelu{", r"chain text, column 6: expected an option"),
    ],
)
def test_a_faulty_chain_file_is_named_with_its_fault(catalog, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        Chain.from_file(path, catalog=catalog)
    assert caught.value.message.startswith(f"chain file {path}: ")


def test_a_chain_file_that_cannot_be_read_is_named(catalog, tmp_path):
    with pytest.raises(UsageError, match=r"absent\.yaml: it cannot be read \(No such file or directory\)"):
        Chain.from_file(tmp_path / "absent.yaml", catalog=catalog)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is not UTF-8 text"):
        Chain.from_file(tmp_path / "bytes.txt", catalog=catalog)
