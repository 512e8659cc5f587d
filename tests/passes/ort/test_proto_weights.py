"""Weights that are read when they are looked up, and put back where they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rewright.model.carrier import Model
from rewright.model.load import load
from rewright.model.weights import is_stub, slice_of
from rewright.passes.ort.fusion_model import model_class, transformers_module
from rewright.passes.ort.proto_weights import ProtoWeights, TooManyWeights

LARGE = np.arange(600, dtype=np.float32).reshape(20, 30)


@pytest.fixture
def skeleton(tmp_path: Path) -> bytes:
    """Two large weights, one of them twice, and a small one, in a file of their own."""
    arrays = {"a": LARGE, "b": LARGE + 1, "same": LARGE, "small": LARGE[0, :2]}
    graph = helper.make_graph(
        [helper.make_node("Sum", ["a", "b", "same"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [20, 30])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path = tmp_path / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return load(path).session_bytes()


@pytest.fixture
def weights(tmp_path: Path) -> ProtoWeights:
    folder = tmp_path / "work"
    folder.mkdir()
    return ProtoWeights(Model.SESSION_FOLDER, str(folder), most_bytes=3 * LARGE.nbytes)


def initializers(proto: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def test_a_weight_is_read_when_it_is_looked_up(skeleton: bytes, weights: ProtoWeights) -> None:
    proto = weights.parse(skeleton)
    model = model_class(transformers_module("onnx_model").OnnxModel, weights)(proto)
    np.testing.assert_array_equal(numpy_helper.to_array(model.get_initializer("b")), LARGE + 1)
    np.testing.assert_array_equal(model.get_constant_value("small"), [0, 1])
    assert {name: is_stub(tensor) for name, tensor in initializers(proto).items()} == {
        "a": True,
        "b": False,
        "same": True,
        "small": False,
    }


def test_what_was_looked_at_only_is_a_stub_again(skeleton: bytes, weights: ProtoWeights, tmp_path: Path) -> None:
    proto = weights.parse(skeleton)
    weights.fill_all(proto)
    assert not any(map(is_stub, proto.graph.initializer))
    assert weights.skeleton(proto) == ModelProto.FromString(skeleton).SerializeToString(deterministic=True)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_changed_and_a_new_weight_go_to_a_file(skeleton: bytes, weights: ProtoWeights, tmp_path: Path) -> None:
    proto = weights.parse(skeleton)
    weights.fill_all(proto)
    initializers(proto)["b"].raw_data = (LARGE * 2).tobytes()
    proto.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [600], LARGE.reshape(-1).tolist()))
    changed = initializers(ModelProto.FromString(weights.skeleton(proto)))
    before = initializers(ModelProto.FromString(skeleton))
    assert changed["a"] == before["a"]
    assert [slice_of(changed[name]).path.parent for name in ("b", "typed")] == [tmp_path / "work"] * 2
    assert not is_stub(changed["small"])


def test_the_written_model_stands_on_its_own(skeleton: bytes, weights: ProtoWeights, tmp_path: Path) -> None:
    proto = weights.parse(skeleton)
    weights.fill_all(proto)
    initializers(proto)["b"].raw_data = (LARGE * 2).tobytes()
    path = weights.write(weights.skeleton(proto))
    (tmp_path / "source.onnx").unlink()
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(arrays["a"], LARGE)
    np.testing.assert_array_equal(arrays["b"], LARGE * 2)
    np.testing.assert_array_equal(arrays["same"], LARGE)
    assert {file.name for file in path.parent.iterdir()} == {"optimized.onnx", "optimized.onnx.data"}


def test_more_than_the_limit_is_refused_until_the_next_start(skeleton: bytes, weights: ProtoWeights) -> None:
    weights.fill_all(weights.parse(skeleton))
    proto = weights.parse(skeleton)
    weights.fill_all(proto)
    with pytest.raises(TooManyWeights, match=f"more than {3 * LARGE.nbytes} bytes"):
        weights.fill_all(ModelProto.FromString(skeleton))


def test_a_file_that_has_been_cut_short_is_told_of(skeleton: bytes, weights: ProtoWeights, tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    source.write_bytes(source.read_bytes()[:500])
    with pytest.raises(EOFError, match=r"source\.onnx has become shorter"):
        weights.fill_all(weights.parse(skeleton))
