"""docs/backends.md: what the code says today, for every pass, target and float type."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from rewright.ops.installed import DTYPES
from rewright.passes.contract import Target
from rewright.passes.deferral import Deferral
from rewright.passes.pattern_pass import PatternPass
from rewright.registry.catalog import Catalog
from rewright.testing.backends import page
from rewright.testing.backends.cells import Reasons, kernels, outcome, summary, types
from rewright.testing.backends.page import COMMAND
from rewright.testing.backends.trials import QUANTIZERS, TARGETS, Trial, deferred, tried, tried_passes
from rewright.testing.mutants.subjects import FUSIONS

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load(autoload=False)


@pytest.fixture
def written() -> str:
    """The page in the documentation, which the first test compares with what the code says."""
    return PAGE.read_text()


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """The cells of the first table below a heading, by the first one."""
    lines = iter(text.partition(f"\n{heading}\n")[2].splitlines())
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("| "):
            first, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
            found[first] = cells
        elif found and not line.startswith("|-"):
            break
    return found


def test_the_page_in_the_documentation_is_what_the_code_says(written, catalog):
    generated = page(catalog)
    change = "\n".join(
        difflib.unified_diff(written.splitlines(), generated.splitlines(), "docs/backends.md", "now", n=0, lineterm="")
    )
    assert written == generated, f"what passes do has changed; look at it, then run\n    {COMMAND}\n{change}"


def test_every_pass_has_a_line_and_every_fusion_a_table(catalog, written):
    assert list(rows(written, "## Passes"))[1:] == list(catalog)
    assert set(tried_passes()) == {*FUSIONS, *QUANTIZERS}
    for name in tried_passes():
        table = rows(written, f"### {name}")
        assert list(table) == ["target", *get_args(Target)]
        assert table["target"] == list(DTYPES)


def test_what_onnx_runtime_carries_out_and_what_it_declines(catalog, written):
    passes, deferrals = rows(written, "## Passes"), rows(written, "## What ONNX Runtime puts in")
    for name in catalog:
        ort, said = catalog.get(name).ort, passes[name][-1]
        if ort is None:
            assert name not in deferrals
        elif ort.declines:
            assert said == f"declines: {ort.declines}"
            assert name not in deferrals
        else:
            assert all(f"`{optimizer}`" in f"`{said}`" for optimizer in (*ort.optimizers, *ort.classes)), said
            assert deferrals[name][2].replace("`", "") == (", ".join(ort.makes).replace("::", ".") or "nothing new")


def test_some_cells(written):
    gelu = rows(written, "### gelu")
    assert gelu["cpu"][:2] == ["com.microsoft.Gelu`; from opset 20 `Gelu", "no kernel; from opset 20 `Gelu"]
    assert gelu["portable"][0] == "no kernel; from opset 20 `Gelu"
    assert rows(written, "## Passes")["quick-gelu"][:4] == ["f32", "all", "f32 f16", "no"]
    assert rows(written, "## Passes")["dead-code"][:4] == ["all"] * 4
    assert rows(written, "### layer-norm")["dml"][3] == "no [1]"
    assert "\n1. LayerNormalization does not compute in float64\n" in written
    assert rows(written, "## Kernels")["com.microsoft.GroupQueryAttention"][:4] == ["f32 f16", "f16 bf16", "f32 f16", "no"]


def test_a_type_that_a_target_has_a_kernel_for_fires_on_it(written):
    """For passes whose only op has a contract, and which have no reason of their own to decline."""
    for name, op in (
        ("quick-gelu", "QuickGelu"),
        ("attention", "Attention"),
        ("skip-rms-norm", "SkipSimplifiedLayerNormalization"),
    ):
        assert rows(written, "## Passes")[name][:4] == [types(kernels([f"com.microsoft.{op}"], target)) for target in TARGETS]


def test_a_plugins_pass_has_a_line(written):
    class Acme(PatternPass):
        """Nothing in particular."""

        name = "acme-gelu"
        emits = ("com.microsoft.FastGelu", "acme.Mystery")
        ort = Deferral(optimizers=("FastGeluFusion",), makes=("com.microsoft::FastGelu",))

        def pattern(self, op, x):
            return op.Tanh(x)

    text = page(Catalog([]).extended(Acme))
    assert rows(text, "## Passes")["acme-gelu"] == ["all", "all", "all", "all", "FastGeluFusion"]
    assert rows(text, "## What ONNX Runtime puts in")["acme-gelu"][3:] == ["f32", "all", "f32 f16", "no"]
    assert rows(text, "## Kernels")["acme.Mystery"] == ["unknown"] * 4 + ["no contract"]
    assert "acme-gelu" not in written


def test_the_words_of_cells():
    fired, not_there = Trial(17, ("Gelu",)), Trial(17, reason="the target 'cpu' has no kernel for com.microsoft.Gelu on float16")
    later = Trial(20, ("Gelu",)), Trial(23, reason="no")
    assert (
        summary({"float32": [fired, *later], "float16": [not_there, *later]})
        == "f32 below opset 23; f16 from opset 20 below opset 23"
    )
    assert summary({"float32": [not_there]}) == "no"
    reasons = Reasons()
    assert outcome([not_there, *later], reasons) == "no kernel; from opset 20 `Gelu`; from opset 23 no [1]"
    assert outcome([Trial(17, reason="other, and the model is at opset 17"), Trial(20, reason="no")], reasons) == (
        "no [2]; from opset 20 no [1]"
    )
    assert (reasons.texts, outcome([], reasons)) == (["no", "other"], "no such model")
    assert types(iter(DTYPES)) == "all"


def test_the_command_names_a_plugin_that_cannot_be_loaded():
    command = [sys.executable, "-m", "rewright.testing.backends", "--no-plugins", "--plugin", "no_such_module"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr
    assert "no_such_module" in done.stderr
    assert "Traceback" not in done.stderr


def test_each_example_is_one_that_its_pass_takes(written):
    """Else a table of refusals would say nothing about targets and types."""
    for name in tried_passes():
        assert rows(written, f"### {name}")["cpu"][0].startswith("no [1]") == (name == "gemm-fast-gelu"), name
    assert tried("quick-gelu", "cpu", "float32")[0] == Trial(17, ("com.microsoft.QuickGelu",))
    assert tried("quick-gelu", "cpu", "float16")[0].reason.endswith("no kernel for com.microsoft.QuickGelu on float16")
    assert deferred("quick-gelu", "cpu", "float32") == ("com.microsoft.QuickGelu",)
