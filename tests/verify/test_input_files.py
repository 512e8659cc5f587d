"""Inputs that the user brings."""

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from rewright.model.errors import UsageError
from rewright.verify.input_files import load_input_sets


@pytest.fixture(scope="module")
def model(parse):
    return parse("g (int64[B, S] input_ids, float[B, 4] x) => (float[B, 4] y) { y = Relu(x) }")


def arrays(batch=2):
    return {"input_ids": np.ones((batch, 3), np.int64), "x": np.ones((batch, 4), np.float32)}


def test_a_dict_and_a_list_of_dicts(model):
    (only,) = load_input_sets(model, arrays())
    assert sorted(only.arrays) == ["input_ids", "x"]
    assert [s.arrays["x"].shape[0] for s in load_input_sets(model, [arrays(2), arrays(3)])] == [2, 3]


def test_an_npz_file_and_a_folder_of_them(model, tmp_path):
    np.savez(tmp_path / "b.npz", **arrays(3), __expected__=np.ones(1))
    np.savez(tmp_path / "a.npz", **arrays(2))
    (one,) = load_input_sets(model, tmp_path / "b.npz")
    assert (one.name, one.arrays["x"].shape) == ("b", (3, 4))
    assert [s.name for s in load_input_sets(model, tmp_path)] == ["a", "b"]


def test_test_data_set_folders(model, tmp_path):
    for index in range(2):
        folder = tmp_path / f"test_data_set_{index}"
        folder.mkdir()
        ids = numpy_helper.from_array(np.ones((2 + index, 3), np.int64), "")
        (folder / "input_0.pb").write_bytes(ids.SerializeToString())
        x = numpy_helper.from_array(np.ones((2 + index, 4), np.float32), "x")
        (folder / "input_1.pb").write_bytes(x.SerializeToString())
        (folder / "output_0.pb").write_bytes(x.SerializeToString())
    first, second = load_input_sets(model, tmp_path)
    assert (first.name, first.arrays["input_ids"].shape) == ("test_data_set_0", (2, 3))
    assert second.arrays["x"].shape == (3, 4)
    assert load_input_sets(model, tmp_path / "test_data_set_1")[0].arrays["x"].shape == (3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(input_idz=a.pop("input_ids")), r"array 'input_idz'.*Maybe you meant 'input_ids'"),
        (lambda a: a.pop("x"), "lacks 'x'"),
        (lambda a: a.update(x=a["x"].astype(np.float64)), r"dtype float64, the model takes float32.*astype\('float32'\)"),
        (lambda a: a.update(x=np.ones((2, 5), np.float32)), r"shape \[2, 5\], the model takes \['B', 4\]"),
        (lambda a: a.update(x=np.ones(4, np.float32)), r"shape \[4\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(model, change, message):
    given = arrays()
    change(given)
    with pytest.raises(UsageError, match=message):
        load_input_sets(model, given)


def test_nothing_is_unpickled(model, tmp_path):
    np.savez(tmp_path / "evil.npz", input_ids=np.array([{"a": 1}], dtype=object), x=np.ones((2, 4), np.float32))
    with pytest.raises(UsageError, match="cannot be read"):
        load_input_sets(model, tmp_path / "evil.npz")


def test_a_tensor_in_another_file_is_refused(model, tmp_path):
    tensor = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[2, 4], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    (tmp_path / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(UsageError, match="keeps its data in another file"):
        load_input_sets(model, tmp_path)


def test_paths_that_hold_nothing(model, tmp_path):
    with pytest.raises(UsageError, match=r"is not an \.npz file or a folder"):
        load_input_sets(model, tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no \.npz file"):
        load_input_sets(model, tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        load_input_sets(model, tmp_path / "broken.npz")
    with pytest.raises(UsageError, match="no input sets"):
        load_input_sets(model, [])


def test_an_input_with_a_default_may_be_given(parse):
    model = parse("g (float[n, 2] x, float[2] w) => (float[n, 2] y) <float[2] w = {1.0, 2.0}> { y = Mul(x, w) }")
    x, w = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
    given, left = load_input_sets(model, [{"x": x, "w": w}, {"x": x}])
    assert set(given.arrays) == {"x", "w"}
    assert set(left.arrays) == {"x"}
