"""Normalisations, activations and transposes that ONNX Runtime gets wrong are undone site by site, and the right ones stay."""

from pathlib import Path

import onnx
import pytest
import wrong_rewrites
from onnxruntime.transformers.fusion_skiplayernorm import FusionSkipLayerNormalization
from ort_directly import by_class
from wrong_rewrite_tests import rewrite_tests

import rewright

MODERNBERT = Path(__file__).parents[1] / "zoo" / "modernbert.dyn20.eager.onnx"

(
    test_onnxruntime_alone_gets_it_wrong,
    test_the_wrong_one_is_undone_and_the_right_one_beside_it_stays,
) = rewrite_tests(wrong_rewrites.NORMALIZATIONS | wrong_rewrites.ACTIVATIONS | wrong_rewrites.TRANSPOSES)


def test_an_export_that_makes_onnxruntime_raise() -> None:
    """ModernBERT's normalisations have no bias."""
    with pytest.raises(IndexError):
        by_class(FusionSkipLayerNormalization)(onnx.load(MODERNBERT))
    result = rewright.optimize(MODERNBERT, chain="skip-layer-norm{backend=ort}", verify="model")
    assert result.report.verdict in ("passed", "passed-with-rollbacks")
    assert result.report.counts()["skip-layer-norm"] > 0
