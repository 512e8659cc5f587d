"""What bad input gets: exit status 2, one clear message with a next step, the input as it was, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser

from rewright.registry import builtin

BERT = Path(__file__).parent / "zoo" / "bert.ts17.sdpa.onnx"

SOUND = """<ir_version: 10, opset_import: ["": 17]>
sound (float[N, 4] x) => (float[N, 4] y) <float[4] bias = {1, 2, 3, 4}> { s = Add(x, bias)  y = Relu(s) }"""
CYCLIC = """<ir_version: 10, opset_import: ["": 17]>
cyclic (float[N, 4] x) => (float[N, 4] y) { a = Add(x, b)  b = Relu(a)  y = Relu(b) }"""
UNKNOWN_OP = """<ir_version: 10, opset_import: ["": 17]>
unknown_op (float[N, 4] x) => (float[N, 4] y) { a = Frobnicate(x)  i = Identity(a)  y = Relu(i) }"""
UNKNOWN_DOMAIN = """<ir_version: 10, opset_import: ["": 17, "acme.ops": 1]>
unknown_domain (float[N, 4] x) => (float[N, 4] y) { a = acme.ops.Frobnicate(x)  i = Identity(a)  y = Relu(i) }"""


def written(path: Path, text: str) -> Path:
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


def with_data_at(folder: Path, location: str) -> Path:
    """A sound model whose bias lies in a data file."""
    model: ModelProto = parser.parse_model(SOUND)
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "bias")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer[0].CopyFrom(tensor)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def missing(folder: Path) -> Path:
    return folder / "missing.onnx"


def directory(folder: Path) -> Path:
    (folder / "directory.onnx").mkdir()
    return folder / "directory.onnx"


def empty(folder: Path) -> Path:
    (folder / "empty.onnx").touch()
    return folder / "empty.onnx"


def truncated(folder: Path) -> Path:
    whole = BERT.read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    return folder / "truncated.onnx"


def random_bytes(folder: Path) -> Path:
    (folder / "random.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder / "random.onnx"


def text(folder: Path) -> Path:
    (folder / "text.onnx").write_text("This is a page that a proxy sent instead of the model.\n" * 30)
    return folder / "text.onnx"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.onnx")
    return folder / "pipe.onnx"


def cyclic(folder: Path) -> Path:
    return written(folder / "cyclic.onnx", CYCLIC)


def data_missing(folder: Path) -> Path:
    return with_data_at(folder, "weights.bin")


def data_too_short(folder: Path) -> Path:
    (folder / "weights.bin").write_bytes(bytes(15))
    return with_data_at(folder, "weights.bin")


def data_absolute(folder: Path) -> Path:
    (folder / "weights.bin").write_bytes(bytes(16))
    return with_data_at(folder, str(folder / "weights.bin"))


def data_behind_a_symlink(folder: Path) -> Path:
    (folder / "elsewhere.bin").write_bytes(bytes(16))
    (folder / "weights.bin").symlink_to("elsewhere.bin")
    return with_data_at(folder, "weights.bin")


def data_outside(folder: Path) -> Path:
    (folder.parent / "weights.bin").write_bytes(bytes(16))
    return with_data_at(folder, "../weights.bin")


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below the folder with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def refused(folder: Path, command_line: Callable) -> Callable[..., str]:
    """Runs a command that has to fail with status 2 and change nothing; returns its message."""

    def execute(*arguments: str | Path) -> str:
        before = snapshot(folder)
        outcome = command_line(*arguments)
        message = outcome.assert_one_error()
        assert outcome.out == ""
        assert snapshot(folder) == before
        return message

    return execute


UNREADABLE = {
    missing: "does not exist",
    directory: "is a directory",
    empty: "is empty",
    truncated: "is not a readable ONNX file",
    random_bytes: "is not a readable ONNX file",
    text: "is not a readable ONNX file",
    pipe: "is not a regular file",
    cyclic: "the graph has a cycle: Add 'a' -> Relu 'b' -> Add 'a'",
    data_missing: "is missing",
    data_too_short: "which has only 15",
    data_absolute: "outside the model's folder",
    data_behind_a_symlink: "is a symbolic link",
    data_outside: "outside the model's folder",
}


@pytest.mark.parametrize("make", UNREADABLE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["optimize", "explain", "verify"])
def test_an_input_that_cannot_be_read(make, command, folder, refused):
    model = make(folder)
    sound = written(folder.parent / "sound.onnx", SOUND)
    more = {"optimize": ["-o", folder / "out.onnx"], "explain": [], "verify": [sound]}[command]
    message = refused(command, model, *more)
    assert UNREADABLE[make] in message
    if "data" not in make.__name__ and make is not cyclic:
        assert str(model) in message


def test_a_candidate_that_cannot_be_read(folder, refused):
    assert "is empty" in refused("verify", written(folder / "sound.onnx", SOUND), empty(folder))


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ("gellu", "there is no pass 'gellu'.\n    gellu\n    ^\nhint: Did you mean gelu"),
        ("O1, bias_gelu", "Did you mean bias-gelu"),
        ("o2", "Did you mean O2"),
        ("constant-folding{max_byte=3}", "has no option 'max_byte'.\n"),
        ("constant-folding{max_byte=3}", "Did you mean max_bytes?"),
        ("constant-folding{max_bytes=lots}", "option max_bytes"),
        ("gelu{backend=fast}", "option backend"),
        ("gelu{", "expected an option or '}'"),
        ("gelu bias-gelu", "expected ',' between passes"),
        ("O2{level=3}", "level O2 has no options"),
    ],
)
def test_a_wrong_chain(chain, expected, folder, refused):
    model = written(folder / "sound.onnx", SOUND)
    assert expected in refused("optimize", model, "-o", folder / "out.onnx", "-p", chain)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-O", "7"], "there is no level '7'"),
        (["-p", "O1, float16{margin=0.5}"], "margin"),
        (["-O2", "-p", "gelu"], "-O and -p each name a chain"),
        (["-c", "absent.yaml"], "chain file absent.yaml"),
        (["--set", "gelu.backend"], "sets nothing"),
        (["--set", "gelu.speed=3"], "has no option 'speed'"),
        (["--set", "gelu-approximation.heads=3"], "holds no pass 'gelu-approximation'"),
        (["--target", "cud"], "Did you mean cuda"),
        (["--verify", "some"], "off, structure, model, sites, strict"),
        (["--on-failure", "rolback"], "Did you mean rollback"),
        (["--backend", "fast"], "standalone, ort, auto"),
        (["--inputs", "absent.npz"], "absent.npz"),
        (["--report", "report.pdf"], ".json or .html"),
        (["--report", "no/such/folder/report.json"], "does not exist"),
        (["--plugin", "no_such_module"], "no_such_module"),
        (["--seed", "many"], "--seed"),
        (["--colour"], "--colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option(options, expected, folder, refused):
    model = written(folder / "sound.onnx", SOUND)
    assert expected in refused("optimize", model, "-o", folder / "out.onnx", *options)


def test_usage_errors_come_before_the_model_is_read(folder, refused):
    assert "there is no pass" in refused("optimize", folder / "missing.onnx", "-o", folder / "out.onnx", "-p", "gellu")
    assert "no/such/folder" in refused("optimize", folder / "missing.onnx", "-o", "no/such/folder/out.onnx")


def test_inputs_that_do_not_fit(folder, refused):
    np.savez(folder / "inputs.npz", xs=np.zeros((2, 4), np.float32))
    model = written(folder / "sound.onnx", SOUND)
    message = refused("optimize", model, "-o", folder / "out.onnx", "--inputs", folder / "inputs.npz")
    assert "'xs'" in message
    assert "'x'" in message


def test_an_output_that_is_the_input(folder, refused):
    model = written(folder / "sound.onnx", SOUND)
    os.link(model, folder / "link.onnx")
    for output in (model, folder / "link.onnx", folder / ".." / "work" / "sound.onnx"):
        assert "is the input model" in refused("optimize", model, "-o", output)
    assert "is the input model" in refused("optimize", model, "-o", folder / "out.onnx", "--report", with_suffix_json(model))


def with_suffix_json(model: Path) -> Path:
    os.link(model, model.with_suffix(".json"))
    return model.with_suffix(".json")


def test_an_output_whose_data_file_is_the_input(folder, refused):
    (folder / "out.onnx.data").write_bytes(bytes(16))
    model = with_data_at(folder, "out.onnx.data")
    assert "never modified" in refused("optimize", model, "-o", folder / "out.onnx", "--quiet")


def test_outputs_that_cannot_be_made(folder, refused):
    model = written(folder / "sound.onnx", SOUND)
    (folder / "taken.onnx").mkdir()
    os.mkfifo(folder / "pipe.onnx")
    assert "is a directory" in refused("optimize", model, "-o", folder / "taken.onnx")
    assert "does not exist" in refused("optimize", model, "-o", folder / "absent" / "out.onnx")
    assert "does not exist" in refused("optimize", model, "-o", model / "out.onnx")
    assert "never replaced" in refused("optimize", model, "-o", folder / "pipe.onnx")
    assert "never replaced" in refused("optimize", model, "-o", os.devnull)


def test_an_output_folder_that_is_read_only(folder, process):
    model = written(folder / "sound.onnx", SOUND)
    sealed = Path("/proc") if os.geteuid() == 0 else folder / "sealed"
    if sealed.parent == folder:
        sealed.mkdir(mode=0o500)
    before = snapshot(folder)
    assert "cannot write the output" in process("optimize", model, "-o", sealed / "out.onnx").assert_one_error()
    assert snapshot(folder) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(folder, small_disk, process):
    before = BERT.read_bytes()
    outcome = process("optimize", BERT, "-o", small_disk / "out.onnx", "--verify", "structure")
    assert "No space left on device" in outcome.assert_one_error()
    assert list(small_disk.iterdir()) == []
    assert BERT.read_bytes() == before


def test_a_full_disk_for_the_report(small_disk, folder, process):
    model = written(folder / "sound.onnx", SOUND)
    (small_disk / "filler").write_bytes(bytes(60 * 1024))
    outcome = process("optimize", model, "-o", folder / "out.onnx", "--report", small_disk / "report.html")
    assert "cannot write the report" in outcome.assert_one_error()
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_file_that_may_not_grow(folder):
    """The quota's way of a full disk: needs no root."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "rewright", "optimize", BERT, "-o", folder / "out.onnx", "--verify", "off"]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", [UNKNOWN_OP, UNKNOWN_DOMAIN], ids=["op", "domain"])
def test_an_op_without_a_kernel_is_rewritten_around_and_not_verified(text, folder, command_line):
    model = written(folder / "model.onnx", text)
    before = model.read_bytes()
    outcome = command_line("optimize", model, "-o", folder / "out.onnx", "--json")
    message = outcome.assert_one_error()
    assert "parity could not be run" in message
    assert "Frobnicate" in message
    assert "--verify structure" in message
    report = json.loads(outcome.out)
    assert report["verdict"] == "unverified"
    assert report["parity"]["status"] == "not-run"
    assert report["model"]["nodes_after"] == 2
    assert model.read_bytes() == before

    accepted = command_line("optimize", model, "-o", folder / "accepted.onnx", "--verify", "structure", "--json")
    assert accepted.status == 0, accepted.err
    assert json.loads(accepted.out)["verdict"] == "unverified"
    assert (folder / "accepted.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_constraints_that_no_order_satisfies(folder, refused, monkeypatch):
    module = folder.parent / "contradicting.py"
    module.write_text(
        "from rewright import graph_pass, hookimpl\n"
        "@graph_pass('contra-first', after=('contra-second',))\ndef first(graph): 'First.'\n"
        "@graph_pass('contra-second', after=('contra-first',))\ndef second(graph): 'Second.'\n"
        "@hookimpl\ndef rewright_passes(): return [first, second]\n"
    )
    monkeypatch.syspath_prepend(str(module.parent))
    model = written(folder / "sound.onnx", SOUND)
    message = refused(
        "optimize", model, "-o", folder / "out.onnx", "--plugin", "contradicting", "-p", "contra-first, contra-second"
    )
    assert (
        "contra-first -> contra-second -> contra-first" in message or "contra-second -> contra-first -> contra-second" in message
    )


def test_a_bug_is_one_line_and_says_how_to_see_more(folder, command_line, monkeypatch):
    def broken() -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(builtin, "rewright_passes", builtin.hookimpl(broken))
    message = command_line("passes").assert_one_error()
    assert "a bug in rewright: KeyError: 'surprise'" in message
    assert "REWRIGHT_TRACEBACK=1" in message
    monkeypatch.setenv("REWRIGHT_TRACEBACK", "1")
    assert "Traceback" in command_line("passes").err


def test_what_cannot_be_shown_on_a_terminal_is_spelled_out(folder, refused):
    message = refused("optimize", folder / "evil\x1b[31m.onnx", "-o", folder / "out.onnx")
    assert "\x1b" not in message
    assert "\\x1b[31m" in message
