"""The child process: what it computes, how it fails, and that it never outlives its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from rewright.verify import worker as child
from rewright.verify.process import SessionCrash, SessionLoadError, SessionWorker

RELU = "g (float[N] x) => (float[N] y) { y = Relu(x) }"
ENDLESS = """g (float[N] x) => (float[N] y) <int64 trips = {4000000000}, bool true = {1}> {
    y = Loop(trips, true, x) <
        body = b (int64 i, bool c, float[N] v) => (bool c2, float[N] w) { c2 = Identity(c) w = Abs(v) }
    >
}"""


def is_alive(pid):
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_outputs_come_back_for_every_set(parse, worker):
    run = worker.run(parse(RELU), [{"x": np.array([-1, 2], np.float32)}, {"x": np.array([3, -4, 5], np.float32)}])
    assert [result.outputs["y"].tolist() for result in run.results] == [[0, 2], [3, 0, 5]]
    assert run.load_seconds > 0


def test_the_weights_of_a_loaded_file_are_found(zoo, worker):
    model = zoo("distilbert.ts17.eager")
    arrays = {value.name: np.ones((2, 5), np.int64) for value in model.proto.graph.input}
    (result,) = worker.run(model, [arrays]).results
    assert result.error == ""
    assert all(np.isfinite(array).all() for array in result.outputs.values())


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("string", np.array(["a", "é", ""], object)),
        ("bool", np.array([True, False])),
        ("float16", np.array([1.5], np.float16)),
        ("bfloat16", np.array([1.5, -2], ml_dtypes.bfloat16)),
        ("int64", np.array(7)),
        ("uint8", np.zeros((0, 3), np.uint8)),
    ],
)
def test_element_types_survive_the_pipe(parse, worker, dtype, array):
    dims = ", ".join("ABC"[: array.ndim])
    shape = f"[{dims}]" if dims else ""
    text = f"g ({dtype}{shape} x) => ({dtype}{shape} y) {{ y = Identity(x) }}"
    (result,) = worker.run(parse('<ir_version: 10, opset_import: ["": 21]>' + text), [{"x": array}]).results
    assert result.error == ""
    assert result.outputs["y"].dtype == array.dtype
    assert np.array_equal(result.outputs["y"], array)


def test_sequences_come_back_by_element(parse, worker):
    model = parse("g (float[A] x) => (seq(float[A]) y) { y = SequenceConstruct(x, x) }")
    (result,) = worker.run(model, [{"x": np.ones(2, np.float32)}]).results
    assert list(result.outputs) == ["y[0]", "y[1]"]


def test_a_model_that_does_not_load_says_why(parse, worker):
    with pytest.raises(SessionLoadError, match="NoSuchOp"):
        worker.run(parse("g (float[N] x) => (float[N] y) { y = com.microsoft.NoSuchOp(x) }"), [])


def test_a_set_that_does_not_run_leaves_the_others(parse, worker):
    model = parse("g (float[N] x, float[M] z) => (float[K] y) { y = Add(x, z) }")
    two, three = np.ones(2, np.float32), np.ones(3, np.float32)
    bad, good = worker.run(model, [{"x": two, "z": three}, {"x": two, "z": two}]).results
    assert "Add" in bad.error
    assert good.outputs["y"].tolist() == [2, 2]


def test_a_native_crash_is_an_error_and_the_next_request_works(parse):
    with SessionWorker() as worker:
        worker.load(parse(RELU))
        first = worker.pid
        threading.Timer(0.3, os.kill, (first, signal.SIGSEGV)).start()
        with pytest.raises(SessionCrash, match="died of SIGSEGV"):
            worker.run(parse(ENDLESS), [{"x": np.ones(2, np.float32)}])
        assert worker.run(parse(RELU), [{"x": np.ones(1, np.float32)}]).results[0].outputs["y"].tolist() == [1]
        assert worker.pid != first


def test_a_child_that_died_between_requests_is_replaced(parse):
    with SessionWorker() as worker:
        worker.load(parse(RELU))
        os.kill(worker.pid, signal.SIGKILL)
        worker._child.process.wait()  # a zombie whose threads still end is not dead yet
        assert worker.load(parse(RELU)) > 0


def test_a_run_that_takes_too_long_is_ended(parse):
    with SessionWorker(timeout=1.0) as worker:
        started = time.monotonic()
        with pytest.raises(SessionCrash, match="took longer than 1 s"):
            worker.run(parse(ENDLESS), [{"x": np.ones(2, np.float32)}])
        assert time.monotonic() - started < 10
        assert worker.pid is None


def test_closing_leaves_no_process(parse):
    with SessionWorker() as worker:
        worker.load(parse(RELU))
        pid = worker.pid
    assert not is_alive(pid)
    assert worker.pid is None


def test_the_child_ends_with_a_parent_that_was_killed():
    script = (
        "import onnx, sys, time; from rewright.model.load import load; from rewright.verify.process import SessionWorker;"
        "w = SessionWorker(); w.load(load(onnx.parser.parse_model("
        "'<ir_version: 8, opset_import: [\"\": 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }')));"
        "print(w.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_for(lambda: not is_alive(pid))


def test_the_child_does_not_import_the_package():
    script = f"import runpy, sys; runpy.run_path({child.__file__!r}); print(*sys.modules)"
    listed = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in listed
    assert not [name for name in listed if name.startswith(("rewright", "onnx", "google", "pydantic"))]
