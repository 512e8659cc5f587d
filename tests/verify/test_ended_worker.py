"""A worker that is ended from outside, by a signal, for its time or for its memory, costs one pass, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from dying_workers import (
    LOOKS_AT_PROC,
    MODEL,
    Endless,
    assert_costs_one_pass,
    chain,
    children,
    nothing_left,
    processor_seconds,
)

from rewright.passes.fusion.gelu import Gelu
from rewright.verify.parity import ParityGate
from rewright.verify.process import SessionCrash, SessionWorker

pytestmark = LOOKS_AT_PROC


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    with nothing_left(tmp_path / "scratch"):
        yield


@pytest.fixture
def kill_when_busy() -> Iterator[Any]:
    """Sends signals to every child that goes on computing after ``Endless`` was applied, until the test ends."""
    done = threading.Event()

    def watch(number: int) -> None:
        Endless.applied.wait(30)
        seconds: dict[int, float] = {}
        while not done.wait(0.05):
            for pid in children():
                if processor_seconds(pid) - seconds.setdefault(pid, processor_seconds(pid)) > 0.6:
                    os.kill(pid, number)
                    del seconds[pid]
                    time.sleep(0.1)

    threads = []

    def start(number: int) -> None:
        Endless.applied.clear()
        threads.append(threading.Thread(target=watch, args=(number,)))
        threads[-1].start()

    yield start
    done.set()
    Endless.applied.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_worker_that_a_signal_ends_in_the_midst_of_a_run(number: signal.Signals, kill_when_busy: Any) -> None:
    kill_when_busy(number)
    result = chain(Endless(on_failure="skip"), Gelu()).run(onnx.parser.parse_model(MODEL))
    assert_costs_one_pass(result, f"died of {number.name}")


def test_a_worker_that_hangs_is_ended_and_not_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWRIGHT_TIMEOUT", "4")
    started = time.monotonic()
    result = chain(Endless(), Gelu()).run(onnx.parser.parse_model(MODEL), reproducers=tmp_path / "reproducers")
    assert_costs_one_pass(result, "took longer than 4 s")
    assert time.monotonic() - started < 14
    folder = result.report.passes[0].reproducer
    assert len(onnx.load(Path(folder) / "before.onnx").graph.node) == 9  # nothing is gained by waiting again and again


def test_a_hanging_worker_is_told_by_the_time_that_it_has(monkeypatch: pytest.MonkeyPatch, command_line: Any) -> None:
    monkeypatch.setenv("REWRIGHT_TIMEOUT", "soon")
    model = Path(__file__).parents[1] / "zoo" / "vit.dyn23.sdpa.onnx"
    assert "REWRIGHT_TIMEOUT is 'soon'" in command_line("verify", model, model).assert_one_error()


def test_an_original_that_is_killed_from_outside_is_run_again(parse: Any) -> None:
    model = parse("g (float[B, 4] x) => (float[B, 4] y) { y = Exp(x) }")
    with SessionWorker() as worker:
        run, killed = worker.run, []

        def run_and_die(*arguments: Any, **options: Any) -> Any:
            if not killed:
                run(model, ())
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
                worker._child.process.wait()
                raise SessionCrash("ONNX Runtime's process died of SIGKILL.")
            return run(*arguments, **options)

        worker.run = run_and_die  # type: ignore[method-assign]
        evidence = ParityGate(model, None, worker).check(model, "exact")
    assert killed
    assert (evidence.status, evidence.dropped) == ("passed", [])


OUT_OF_MEMORY = """
import numpy as np
from rewright import PatternPass

class Huge(PatternPass):
    \"\"\"Relu(x) -> Max(x, 0) + 0, where the 0 is the smallest of 16 GiB of zeros.\"\"\"

    name = "huge"
    exactness = "reassociating"

    def pattern(self, op, x):
        return op.Relu(x)

    def rewrite(self, op, x):
        zeros = op.Expand(op.constant(np.zeros(1, np.float32)), op.constant(np.array([2**32])))
        return op.Add(op.Max(x, op.constant(np.float32(0))), op.ReduceMin(op.Neg(zeros), keepdims=0))
"""


def test_a_worker_out_of_memory(tmp_path: Path) -> None:
    (tmp_path / "huge_passes.py").write_text(OUT_OF_MEMORY)
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "model.onnx")
    command = f"ulimit -v 4000000; exec {sys.executable} -m rewright optimize model.onnx -o out.onnx -p 'huge, gelu' --json"
    variables = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "OPENBLAS_NUM_THREADS": "1", "TMPDIR": tempfile.tempdir}
    done = subprocess.run(
        ["bash", "-c", f"{command} --plugin huge_passes:Huge"],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    huge, gelu = report["passes"]
    assert (huge["status"], gelu["status"], report["verdict"]) == ("rolled-back", "applied", "passed-with-rollbacks")
    assert "alloc" in huge["reason"].lower() or "died of" in huge["reason"]
    assert (tmp_path / "out.onnx").is_file()
