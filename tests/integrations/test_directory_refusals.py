"""What a directory is refused for, before any work where that can be; and that nothing half-written stays, nor is lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from directories import BERT, CONFIGURATION, ENCODER, contents, make_directory, merged_decoder, ops, token_feeds

from rewright import GateError, ModelError, PatternPass, UsageError
from rewright.integrations.huggingface import DirectoryGateError, optimize
from rewright.integrations.huggingface import saving as directory_saving
from rewright.integrations.optimum import AutoOptimizationConfig, compile

BROKEN_BY_ORT = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[8, 8] x) => (float[8, 8] y)
    <float[8] scale = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] bias = {1, 0, 1, 0, 1, 0, 1, 0}> {
    mean = ReduceMean<axes = [1], keepdims = 0>(x) moved = Sub(x, mean)
    two = Constant<value = float {2.0}>() square = Pow(moved, two) variance = ReduceMean<axes = [1], keepdims = 0>(square)
    epsilon = Constant<value = float {0.00001}>() more = Add(variance, epsilon) deviation = Sqrt(more)
    normal = Div(moved, deviation) scaled = Mul(normal, scale) y = Add(scaled, bias)
}"""
"""No layer normalisation, for the means lie along the wrong axis; ONNX Runtime makes one of it when it loads the model."""

RELU = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Relu(x) }')


class Wrong(PatternPass):
    """Softmax(x) -> Sigmoid(x)."""

    name = "wrong-softmax"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Softmax(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Sigmoid(x)


def chain_of(*steps: Any) -> Any:
    """A chain of passes that no catalog knows."""
    from rewright import Chain

    return Chain(list(steps))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "exported", model=BERT)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("exported", "is the source directory, which is never modified"),
        ("exported/../exported", "is the source directory, which is never modified"),
        ("exported/optimized", "is inside the source directory, which is never modified"),
        ("linked", "is the source directory, which is never modified"),
        (".", "holds the source directory, which is never modified"),
        ("a-file", "is not a directory"),
    ],
)
def test_a_place_that_would_touch_the_source(place: str, reason: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(source)
    (tmp_path / "a-file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=reason):
        optimize(source, tmp_path / place, chain="gelu")
    assert contents(tmp_path) == before


def test_a_place_with_other_models_is_refused_because_optimum_might_load_those(source: Path, tmp_path: Path) -> None:
    taken = make_directory(tmp_path / "taken", encoder_model=ENCODER)
    before = contents(taken)
    with pytest.raises(UsageError, match=r"holds other ONNX files: encoder_model.onnx") as caught:
        optimize(source, taken, chain="gelu")
    assert caught.value.hint == "Choose another directory, or remove them."
    assert contents(taken) == before


def test_of_a_place_that_exists_only_files_of_the_same_names_are_replaced(source: Path, tmp_path: Path) -> None:
    place = make_directory(tmp_path / "place", model=BERT)
    (place / "config.json").write_text("another one")
    (place / "notes.txt").write_text("mine")
    optimize(source, place, chain="gelu")
    assert contents(place).keys() == {*CONFIGURATION, "model.onnx", "ort_config.json", "notes.txt"}
    assert (place / "config.json").read_text() == CONFIGURATION["config.json"]
    assert (place / "notes.txt").read_text() == "mine"
    assert "Gelu" in ops(place / "model.onnx")


def test_a_place_in_a_folder_that_does_not_exist_is_made(source: Path, tmp_path: Path) -> None:
    optimize(source, tmp_path / "new" / "place", chain="gelu")
    assert (tmp_path / "new" / "place" / "model.onnx").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "new"]


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ModelError, lambda path: None, "does not exist"),
        (UsageError, lambda path: path.write_text(""), "is not a directory"),
        (UsageError, lambda path: path.mkdir(), r"holds no \.onnx file"),
        (
            ModelError,
            lambda path: make_directory(path) and (path / "model.onnx").write_text("no model"),
            "not a readable ONNX file",
        ),
        (ModelError, lambda path: make_directory(path) and (path / "model.onnx").write_text(""), "model.onnx is empty"),
    ],
)
def test_a_directory_that_cannot_be_read(error: type[Exception], make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "exported")
    before = contents(tmp_path)
    with pytest.raises(error, match=message):
        optimize(tmp_path / "exported", tmp_path / "optimized")
    assert contents(tmp_path) == before
    assert not (tmp_path / "optimized").exists()


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported")
    onnx.save(onnx.load(BERT), source / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    (source / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin does not exist"):
        optimize(source, tmp_path / "optimized")


def test_without_a_configuration_it_is_said_and_done(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT)
    (source / "config.json").unlink()
    (message,) = optimize(source, tmp_path / "optimized", chain="gelu").messages
    assert message == f"{source} has no config.json, without which Optimum does not load a model."
    make_directory(tmp_path / "whole" / "onnx", model=BERT)
    (tmp_path / "whole" / "onnx" / "config.json").rename(tmp_path / "whole" / "config.json")
    (message,) = optimize(tmp_path / "whole" / "onnx", tmp_path / "optimized", chain="gelu").messages
    assert message.endswith(f"{tmp_path / 'whole'} has one: is that the directory?")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file_names": "modle.onnx"}, "Did you mean model.onnx"),
        ({"config": "O7"}, "there is no level 'O7'"),
        ({"config": "O2", "chain": "gelu"}, "each name a chain"),
        ({"config": AutoOptimizationConfig.O2(), "chain": "gelu"}, "each name a chain"),
        ({"config": 3.5}, "a float holds no options of Optimum's"),
        ({"chain": "gelo"}, "Did you mean gelu"),
        ({"verify": "modle"}, "Did you mean model"),
        ({"backend": "orf"}, "Did you mean ort"),
        ({"inputs": {"decoder.onnx": {}}}, "there are inputs for 'decoder.onnx', and no such model"),
    ],
)
def test_an_option_that_is_wrong(options: dict[str, Any], message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        optimize(source, tmp_path / "optimized", **options)
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


@pytest.mark.parametrize("given", [SimpleNamespace(session=None), object(), 7, SimpleNamespace(path=Path("gone.onnx"))])
def test_what_is_neither_a_directory_nor_a_loaded_model(given: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a directory nor a model|not there any more"):
        optimize(given, tmp_path / "optimized")


def test_one_model_that_fails_keeps_all_from_being_written(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", encoder_model=RELU, model=onnx.parser.parse_model(BROKEN_BY_ORT))
    place = make_directory(tmp_path / "place", model=BERT)
    before = contents(tmp_path)
    result = optimize(source, place, chain="dead-code", verify="strict")
    assert {name: run.report.verdict for name, run in result.files.items()} == {
        "encoder_model.onnx": "passed",
        "model.onnx": "failed",
    }
    assert result.verdict == "failed"
    assert result.report.reason.startswith("model.onnx: under ONNX Runtime's own optimizations: ")
    assert result.report.save_dir is None
    assert contents(tmp_path) == before


def test_a_pass_that_fails_is_rolled_back_and_the_rest_is_written(source: Path, tmp_path: Path) -> None:
    result = optimize(source, tmp_path / "optimized", chain=chain_of(Wrong(), "gelu"))
    assert result.verdict == "passed-with-rollbacks"
    assert (tmp_path / "optimized" / "model.onnx").is_file()
    (record,) = (each for each in result.files["model.onnx"].report.passes if each.name == "wrong-softmax")
    assert Path(record.reproducer or "").is_relative_to(tmp_path / "optimized.reproducers" / "model")
    assert not list((tmp_path / "optimized").rglob("before.onnx")), "Optimum would take it for a model to load"


def test_a_pass_that_fails_where_the_policy_is_to_raise(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", decoder_model=RELU, encoder_model=merged_decoder(), model=BERT)
    with pytest.raises(DirectoryGateError, match=r"encoder_model.onnx: the pass 'wrong-softmax' failed") as caught:
        optimize(
            source,
            tmp_path / "optimized",
            chain=chain_of(Wrong()),
            on_failure="raise",
        )
    assert isinstance(caught.value, GateError)
    assert list(caught.value.directory.files) == ["decoder_model.onnx", "encoder_model.onnx"]
    assert caught.value.directory.verdict == "failed"
    assert not (tmp_path / "optimized").exists()


def test_a_write_that_fails_leaves_what_was_there(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_directory(tmp_path / "place", model=BERT)
    before = contents(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory_saving.shutil, "copyfileobj", full)
    with pytest.raises(ModelError, match="No space left on device") as caught:
        optimize(source, place, chain="gelu")
    assert caught.value.message.startswith(f"cannot write {place}/chat_template.jinja: "), "and not the folder that is gone"
    assert contents(tmp_path) == before


def test_an_interrupt_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupt(what: str, *_: int) -> None:
        if what == "model.onnx: final checks":
            assert [path.suffix for path in tmp_path.iterdir() if path != source] == [".partial"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize(source, tmp_path / "optimized", chain="gelu", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_a_place_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="cannot write"):
        optimize(source, tmp_path / "file" / "place", chain="gelu")
    (tmp_path / "place" / "vocab.txt").mkdir(parents=True)
    (tmp_path / "place" / "config.json").write_text("mine")
    with pytest.raises(ModelError, match=r"vocab.txt.*Is a directory"):
        optimize(source, tmp_path / "place", chain="gelu")
    assert contents(tmp_path / "place").keys() == {"config.json"}
    assert (tmp_path / "place" / "config.json").read_text() == "mine"


def test_a_place_may_be_an_empty_folder_that_someone_is_in(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or where another file system is mounted: it is filled, not replaced."""
    (tmp_path / "place").mkdir()
    identity = (tmp_path / "place").stat().st_ino
    monkeypatch.chdir(tmp_path / "place")
    optimize(source, ".", chain="gelu")
    assert (tmp_path / "place").stat().st_ino == identity
    assert {path.name for path in Path().iterdir()} == {*CONFIGURATION, "model.onnx", "ort_config.json"}


def test_weights_of_a_model_that_is_replaced_go_with_it(tmp_path: Path) -> None:
    outside, inside = make_directory(tmp_path / "outside"), make_directory(tmp_path / "inside", model=BERT)
    onnx.save(onnx.load(BERT), outside / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    for source, names in ((outside, {"model.onnx", "model.onnx_data"}), (inside, {"model.onnx"})):
        optimize(source, tmp_path / "optimized", chain="gelu")
        assert {name for name in contents(tmp_path / "optimized") if ".onnx" in name} == names


def test_inputs_are_given_by_file(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", encoder_model=BERT, model=BERT)
    (tmp_path / "inputs" / "model").mkdir(parents=True)
    np.savez(tmp_path / "inputs" / "model" / "some.npz", **token_feeds())
    result = optimize(source, tmp_path / "optimized", chain="gelu", inputs=tmp_path / "inputs")
    origins = {name: run.report.parity.inputs for name, run in result.files.items() if run.report.parity}
    assert origins == {"encoder_model.onnx": "made", "model.onnx": "given"}
    with pytest.raises(UsageError, match="do not say which of the models they are for"):
        optimize(source, tmp_path / "optimized", chain="gelu", inputs=token_feeds())
    with pytest.raises(UsageError, match="holds no inputs for any of the models") as caught:
        optimize(source, tmp_path / "optimized", chain="gelu", inputs=tmp_path / "inputs" / "model")
    assert "encoder_model.npz" in caught.value.hint
    one = make_directory(tmp_path / "one", model=BERT)
    assert optimize(one, tmp_path / "one_more", chain="gelu", inputs=token_feeds()).verdict == "passed"


def test_a_compiled_config_and_its_messages(source: Path, tmp_path: Path) -> None:
    options = AutoOptimizationConfig.O2(fp16=True, disable_gelu_fusion=True)
    for config in (options, compile(options)):
        result = optimize(source, tmp_path / "optimized", config)
        assert "gelu" not in {record.name for record in result.files["model.onnx"].report.passes}
        assert any(message.startswith("fp16=True: ") for message in result.messages)
