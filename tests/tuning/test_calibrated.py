"""Ranges that are found once, for all trials of a static pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

from rewright.model.load import load
from rewright.quant.calibration.ranges import Ranges
from rewright.tuning.calibrated import calibrated_once
from rewright.tuning.quantize import quantize
from rewright.tuning.request import QuantizationRequest
from rewright.tuning.sensitivity import sensitivity

FEEDS = {"x": np.random.default_rng(1).standard_normal((16, 32), dtype=np.float32)}


@pytest.fixture
def model() -> ModelProto:
    made = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 32] x) => (float[N, 32] y) {
        [first] a = MatMul(x, v)
        b = Tanh(a)
        [second] y = MatMul(b, w)
    }""")
    for name in ("v", "w"):
        weight = np.random.default_rng(2).standard_normal((32, 32), dtype=np.float32) / 4
        made.graph.initializer.append(numpy_helper.from_array(weight, name))
    return made


@pytest.fixture
def request_(tmp_path: Path) -> QuantizationRequest:
    np.savez(tmp_path / "data.npz", **FEEDS)
    return QuantizationRequest(mode="static", level="O0", preset="arm64", calibration=tmp_path / "data.npz")


def test_the_pass_gets_a_file_of_ranges(model, request_) -> None:
    with calibrated_once(load(model), request_.step(), "cpu") as ready:
        assert ready.calibration is None
        found = Ranges.load(ready.ranges).values
        place = Path(ready.ranges)
    assert not place.exists()
    assert found["x"] == pytest.approx((FEEDS["x"].min(), FEEDS["x"].max()))
    assert -1 <= found["b"][0] < found["b"][1] <= 1


def test_any_other_pass_stays_as_it_is(model) -> None:
    step = QuantizationRequest(level="O0").step()
    with calibrated_once(load(model), step, "cpu") as ready:
        assert ready is step


def test_nodes_are_ranked_and_excluded_by_these_ranges(model, request_) -> None:
    found = sensitivity(model, request=request_, inputs=FEEDS, jobs=1)
    assert {entry.node for entry in found.nodes} == {"first", "second"}
    assert all(20 < entry.sqnr_db < 60 for entry in found.nodes)
    strict = quantize(
        model,
        mode="static",
        level="O0",
        preset="arm64",
        calibration=request_.calibration,
        inputs=FEEDS,
        auto_exclude=True,
        jobs=1,
        budget=f"sqnr={min(entry.sqnr_db for entry in found.nodes) + 0.1}",
    )
    assert found.nodes[0].node in strict.kept_in_float
    assert strict.report.verdict == "passed"
