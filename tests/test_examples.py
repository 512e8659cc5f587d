"""The documents' code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import rewright

ROOT = Path(__file__).parent.parent
BERT = ROOT / "tests" / "zoo" / "bert.ts17.sdpa.onnx"
NEEDS_TRANSFORMERS = {"quantized_accuracy.py", "text_classification.py"}
"""Run by tests/hf."""


@pytest.mark.parametrize("example", sorted({path.name for path in (ROOT / "examples").glob("*.py")} - NEEDS_TRANSFORMERS))
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / example), str(BERT), str(tmp_path / "out.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert rewright.verify(BERT, tmp_path / "out.onnx").equal


@pytest.mark.parametrize("document", ["README.md", "docs/writing-passes.md"])
def test_the_documents_pattern_passes_fire(document: str) -> None:
    """Each pattern pass that a document shows is compiled from the document and run."""
    text = (ROOT / document).read_text()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def rewrite" in block]
    assert blocks
    for block in blocks:
        namespace: dict[str, object] = {}
        exec(compile(block, document, "exec"), namespace)
        (made,) = [
            value
            for value in namespace.values()
            if isinstance(value, type) and issubclass(value, rewright.PatternPass) and value is not rewright.PatternPass
        ]
        chain = rewright.Chain(["layer-norm, gelu" if made.name == "my-bias-gelu" else "layer-norm", made()])
        record = chain.run(BERT).report.passes[-1]
        assert (record.name, record.status, len(record.sites)) == (made.name, "applied", 2)


def test_the_readme_says_what_the_makefile_does() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for command in re.findall(r"^\$ make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command


def test_the_readme_lists_every_pass() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in rewright.Catalog.load(autoload=False):
        assert f"| `{name}` |" in readme, name
