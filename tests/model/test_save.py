"""Saving: what is written, byte for byte, and that a failure leaves nothing behind and never touches the source."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rewright.model import save as saving
from rewright.model.elements import make_constant, make_node, make_variable
from rewright.model.errors import ModelError, UsageError
from rewright.model.load import load
from rewright.model.save import save
from rewright.model.view import View

ZOO = sorted((Path(__file__).parent.parent / "zoo").glob("*.onnx"))
LARGE = np.arange(3000, dtype=np.float32)


def model(body: str = "y = Neg(x)", count: int = 1) -> ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> g (float[3] x) => (float[3] y) {{ {body} }}')
    proto.graph.initializer.extend(numpy_helper.from_array(LARGE + index, f"w{index}") for index in range(count))
    return proto


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.name)
def test_an_untouched_model_is_saved_byte_for_byte(path: Path, tmp_path: Path) -> None:
    before = digest(path)
    load(path).save(tmp_path / "from_path.onnx")
    load(onnx.load(path)).save(tmp_path / "from_proto.onnx")
    View(load(path)).to_model().save(tmp_path / "from_view.onnx")
    assert {digest(item) for item in tmp_path.iterdir()} == {before}
    assert digest(path) == before


@pytest.mark.parametrize("path", ZOO[:3], ids=lambda path: path.name)
def test_the_data_file_has_the_wanted_suffix(path: Path, tmp_path: Path) -> None:
    save(load(path), tmp_path / "out.onnx", True, data_suffix="_data")
    assert names(tmp_path) == ["out.onnx", "out.onnx_data"]
    onnx.checker.check_model(tmp_path / "out.onnx")
    load(tmp_path / "out.onnx").save(tmp_path / "again.onnx", external_data=False)
    assert digest(tmp_path / "again.onnx") == digest(path)


@pytest.mark.parametrize("path", ZOO[:3], ids=lambda path: path.name)
def test_external_data_goes_out_and_comes_back(path: Path, tmp_path: Path) -> None:
    load(path).save(tmp_path / "out.onnx", external_data=True)
    assert names(tmp_path) == ["out.onnx", "out.onnx.data"]
    onnx.checker.check_model(tmp_path / "out.onnx")
    outside = load(tmp_path / "out.onnx")
    assert outside.has_external_data
    outside.save(tmp_path / "again.onnx", external_data=False)
    assert digest(tmp_path / "again.onnx") == digest(path)
    outside.save(tmp_path / "kept.onnx")  # as its source had it
    assert digest(tmp_path / "kept.onnx.data") == digest(tmp_path / "out.onnx.data")


def test_external_data_is_aligned_and_shared_bytes_are_written_once(tmp_path: Path) -> None:
    loaded = load(model(count=3))
    again = ModelProto()
    again.CopyFrom(loaded.proto)
    again.graph.initializer.add().CopyFrom(again.graph.initializer[1])
    again.graph.initializer[3].name = "shared"
    loaded.with_proto(again).save(tmp_path / "m.onnx", external_data=True)
    written = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in written]
    assert all(int(place["offset"]) % 4096 == 0 for place in places)
    assert places[1] == places[3]
    assert (tmp_path / "m.onnx.data").stat().st_size == int(places[2]["offset"]) + LARGE.nbytes
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(tmp_path / "m.onnx").graph.initializer[3]), LARGE + 1)


def nested() -> ModelProto:
    """Large weights in a body, in a body of a body, in a Constant node and in a function."""
    value = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(LARGE, "k"))
    inner = helper.make_graph([value], "inner", [], [onnx.ValueInfoProto(name="k")], [numpy_helper.from_array(LARGE + 1, "i")])
    choice = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([choice], "outer", [], [onnx.ValueInfoProto(name="o")], [numpy_helper.from_array(LARGE + 2, "o2")])
    proto = model()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=outer, else_branch=outer))
    function = helper.make_function("local", "F", ["c"], ["z"], [choice], [helper.make_opsetid("", 18)])
    proto.functions.append(function)
    proto.graph.node.append(helper.make_node("F", ["c"], ["f"], domain="local"))
    proto.opset_import.add(domain="local", version=1)
    return proto


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("start", ["path", "proto", "external"])
def test_weights_in_bodies_constants_and_functions_survive(start: str, external: bool, tmp_path: Path) -> None:
    proto = nested()
    onnx.save(proto, tmp_path / "in.onnx")
    if start == "external":
        load(tmp_path / "in.onnx").save(tmp_path / "in2.onnx", external_data=True)
    loaded = load({"path": tmp_path / "in.onnx", "proto": proto, "external": tmp_path / "in2.onnx"}[start])
    made = View(loaded).to_model()
    assert made.session_bytes() == loaded.session_bytes()
    made.save(tmp_path / "out.onnx", external_data=external)
    del loaded, made  # and with them the spill file
    load(tmp_path / "out.onnx").save(tmp_path / "inline.onnx", external_data=False)
    assert onnx.load(tmp_path / "inline.onnx") == proto
    assert b"rewright-" not in (tmp_path / "out.onnx").read_bytes()


def test_new_weights_of_a_function_are_written_into_the_file(tmp_path: Path) -> None:
    view = View(load(nested()))
    function = view.functions[0]
    made = make_variable("made")
    function.nodes.append(make_node("Neg", "new", "", [make_constant("large", LARGE + 5)], [made]))
    view.to_model().save(tmp_path / "out.onnx")
    del view
    saved = onnx.load(tmp_path / "out.onnx")
    (constant,) = [node for node in saved.functions[0].node if node.op_type == "Constant"]
    np.testing.assert_array_equal(numpy_helper.to_array(constant.attribute[0].t), LARGE + 5)


def test_models_before_ir_4_stay_valid(tmp_path: Path) -> None:
    proto = model("y = Add(x, w)", count=0)
    proto.ir_version = 3
    proto.opset_import[0].version = 9
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    onnx.save(proto, tmp_path / "in.onnx")
    view = View(load(tmp_path / "in.onnx"))
    assert [tensor.name for tensor in view.graph.inputs] == ["x"]
    view.to_model().save(tmp_path / "same.onnx")
    assert digest(tmp_path / "same.onnx") == digest(tmp_path / "in.onnx")
    add = view.graph.nodes[0]
    add.inputs[1] = make_constant("fresh", np.zeros(3, np.float32))
    view.to_model().save(tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    saved = onnx.load(tmp_path / "out.onnx")
    assert [value.name for value in saved.graph.input] == ["x", "w"]  # the signature stays, so the new value is a node
    assert [node.op_type for node in saved.graph.node] == ["Constant", "Add"]


# what is refused


def test_the_source_and_its_data_are_never_overwritten(tmp_path: Path) -> None:
    load(model()).save(tmp_path / "in.onnx", external_data=True)
    loaded = load(tmp_path / "in.onnx")
    before = {name: digest(tmp_path / name) for name in names(tmp_path)}
    (tmp_path / "link.onnx").symlink_to(tmp_path / "in.onnx")
    for target in (tmp_path / "in.onnx", tmp_path / "link.onnx", tmp_path / "in.onnx.data", str(tmp_path / "." / "in.onnx")):
        with pytest.raises(UsageError, match="never modified") as caught:
            loaded.save(target, external_data=False)
        assert caught.value.hint
    assert {name: digest(tmp_path / name) for name in before} == before


def test_the_data_file_of_the_output_may_not_be_the_source_either(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx.data")
    with pytest.raises(UsageError, match="never modified"):
        load(tmp_path / "m.onnx.data").save(tmp_path / "m.onnx", external_data=True)


@pytest.mark.parametrize("external", [False, True])
def test_an_existing_output_is_replaced_only_by_a_complete_one(external: bool, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    load(model()).save(target, external)
    first = digest(target)
    broken = load(model(count=2))
    Path(broken.files.scratch / "weights.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match="shorter") as caught:
        broken.save(target, external)
    assert caught.value.hint
    assert digest(target) == first
    assert names(tmp_path) == (["out.onnx", "out.onnx.data"] if external else ["out.onnx"])
    load(model(count=2)).save(target, external)
    assert len(load(target).proto.graph.initializer) == 2


def test_an_unwritable_output_is_named(tmp_path: Path) -> None:
    for target in (tmp_path / "nowhere" / "m.onnx", tmp_path / ("n" * 300)):
        with pytest.raises(ModelError, match="cannot write") as caught:
            load(model()).save(target)
        assert caught.value.hint
    for folder in (tmp_path, "/"):
        with pytest.raises(UsageError, match="is a directory"):
            load(model()).save(folder)
    assert names(tmp_path) == []
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe"):
        load(model()).save(tmp_path / "pipe")


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_leaves_nothing_behind(external: bool, tmp_path: Path) -> None:
    onnx.save(model(count=40), tmp_path / "in.onnx")  # 480 kB
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import resource, signal, sys; from rewright.model.load import load; from rewright.model.errors import ModelError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: load(sys.argv[1]).save(sys.argv[2], sys.argv[3] == 'True')\n"
        "except ModelError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in.onnx"), str(out / "m.onnx"), str(external)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write" in found.stdout
    assert "free space" in found.stdout
    assert names(out) == []


def test_a_full_folder_for_temporary_files_is_named(tmp_path: Path) -> None:
    code = (
        "import resource, signal; import numpy as np; from rewright.model.weights import WeightFiles\n"
        "from rewright.model.errors import ModelError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: WeightFiles().spill(np.zeros(100_000))\n"
        "except ModelError as error: print(error)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "temporary files" in found.stdout
    assert "TMPDIR" in found.stdout
    assert names(tmp_path) == []


def test_copying_works_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(18, "cross-device link")

    monkeypatch.setattr(saving.os, "copy_file_range", refuse)
    load(ZOO[0]).save(tmp_path / "m.onnx")
    assert digest(tmp_path / "m.onnx") == digest(ZOO[0])


# more than 2 GiB, in sparse files

HUGE = 3 << 30


def huge(folder: Path) -> Path:
    """A model whose two weights have 3 GiB together, in a file of holes."""
    proto = model("y = Neg(x)", count=0)
    for index in range(2):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.UINT8, dims=[HUGE // 2], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "w.bin"), ("offset", index * (HUGE // 2)), ("length", HUGE // 2)):
            tensor.external_data.add(key=key, value=str(value))
        proto.graph.initializer.append(tensor)
    with open(folder / "w.bin", "wb") as file:
        file.truncate(HUGE)
    path = folder / "huge.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_more_than_2_gib_are_loaded_and_edited_without_being_read(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from rewright.model.load import load; from rewright.model.view import View\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "v = View(load(sys.argv[1])); v.graph.nodes[0].op = 'Abs'; m = v.to_model()\n"
        "assert m.nbytes() > 3 << 30; assert m.tensor(m.proto.graph.initializer[1])[-1] == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(huge(tmp_path))], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 32 * 1024  # KiB


def test_beyond_the_limit_an_inline_model_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_copy", lambda weight, file: file.seek(weight.length, os.SEEK_CUR) and file.truncate())
    loaded = load(huge(tmp_path))
    loaded.save(tmp_path / "out.onnx", external_data=False)
    assert (tmp_path / "out.onnx").stat().st_size < 1000
    assert (tmp_path / "out.onnx.data").stat().st_size == HUGE
    again = load(tmp_path / "out.onnx")
    assert again.has_external_data
    assert again.nbytes() > HUGE


def test_below_the_limit_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(model(count=2))
    monkeypatch.setattr(saving, "INLINE_LIMIT", 2 * LARGE.nbytes + 10_000)
    loaded.save(tmp_path / "inline.onnx")
    monkeypatch.setattr(saving, "INLINE_LIMIT", 2 * LARGE.nbytes)
    loaded.save(tmp_path / "external.onnx")
    assert names(tmp_path) == ["external.onnx", "external.onnx.data", "inline.onnx"]
