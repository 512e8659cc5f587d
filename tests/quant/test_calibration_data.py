"""Calibration data as people have it: rows of a data set, tensors, other integers than the model takes, columns too many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

import rewright
from rewright.calibration import calibrate
from rewright.model.errors import UsageError

Array = np.ndarray[Any, Any]


def model() -> ModelProto:
    """A table of embeddings, a mask that weighs them, and a product."""
    random = np.random.default_rng(0)
    made = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[B, S] input_ids, int64[B, S] attention_mask) => (float[B, S, 32] y) {
        e = Gather(table, input_ids)  m = Cast<to = 1>(attention_mask)  last = Constant<value_ints = [-1]>()
        u = Unsqueeze(m, last)  h = Mul(e, u)  [product] y = MatMul(h, w) }""")
    weights = {"table": random.standard_normal((50, 64)), "w": random.standard_normal((64, 32))}
    made.graph.initializer.extend(numpy_helper.from_array(each.astype(np.float32), name) for name, each in weights.items())
    return made


def rows(count: int = 12) -> list[dict[str, Any]]:
    """As a tokenized data set has them: lists without a batch, of any length, and columns that the model does not take."""
    random = np.random.default_rng(3)
    found = []
    for number in range(count):
        length = 3 + number % 4
        ids = random.integers(0, 50, length).tolist()
        found.append({"text": "some words", "label": number % 2, "input_ids": ids, "attention_mask": [1] * length})
    return found


class Dataset:
    """What behaves like a data set of Hugging Face: rows by number and by iteration, columns by name."""

    column_names = ("text", "label", "input_ids", "attention_mask")

    def __init__(self, content: list[dict[str, Any]]) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, key: int | str) -> Any:
        return [row[key] for row in self.content] if isinstance(key, str) else self.content[key]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.content


class Tensor:
    """What behaves like a tensor of torch: numpy gets nothing of it before detach and cpu."""

    def __init__(self, array: Array) -> None:
        self.array, self.is_here = array, False

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        moved = Tensor(self.array)
        moved.is_here = True
        return moved

    def numpy(self) -> Array:
        assert self.is_here
        return self.array


def batched(dtype: type = np.int64) -> list[dict[str, Array]]:
    return [{name: np.asarray([row[name]], dtype) for name in ("input_ids", "attention_mask")} for row in rows()]


WANTED = calibrate(model(), batched())


def test_rows_of_a_data_set_become_batches_of_one() -> None:
    with pytest.warns(UserWarning, match="'text', 'label', which no input of the model takes"):
        assert calibrate(model(), Dataset(rows())) == WANTED
    assert WANTED.samples == 12
    assert set(WANTED.values) == {"h"}


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_other_integers_are_converted(dtype: type) -> None:
    assert calibrate(model(), batched(dtype)) == WANTED


def test_tensors_on_any_device_are_taken() -> None:
    sets = [{name: Tensor(array) for name, array in each.items()} for each in batched()]
    assert calibrate(model(), iter(sets)) == WANTED


@pytest.mark.parametrize(
    ("sample", "said", "hint"),
    [
        ({"input_ids": [1, 2], "labels": 3}, "sample 0 .* lacks the input 'attention_mask'", "holds input_ids, labels"),
        ({"input_ids": [[1], [2, 3]], "attention_mask": [1]}, "'input_ids' in sample 0 .* no array of int64", "one length"),
        ({"input_ids": ["a"], "attention_mask": [1]}, "'input_ids' in sample 0 .* no array of int64", "one array"),
        ({"input_ids": np.asarray([2**63], np.uint64), "attention_mask": [1]}, "numbers beyond int64", "one array"),
        ({"input_ids": [70], "attention_mask": [1]}, "does not run on the calibration data", "input sets"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(sample: dict[str, Any], said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        calibrate(model(), [sample])
    assert hint in caught.value.hint


def test_quantizing_takes_a_data_set_and_says_what_it_left_out() -> None:
    result = rewright.quantize(model(), mode="static", level="O0", calibration=Dataset(rows()), inputs=batched())
    assert (result.report.verdict, result.report.passes[-1].status) == ("passed", "applied")
    assert any("'text', 'label'" in warning and "left out" in warning for warning in result.report.warnings)
    assert "1 ranges by minmax on 12 input sets" in result.report.passes[-1].notes
    scale = next(numpy_helper.to_array(each) for each in result.model.proto.graph.initializer if each.name == "h_scale")
    low, high = WANTED.values["h"]
    assert scale == pytest.approx((max(high, 0) - min(low, 0)) / 255)


def test_weights_by_gptq_take_a_data_set_too() -> None:
    result = rewright.quantize(
        model(),
        mode="weight-only",
        level="O0",
        bits=8,
        options={"algorithm": "gptq", "block_size": 16},
        calibration=Dataset(rows()),
        inputs=batched(),
    )
    assert result.report.passes[-1].status == "applied"


def test_a_data_set_that_lacks_an_input_ends_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="lacks the input 'attention_mask'"):
        rewright.quantize(model(), mode="static", calibration=Dataset([{"input_ids": [1]}]))
