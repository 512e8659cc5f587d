"""Calibration of whole models: varying shapes, any number of samples, every spelling of data, bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

from rewright.calibration import calibrate
from rewright.model.errors import UsageError
from rewright.quant.calibration import Ranges
from rewright.quant.calibration.thresholds import METHODS, Method
from rewright.quant.quantize_static import QuantizeStatic

Array = np.ndarray[Any, Any]


def model() -> ModelProto:
    """Two products with a Relu between; the sequence length is free."""
    random = np.random.default_rng(0)
    weights = {"v": random.standard_normal((8, 16)), "w": random.standard_normal((16, 4))}
    made = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[B, S, 8] x) => (float[B, S, 4] y) {
        [first] h = MatMul(x, v)  r = Relu(h)  [second] y = MatMul(r, w) }""")
    made.graph.initializer.extend(numpy_helper.from_array(each.astype(np.float32), name) for name, each in weights.items())
    return made


def samples(count: int = 9, seed: int = 1) -> list[dict[str, Array]]:
    random = np.random.default_rng(seed)
    lengths = [3, 7, 5]
    return [
        {"x": random.standard_normal((1 + place % 2, lengths[place % 3], 8)).astype(np.float32) * (1 + place % 4)}
        for place in range(count)
    ]


def values_of(sets: list[dict[str, Array]]) -> dict[str, Array]:
    """All numbers of the two values, from ONNX Runtime directly."""
    shown = model()
    shown.graph.output.append(helper.make_tensor_value_info("r", 1, None))
    session = ort.InferenceSession(shown.SerializeToString())
    found = [session.run(["r"], each)[0].reshape(-1) for each in sets]
    return {"x": np.concatenate([each["x"].reshape(-1) for each in sets]), "r": np.concatenate(found)}


@pytest.mark.parametrize("method", METHODS)
def test_lengths_vary_with_every_method(method: Method) -> None:
    ranges = calibrate(model(), samples(), method)
    assert (ranges.method, ranges.samples, set(ranges.values)) == (method, 9, {"x", "r"})
    for name, everything in values_of(samples()).items():
        low, high = ranges.values[name]
        assert everything.min() - 1e-5 <= low < high <= everything.max() + 1e-5


def test_extremes_and_percentiles_are_those_of_all_samples() -> None:
    everything = values_of(samples(30))
    extremes = calibrate(model(), samples(30))
    middle = calibrate(model(), samples(30), "percentile", step=QuantizeStatic(percentile=90.0))
    for name, numbers in everything.items():
        assert extremes.values[name] == pytest.approx((numbers.min(), numbers.max()), rel=1e-5)
        wanted = np.percentile(numbers, [5.0, 95.0], method="inverted_cdf")
        assert middle.values[name] == pytest.approx(wanted, abs=0.02)


def test_values_that_do_not_fit_together_are_measured_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    together = calibrate(model(), samples(), "entropy")
    monkeypatch.setattr("rewright.quant.activations._BYTES_AT_ONCE", 600)
    seen: list[tuple[int, int]] = []
    apart = calibrate(model(), samples(), "entropy", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(9, 18), (18, 18)]
    assert apart == together


def test_calibration_goes_on_over_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = calibrate(model(), samples(), "percentile")
    monkeypatch.setattr("rewright.quant.calibration.measuring._SECONDS_A_CALL", 0.0)
    seen: list[tuple[int, int]] = []
    assert calibrate(model(), samples(), "percentile", progress=lambda *part: seen.append(part)) == at_once
    assert seen == [(number, 9) for number in range(1, 10)]


def write(folder: Path, sets: list[dict[str, Array]]) -> Path:
    folder.mkdir()
    for number, each in enumerate(sets):
        np.savez(folder / f"{number}.npz", **each)  # type: ignore[arg-type]
    return folder


def test_data_is_a_folder_a_file_a_mapping_or_any_iterable(tmp_path: Path) -> None:
    wanted = calibrate(model(), samples())
    folder = write(tmp_path / "data", samples())

    def generated() -> Iterator[dict[str, Any]]:
        for each in samples():
            yield {"x": each["x"].tolist(), "label": 3}  # as a data set has it

    assert calibrate(model(), folder) == wanted
    assert calibrate(model(), str(folder)) == wanted
    with pytest.warns(UserWarning, match="'label', which no input of the model takes"):
        assert calibrate(model(), generated()) == wanted
    assert calibrate(model(), samples()[0]) == calibrate(model(), folder / "0.npz")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "holds no sample"),
        ([3], "sample 0 .* type int"),
        (3, "type int holds no samples"),
        ("/no/such/folder", "neither an .npz file nor a folder"),
        ([{"y": np.zeros(3, np.float32)}], "lacks the input 'x'"),
        ([{"x": np.zeros((1, 2, 7), np.float32)}], "does not run on the calibration data"),
    ],
)
def test_data_that_does_not_fit_is_one_clear_error(data: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        calibrate(model(), data)
    assert caught.value.hint


def test_a_method_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(UsageError, match="no calibration method 'max'"):
        calibrate(model(), samples(), "max")  # type: ignore[arg-type]


def test_ranges_are_saved_and_read(tmp_path: Path) -> None:
    ranges = calibrate(model(), samples())
    ranges.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == ranges


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no ranges"),
        ('{"format": "rewright-ranges", "version": 9, "values": {}}', "version 9"),
        ('{"format": "rewright-ranges", "version": 1, "values": {"x": [1, 0]}}', "range of 'x'"),
        ('{"format": "rewright-ranges", "version": 1, "values": {"x": [0, NaN]}}', "range of 'x'"),
    ],
)
def test_a_file_that_holds_something_else_is_an_error(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        Ranges.load(tmp_path / "ranges.json")


MEASURE = """
import resource, sys, numpy as np
from pathlib import Path
from onnx import helper, numpy_helper, TensorProto
nodes = [helper.make_node("MatMul", [f"v{n}", "w"], [f"v{n + 1}"]) for n in range(24)]
graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("v0", 1, ["B", "S", 64])],
    [helper.make_tensor_value_info("v24", 1, None)], [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
random = np.random.default_rng(0)
def samples(count, length):
    for place in range(count):
        yield {"v0": random.standard_normal((1, length + place % 3, 64)).astype(np.float32)}
from rewright.calibration import calibrate
count = int(sys.argv[1])
ranges = calibrate(model, samples(count, 700), "entropy")
assert ranges.samples == count and len(ranges.values) == 24
from rewright.model.memory import rss_peak
print(rss_peak() // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    """60 sets have 258 MB of numbers in their values, ten have 43 MB."""
    peaks = []
    for count in (10, 60):
        run = subprocess.run([sys.executable, "-c", MEASURE, str(count)], capture_output=True, text=True, check=True)
        peaks.append([int(peak) / 1024 for peak in run.stdout.split()])
    for few, many in zip(*peaks, strict=True):
        assert many < few + 50, peaks
