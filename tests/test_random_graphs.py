"""Random graphs through the levels: nothing is rolled back, nothing changes twice, what was given stays as it was."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from onnx import ModelProto

from rewright.registry.catalog import default_catalog
from rewright.testing.fuzz.checks import Examiner
from rewright.testing.strategies import models
from rewright.verify.process import SessionWorker

# The fuzzer makes failures small, by way of the model, which is much faster.
SOME = settings(max_examples=20, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
BLOCKS = ["normalizations", "activations", "linear", "residual-norm", "nothing", "heads", "transposes", "if", "unary", "binary"]
KINDS = {
    "what exporters write": BLOCKS,
    "anything": None,
    "shapes": ["shapes", "layout", "nesting"],
    "attention": ["attention", "rotary", "embeddings", "shapes"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_level_on_random_graphs(kind: str) -> None:
    """A crash, a rollback, a second change and a changed input are findings; see ``rewright.testing.fuzz``."""
    with SessionWorker() as worker:
        examiner = Examiner(default_catalog(), worker=worker)

        @SOME
        @given(models(parts=KINDS[kind], max_parts=9))
        def check(model: ModelProto) -> None:
            assert examiner.judge(model, "O3", is_idempotent=True) is None

        check()
    assert examiner.tally.rewrites
    assert examiner.tally.ends["passed"] > 10
