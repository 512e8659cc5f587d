"""Nothing imports torch, transformers or optimum, unless a function of ``rewright.integrations`` is asked to."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rewright

BERT = Path(__file__).parent / "zoo" / "bert.ts17.sdpa.onnx"
FRAMEWORKS = ("torch", "transformers", "optimum", "tensorflow")

# Whoever imports one of them is written down, in child processes too, and goes on as if it were not installed.
WITNESS = """
import os, traceback
with open(os.environ["SEEN_BY"], "a") as seen:
    seen.write("".join(traceback.format_stack(limit=12)))
raise ModuleNotFoundError("No module named " + repr(__name__), name=__name__)
"""


def modules() -> list[str]:
    """Every module of the package but the ones that are programs, which run when they are imported."""
    found = pkgutil.walk_packages(rewright.__path__, "rewright.")
    return sorted(module.name for module in found if not module.name.endswith(".__main__"))


@pytest.fixture
def witnessed(tmp_path: Path) -> Path:
    """A folder with a witness in the place of each framework."""
    for name in FRAMEWORKS:
        (tmp_path / "fakes" / name).mkdir(parents=True)
        (tmp_path / "fakes" / name / "__init__.py").write_text(WITNESS)
    return tmp_path


def run(code: str, folder: Path) -> str:
    """Runs the code with the witnesses in the way; returns what they saw."""
    variables = os.environ | {"PYTHONPATH": str(folder / "fakes"), "SEEN_BY": str(folder / "seen.txt")}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = folder / "seen.txt"
    return seen.read_text() if seen.exists() else ""


def test_the_witness_sees_the_import_of_a_child_process(witnessed: Path) -> None:
    child = "try: import torch\nexcept ImportError: pass"
    assert "<string>" in run(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)", witnessed)


def test_importing_every_module_imports_no_framework(witnessed: Path) -> None:
    names = modules()
    assert {"rewright.api", "rewright.cli.main", "rewright.integrations", "rewright.testing.fuzz"} <= set(names)
    assert run(f"import importlib\nfor name in {names!r}: importlib.import_module(name)", witnessed) == ""


@pytest.mark.parametrize("arguments", ["level='O3', verify='sites'", "backend='ort'", "backend='auto'"])
def test_optimizing_imports_no_framework(witnessed: Path, arguments: str) -> None:
    code = f"import rewright; assert rewright.optimize({str(BERT)!r}, 'out.onnx', {arguments}).report.verdict == 'passed'"
    assert run(code, witnessed) == ""


def test_optimizing_a_directory_imports_no_framework(witnessed: Path) -> None:
    source = witnessed / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(BERT.read_bytes())
    (source / "config.json").write_text('{"model_type": "bert"}')
    code = (
        "from rewright.integrations import huggingface\n"
        "from rewright.integrations.optimum import AutoOptimizationConfig\n"
        "result = huggingface.optimize('source', 'saved', AutoOptimizationConfig.O2())\n"
        "assert result.verdict == 'passed', result"
    )
    assert run(code, witnessed) == ""
    assert (witnessed / "saved" / "model.onnx").is_file()
