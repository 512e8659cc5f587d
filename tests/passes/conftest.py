"""Fixtures of the tests of passes; their functions are in pass_harness.py, which pytest's path setup makes importable."""

from pathlib import Path

import pytest
from pass_harness import ZOO


@pytest.fixture(params=sorted(path.name for path in ZOO.glob("*.onnx")))
def zoo_model(request: pytest.FixtureRequest) -> Path:
    """Each model of the test zoo."""
    return ZOO / request.param
