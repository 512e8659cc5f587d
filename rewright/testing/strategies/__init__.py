"""Hypothesis strategies for typed ONNX graphs.

    @given(strategies.models(parts=["normalizations", "linear"]))
    def test_my_pass(model): ...

`models` gives well-typed models, `feeds` inputs for one, `cases` both. `PARTS` and `ROOMS` name what models are made of.
"""

from rewright.testing.strategies.assembly import OPSETS, PARTS, ROOMS, DType, cases, feeds, models

__all__ = ["OPSETS", "PARTS", "ROOMS", "DType", "cases", "feeds", "models"]
