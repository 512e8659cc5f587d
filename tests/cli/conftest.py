"""What the tests of commands share."""

from __future__ import annotations

import pytest

ALWAYS_WRONG = """
from rewright import PatternPass

class Wrong(PatternPass):
    \"\"\"Softmax(x) -> Sigmoid(x), wrong on purpose.\"\"\"

    name = "wrong-softmax"

    def pattern(self, op, x):
        return op.Softmax(x)

    def rewrite(self, op, x):
        return op.Sigmoid(x)
"""


@pytest.fixture
def wrong(tmp_path, monkeypatch) -> str:
    """A plugin module whose pass breaks the model, by the name that --plugin takes."""
    (tmp_path / "wrong_passes.py").write_text(ALWAYS_WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "wrong_passes", raising=False)
    return "wrong_passes:Wrong"
