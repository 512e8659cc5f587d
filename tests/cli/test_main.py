"""The frame around the commands: version, help, streams, signals, and a reader that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rewright
from rewright.cli.main import app, run

ROOT = Path(__file__).parents[2]
BERT = ROOT / "tests" / "zoo" / "bert.ts17.sdpa.onnx"
COMMANDS = (
    "optimize", "quantize", "verify", "check", "explain", "passes", "chains", "plugins", "new-plugin", "bisect", "reproduce",
    "bench", "sensitivity",
)  # fmt: skip


def test_the_version(command_line, process):
    assert command_line("--version").out == f"rewright {rewright.__version__}\n"
    assert process("--version").out == f"rewright {rewright.__version__}\n"


def test_no_command_shows_the_help_and_is_wrong_usage(command_line):
    outcome = command_line()
    assert outcome.status == 2
    assert "Usage: rewright" in outcome.out
    assert all(command in outcome.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, command_line):
    outcome = command_line(command, "--help")
    assert outcome.status == 0
    assert f"Usage: rewright {command}" in outcome.out
    assert outcome.err == ""


def test_the_commands_are_these():
    assert {command.callback.__name__.replace("_", "-") for command in app.registered_commands} == set(COMMANDS)


def test_a_misspelt_command_names_the_near_one(command_line):
    assert "Did you mean 'optimize'?" in command_line("optimise").assert_one_error()


def test_a_missing_argument(command_line):
    assert "MODEL" in command_line("optimize").assert_one_error()
    assert "--output" in command_line("optimize", "model.onnx").assert_one_error()


def test_starting_is_light():
    """Help and version must not wait for onnx, onnxruntime or numpy."""
    code = (
        "import sys; from rewright.cli.main import run; run(['--version']);"
        "print(sorted({'onnx', 'onnxruntime', 'numpy', 'onnx_graphsurgeon'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_interrupt_has_a_status_of_its_own(command_line, monkeypatch):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rewright.api.explain", interrupted)
    command_line("explain", BERT).assert_one_error(status=130)


def test_running_out_of_memory_is_one_message(command_line, monkeypatch):
    def exhausted(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("rewright.api.explain", exhausted)
    assert "out of memory" in command_line("explain", BERT).assert_one_error()


def test_a_reader_that_goes_away_ends_it_quietly():
    command = [sys.executable, "-m", "rewright", "explain", str(BERT), "-O1", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(timeout=60) == 141
        assert child.stderr is not None
        assert child.stderr.read() == ""


def test_a_full_standard_output_is_an_error():
    command = [sys.executable, "-m", "rewright", "passes", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device.")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_termination_leaves_nothing_behind(tmp_path):
    """Neither the worker process nor temporary folders outlive a run that is terminated."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "slow.py").write_text(
        "import time\nfrom rewright import graph_pass\n"
        "@graph_pass('slow')\ndef slow(graph):\n    'Takes its time.'\n    print('started', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "rewright", "optimize", str(BERT), "-o", str(tmp_path / "out.onnx")]
    environment = os.environ | {
        "TMPDIR": str(scratch),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    child = subprocess.Popen(
        [*command, "--plugin", "slow:slow", "-p", "O1, slow"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert [path.name for path in scratch.iterdir() if path.name != ".ses"] == []  # that one is onnxruntime's own
    assert not (tmp_path / "out.onnx").exists()


def test_run_returns_the_status_and_raises_nothing(capsys):
    assert run(["chains", "--json"]) == 0
    assert run(["no-such-command"]) == 2
