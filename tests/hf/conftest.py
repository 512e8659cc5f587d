"""Real models go through Optimum's exporter, then through rewright, then back into Optimum and transformers.

These tests need the extra ``hf`` and run by ``make test-hf``; the plain test command does not collect them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Read when the libraries are imported: nothing may be downloaded, and tokenizers may not outrun two cores.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest
import torch
from local_models import RECIPES
from optimum.exporters.onnx import main_export
from outcome import Optimized

from rewright.integrations import huggingface

FIGURES = "figures"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`exported("bert-classes")`: the folder that Optimum's exporter writes; made once."""
    made: dict[str, Path] = {}

    def export(name: str) -> Path:
        if name not in made:
            recipe = RECIPES[name]
            source, output = tmp_path_factory.mktemp(f"{name}-torch"), tmp_path_factory.mktemp(name)
            recipe.make(source)
            main_export(str(source), output, task=recipe.task, do_validation=False, **recipe.exporting)
            recipe.before().save_pretrained(output)
            made[name] = output
        return made[name]

    return export


@pytest.fixture(scope="session")
def optimized(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Optimized]:
    """`optimized("bert-classes", level="O3")`: the export, and what rewright makes of it; made once for each set of arguments."""
    made: dict[tuple[str, str, str], Optimized] = {}

    def optimize(name: str, level: str = "O2", backend: str = "standalone") -> Optimized:
        key = (name, level, backend)
        if key not in made:
            before = exported(name)
            after = tmp_path_factory.mktemp("optimized") / name
            result = huggingface.optimize(before, after, level=level, backend=backend)
            made[key] = Optimized(name, level if backend == "standalone" else f"{level} {backend}", before, after, result)
        return made[key]

    return optimize


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`figures(run, difference=0.0)`: one line of the table that ends the test run."""

    def record(run: Optimized, difference: float) -> None:
        for name, one in run.result.files.items():
            model = one.report.model
            kept = run.attentions()[Path(name).name]
            row = (run.name, run.chain, name, model.nodes_before, model.nodes_after, kept, one.report.verdict)
            record_property(FIGURES, (*row, f"{one.report.seconds:.1f}", f"{difference:.1e}"))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the figures; xdist's workers send them with their reports."""
    reports = terminalreporter.stats.get("passed", [])
    rows = [value for report in reports for key, value in report.user_properties if key == FIGURES]
    if rows:
        terminalreporter.section("exports before and after")
        head = ("export", "level", "file", "nodes", "nodes after", "attention", "verdict", "seconds", "largest difference")
        terminalreporter.write_line(" | ".join(head))
        for row in sorted(rows):
            terminalreporter.write_line(" | ".join(map(str, row)))
