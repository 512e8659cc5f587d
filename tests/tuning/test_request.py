"""What is asked of a quantization, as a chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewright.api import Chain
from rewright.model.errors import UsageError
from rewright.quant.presets import PASSES
from rewright.registry.catalog import Catalog, default_catalog
from rewright.tuning.request import QuantizationRequest


def test_the_chain_is_the_level_and_the_pass_with_the_options_of_the_preset() -> None:
    request = QuantizationRequest(preset="avx2")
    assert request.text() == "O2, quantize-dynamic{weight=uint8}"
    assert request.chain() == Chain(request.text())
    assert QuantizationRequest(preset="arm64", level="0").text() == "O0, quantize-dynamic"
    assert [step.name for step in QuantizationRequest(preset="arm64", level="O0").chain().passes] == ["quantize-dynamic"]


def test_options_outrank_the_preset() -> None:
    request = QuantizationRequest(
        preset="avx2", level="gelu", exclude=["/head/*"], operators=["MatMul"], backend="ort", options={"weight": "int8"}
    )
    step = request.step()
    assert (step.weight, step.exclude, step.operators, step.backend) == ("int8", ("/head/*",), ("MatMul",), "ort")
    assert request.chain() == Chain(request.text())
    assert request.text() == "gelu, quantize-dynamic{operators=[MatMul], exclude=[/head/*], backend=ort}"


def test_weight_only_has_bits() -> None:
    step = QuantizationRequest(mode="weight-only", preset="avx2", bits=8).step()
    assert (step.name, step.bits) == ("quantize-weights", 8)
    assert QuantizationRequest(mode="weight-only").step().bits == 4


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"mode": "dynamc"}, "mode is 'dynamc'"),
        ({"mode": "dynamic", "bits": 4}, "4 bits are not what the mode dynamic has"),
        ({"mode": "dynamic", "calibration": Path("data")}, "reads no calibration data"),
        ({"mode": "static"}, "needs data to calibrate on"),
    ],
)
def test_what_does_not_go_together(how: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        QuantizationRequest(**how)  # type: ignore[arg-type]


def test_what_shows_when_the_pass_is_made() -> None:
    with pytest.raises(UsageError, match="tensorrt has no mode 'dynamic'"):
        QuantizationRequest(preset="tensorrt").step()
    with pytest.raises(UsageError, match="has no option 'colour'"):
        QuantizationRequest(options={"colour": 3}).step()
    with pytest.raises(UsageError, match="does not quantize Conv"):
        QuantizationRequest(operators=["Conv"]).step()
    with pytest.raises(UsageError, match="no level 'O9'"):
        QuantizationRequest(level="O9").chain()


def test_a_mode_whose_pass_is_not_there_is_one_clear_error() -> None:
    kept = [default_catalog().get(name) for mode, name in PASSES.items() if mode != "weight-only" and name in default_catalog()]
    with pytest.raises(UsageError, match="no pass 'quantize-weights' for the mode weight-only"):
        QuantizationRequest(mode="weight-only").step(Catalog([]).extended(*kept))
