"""Loading: what is read, what is refused, and that reads stay inside the model's folder."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rewright.model.errors import ModelError, UsageError
from rewright.model.load import load
from rewright.model.weights import STUB_THRESHOLD, is_stub

ZOO = sorted((Path(__file__).parent.parent / "zoo").glob("*.onnx"))
LARGE = np.arange(1000, dtype=np.float32)


def model(*initializers: TensorProto, body: str = "y = Neg(x)") -> ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> g (float[3] x) => (float[3] y) {{ {body} }}')
    proto.graph.initializer.extend(initializers)
    return proto


def large(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(LARGE, name)


def external(location: str, data: bytes | None, folder: Path, **entries: str) -> Path:
    """A model whose initializer ``w`` of 1000 floats lies in ``location``."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1000], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "4000", **entries}.items():
        if value:
            tensor.external_data.add(key=key, value=value)
    if data is not None:
        (folder / location).parent.mkdir(exist_ok=True)
        (folder / location).write_bytes(data)
    path = folder / "m.onnx"
    path.write_bytes(model(tensor).SerializeToString())
    return path


def refusal(source: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(source)  # type: ignore[arg-type]
    assert caught.value.hint, caught.value.message
    assert caught.value.exit_status == 2
    return caught.value


# what is read


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.name)
def test_the_skeleton_and_its_weights_are_the_file(path: Path) -> None:
    whole = onnx.load(path)
    loaded, from_proto = load(path), load(whole)
    for read in (loaded, from_proto):
        assert not any(len(tensor.raw_data) >= STUB_THRESHOLD for tensor in read.proto.graph.initializer)
        for tensor, wanted in zip(read.proto.graph.initializer, whole.graph.initializer, strict=True):
            np.testing.assert_array_equal(read.tensor(tensor), numpy_helper.to_array(wanted))
    assert loaded.op_counts() == from_proto.op_counts()
    assert loaded.nbytes() >= sum(len(tensor.raw_data) for tensor in whole.graph.initializer)


def test_a_loaded_model_is_returned_as_it_is() -> None:
    loaded = load(model())
    assert load(loaded) is loaded


def test_a_proto_is_never_modified() -> None:
    proto = model(large(), body="y = Neg(x)")
    before = proto.SerializeToString(deterministic=True)
    loaded = load(proto)
    loaded.proto.graph.node[0].op_type = "Abs"
    assert proto.SerializeToString(deterministic=True) == before


def test_initializers_below_the_threshold_stay_in_the_skeleton() -> None:
    small = numpy_helper.from_array(np.ones(STUB_THRESHOLD // 4 - 1, np.float32), "small")
    exact = numpy_helper.from_array(np.ones(STUB_THRESHOLD // 4, np.float32), "exact")
    assert [is_stub(tensor) for tensor in load(model(small, exact)).proto.graph.initializer] == [False, True]


def test_initializers_of_bodies_and_functions_are_kept_out_of_the_skeleton_too(tmp_path: Path) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "b", [], [onnx.ValueInfoProto(name="o")], [large()])
    node = helper.make_node("If", ["c"], ["o"], then_branch=body, else_branch=body)
    proto = model(numpy_helper.from_array(np.array(True), "c"))
    proto.graph.node.append(node)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    for loaded in (load(path), load(proto)):
        bodies = [attribute.g for attribute in loaded.proto.graph.node[1].attribute]
        assert all(is_stub(body.initializer[0]) for body in bodies)
        np.testing.assert_array_equal(loaded.tensor(bodies[1].initializer[0]), LARGE)


def test_models_before_ir_4_list_their_initializers_among_the_inputs(tmp_path: Path) -> None:
    proto = model(large())
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1000]))
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = load(tmp_path / "m.onnx")
    assert [value.name for value in loaded.proto.graph.input] == ["x", "w"]


# external data


def test_external_data_is_read_with_offset_and_without_length(tmp_path: Path) -> None:
    data = b"\0" * 64 + LARGE.tobytes() + b"\0" * 100
    loaded = load(external("w.bin", data, tmp_path, offset="64", length=""))
    np.testing.assert_array_equal(loaded.tensor(loaded.proto.graph.initializer[0]), LARGE)
    assert loaded.has_external_data


def test_external_data_may_lie_in_a_folder_below(tmp_path: Path) -> None:
    loaded = load(external("weights/w.bin", LARGE.tobytes(), tmp_path))
    np.testing.assert_array_equal(loaded.tensor(loaded.proto.graph.initializer[0]), LARGE)


def test_two_tensors_may_share_their_bytes(tmp_path: Path) -> None:
    path = external("w.bin", LARGE.tobytes(), tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
    proto.graph.initializer[1].name = "again"
    path.write_bytes(proto.SerializeToString())
    loaded = load(path)
    assert loaded.nbytes() < 2 * LARGE.nbytes
    np.testing.assert_array_equal(loaded.tensor(loaded.proto.graph.initializer[1]), LARGE)


def test_a_constant_node_may_have_external_data(tmp_path: Path) -> None:
    proto = onnx.load(external("w.bin", LARGE.tobytes(), tmp_path), load_external_data=False)
    tensor = proto.graph.initializer.pop()
    proto.graph.node.append(helper.make_node("Constant", [], ["w"], value=tensor))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    loaded = load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(loaded.tensor(loaded.proto.graph.node[1].attribute[0].t), LARGE)


def test_a_proto_with_external_data_needs_its_folder(tmp_path: Path) -> None:
    proto = onnx.load(external("w.bin", LARGE.tobytes(), tmp_path), load_external_data=False)
    assert "folder=" in refusal(proto).hint
    loaded = load(proto, folder=tmp_path)
    np.testing.assert_array_equal(loaded.tensor(loaded.proto.graph.initializer[0]), LARGE)


OUTSIDE: dict[str, Callable[[Path], str]] = {
    "absolute": lambda folder: str(folder.parent / "w.bin"),
    "windows": lambda folder: "C:\\w.bin",
    "above": lambda folder: "../w.bin",
    "up and down": lambda folder: "a/../../w.bin",
}


@pytest.mark.parametrize("location", OUTSIDE.values(), ids=OUTSIDE)
def test_external_data_outside_the_folder_is_refused(location: Callable[[Path], str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(LARGE.tobytes())
    assert "outside the model's folder" in refusal(external(location(folder), None, folder)).message


@pytest.mark.parametrize("through", ["file", "folder"])
def test_external_data_behind_a_symbolic_link_is_refused(through: str, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "w.bin").write_bytes(LARGE.tobytes())
    if through == "file":
        (folder / "w.bin").symlink_to(elsewhere / "w.bin")
    else:
        (folder / "link").symlink_to(elsewhere)
    location = "w.bin" if through == "file" else "link/w.bin"
    assert "symbolic link" in refusal(external(location, None, folder)).message


def linked(tmp_path: Path, *, data: str, model: str = "blobs/m") -> Path:
    """A model and its data as links, as the cache of the Hugging Face Hub has them; the path of the model."""
    for folder in ("blobs", "others", "snapshot"):
        (tmp_path / folder).mkdir()
    external("w.bin", LARGE.tobytes(), tmp_path / "snapshot").rename(tmp_path / model)
    (tmp_path / "snapshot" / "w.bin").rename(tmp_path / data)
    for name, target in (("m.onnx", model), ("w.bin", data)):
        if not target.startswith("snapshot"):
            (tmp_path / "snapshot" / name).symlink_to(Path("..", target))
    return tmp_path / "snapshot" / "m.onnx"


def test_a_model_and_its_data_may_both_be_links_into_one_folder(tmp_path: Path) -> None:
    loaded = load(linked(tmp_path, data="blobs/w"))
    (tensor,) = loaded.proto.graph.initializer
    np.testing.assert_array_equal(loaded.tensor(tensor), LARGE)
    loaded.save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx.data").is_symlink()
    with pytest.raises(UsageError, match="holds the input model"):
        loaded.save(tmp_path / "blobs" / "w", external_data=False)


@pytest.mark.parametrize(("model", "data"), [("blobs/m", "others/w"), ("snapshot/m.onnx", "blobs/w")])
def test_links_into_other_folders_are_refused(model: str, data: str, tmp_path: Path) -> None:
    assert "symbolic link" in refusal(linked(tmp_path, model=model, data=data)).message


BROKEN_ENTRIES = {
    "no location": ({"location": ""}, "outside the model's folder"),
    "offset is no number": ({"offset": "here"}, "not a number"),
    "length is no number": ({"length": "1e3"}, "not a number"),
    "negative offset": ({"offset": "-4"}, "needs bytes -4"),
    "beyond the end": ({"offset": "4"}, "only 4000"),
    "length too short": ({"length": "3996"}, "its shape needs 4000"),
    "length too long": ({"length": "4000", "offset": "0", "dims": "999"}, "its shape needs 3996"),
}


@pytest.mark.parametrize(("entries", "message"), BROKEN_ENTRIES.values(), ids=BROKEN_ENTRIES)
def test_broken_external_data_entries_are_refused(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    entries = dict(entries)
    dims = entries.pop("dims", "")
    path = external("w.bin", LARGE.tobytes(), tmp_path)
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    for entry in list(tensor.external_data):
        if entry.key in entries:
            entry.value = entries[entry.key]
    if dims:
        tensor.dims[0] = int(dims)
    path.write_bytes(proto.SerializeToString())
    assert message in refusal(path).message


def test_a_missing_a_short_and_an_empty_data_file_are_told_apart(tmp_path: Path) -> None:
    path = external("w.bin", None, tmp_path)
    assert "missing" in refusal(path).message
    (tmp_path / "w.bin").write_bytes(LARGE.tobytes()[:-1])
    assert "only 3999" in refusal(path).message
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").mkdir()
    assert "missing" in refusal(path).message


@pytest.mark.parametrize("kind", [0, 99, TensorProto.STRING])
def test_external_data_of_an_unknown_type_is_refused(kind: int, tmp_path: Path) -> None:
    path = external("w.bin", LARGE.tobytes(), tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].data_type = kind
    path.write_bytes(proto.SerializeToString())
    assert "data type" in refusal(path).message


# bad inputs


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing.onnx").message
    assert "is a directory" in refusal(tmp_path).message
    (tmp_path / "empty.onnx").touch()
    assert "is empty" in refusal(str(tmp_path / "empty.onnx")).message
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "not a regular file" in refusal(tmp_path / "pipe.onnx").message
    assert "does not exist" in refusal("").message or "is a directory" in refusal("").message
    refusal(tmp_path / ("long" * 100))
    refusal("null\0byte")


def test_a_path_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.onnx")
    path.write_bytes(model().SerializeToString())
    assert "UTF-8" in refusal(path).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString())
    path.chmod(0)
    assert "Permission denied" in refusal(path).message


@pytest.mark.parametrize("source", [None, 3, b"bytes", [1]])
def test_what_is_no_model_is_a_usage_error(source: object) -> None:
    with pytest.raises(UsageError, match="cannot load a"):
        load(source)  # type: ignore[arg-type]


def test_an_incomplete_proto_is_refused() -> None:
    assert "no graph" in refusal(ModelProto()).message
    assert "no graph" in refusal(ModelProto(ir_version=10)).message


TEXTS = [
    b"this is text\n",
    b'{"a": 1}',
    b"<html>",
    b"\x80\x04pickle",
    b"PK\x03\x04",
    b"version https://git-lfs.github.com/spec/v1\n",
]


@pytest.mark.parametrize("data", TEXTS)
def test_another_kind_of_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert str(path) in refusal(path).message


def test_a_truncated_file_is_refused_or_loses_only_its_tail(tmp_path: Path) -> None:
    proto = model(large(), numpy_helper.from_array(np.ones(3, np.float32), "small"))
    proto.metadata_props.add(key="tail", value="lost")
    data = proto.SerializeToString()
    path = tmp_path / "m.onnx"
    readable, refusals = [], []
    for size in sorted({*range(1, 120), *range(120, len(data), 53), *range(len(data) - 60, len(data))}):
        path.write_bytes(data[:size])
        try:
            load(path)
        except ModelError as error:
            refusals.append(error)
        else:
            readable.append(size)
    assert all(error.hint for error in refusals)
    # A cut between two fields is a well-formed message; only what stands behind the opset import can be missing then.
    assert len(readable) <= 1
    assert all(size > len(data) - 60 for size in readable)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    source, path = bytearray(ZOO[0].read_bytes()), tmp_path / "m.onnx"
    shutil.copyfile(ZOO[0], path)
    generator = random.Random(0)
    refusals = []
    for trial in range(150):
        data = bytearray(source) if trial % 2 else bytearray(generator.randbytes(generator.randrange(1, 400)))
        for _ in range(generator.randrange(1, 20)):
            data[generator.randrange(min(len(data), 30_000))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            loaded = load(path)
            for tensor in loaded.proto.graph.initializer:
                loaded.tensor(tensor)
        except ModelError as error:
            refusals.append(error)
    assert len(refusals) > 20
    assert all(error.hint for error in refusals)


def test_data_that_does_not_fit_its_shape_is_named(tmp_path: Path) -> None:
    tensor = large()
    tensor.dims[0] = 1001
    path = tmp_path / "m.onnx"
    path.write_bytes(model(tensor).SerializeToString())
    loaded = load(path)
    with pytest.raises(ModelError, match="'w' does not fit") as caught:
        loaded.tensor(loaded.proto.graph.initializer[0])
    assert caught.value.hint


def test_a_file_that_shrinks_after_loading_is_named(tmp_path: Path) -> None:
    path = external("w.bin", LARGE.tobytes(), tmp_path)
    loaded = load(path)
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot read the weight file") as caught:
        loaded.tensor(loaded.proto.graph.initializer[0])
    assert caught.value.hint
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match="shorter") as caught:
        loaded.tensor(loaded.proto.graph.initializer[0])
    assert caught.value.hint


def test_bodies_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    payload = model().graph.SerializeToString()
    from rewright.model import wire

    for _ in range(200):
        attribute = wire.header(wire.ATTRIBUTE_GRAPH, len(payload)) + payload + bytes([20 << 3 & 0x7F | 0x80, 1, 5])
        node = wire.header(wire.NODE_ATTRIBUTE, len(attribute)) + attribute
        payload = wire.header(wire.GRAPH_NODE, len(node)) + node
        payload += b"z" * 0 if len(payload) > STUB_THRESHOLD else wire.header(10, STUB_THRESHOLD) + b" " * STUB_THRESHOLD
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x0a" + wire.header(wire.MODEL_GRAPH, len(payload)) + payload + b"\x42\x02\x10\x12")
    assert "nested" in refusal(path).message
