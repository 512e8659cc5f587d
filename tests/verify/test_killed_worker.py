"""A session worker that dies costs one pass, not the run: by a signal, by a kernel that crashes, out of memory, out of time."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from rewright import ModelPass, PatternPass
from rewright.api import Chain
from rewright.passes.fusion.gelu import Gelu
from rewright.registry.catalog import Catalog
from rewright.verify.parity import ParityGate
from rewright.verify.process import SessionCrash, SessionWorker

NOTHING_ELSE = Catalog([])
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

HEADER = '<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>'
WEIGHT = ",".join(["0.25", "-0.5"] * 128)
MODEL = f"""{HEADER} g (float[B, S, 16] x) => (float[B, S, 16] y)
    <float half = {{0.5}}, float root = {{1.4142135}}, float one = {{1}}, float[16, 16] w = {{{WEIGHT}}}> {{
        a = MatMul(x, w)  r = Relu(a)  s = Abs(r)  t = Relu(s)
        d = Div(t, root)  e = Erf(d)  f = Add(e, one)  m = Mul(t, f)  y = Mul(m, half)
    }}"""


class EmptyBatch(PatternPass):
    """Relu(x) -> Max(x, 0) + 0, where the 0 is a sum over an attention without any batch, which ends ONNX Runtime's process."""

    name = "empty-batch"
    exactness = "reassociating"
    everywhere: bool = False

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Relu(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        positive = op.Max(x, op.constant(np.float32(0)))
        if not self.everywhere and x.producer is not None and x.producer.op == "MatMul":
            return positive
        starts, ends, axes = (op.constant(np.array(each)) for each in ([0, 0], [0, 1], [0, 1]))
        empty = op.Slice(x, starts, ends, axes)
        lengths, total = op.constant(np.zeros(0, np.int32)), op.constant(np.array(1, np.int32))
        attention = op.GroupQueryAttention(
            empty, empty, empty, None, None, lengths, total, domain="com.microsoft", num_heads=2, kv_num_heads=2
        )
        return op.Add(positive, op.ReduceSum(attention, keepdims=0))


class Endless(ModelPass):
    """Puts a loop of four thousand million steps before the first Relu."""

    name = "endless"
    applied: ClassVar[threading.Event] = threading.Event()

    def transform(self, session: Any) -> Any:
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        first = next(node for node in proto.graph.node if node.op_type == "Relu")
        loop = onnx.parser.parse_node(
            "looped = Loop (trips, true, a) <body = body (int64 i, bool c, float[B, S, 16] v) => (bool c2, float[B, S, 16] w2)"
            " { c2 = Identity(c) w2 = Abs(v) }>"
        )
        loop.name, first.input[0] = "loop", "looped"
        place = list(proto.graph.node).index(first)
        proto.graph.node.insert(place, loop)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(4_000_000_000), "trips"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "true"))
        session.record(session.view.graph, [], [])
        self.applied.set()
        return session.model.with_proto(proto)


def chain(*passes: Any) -> Chain:
    return Chain(list(passes), catalog=NOTHING_ELSE)


def children(state: str = "") -> list[int]:
    """Processes that this one has started, those in one state if it is given."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and (not state or fields[0] == state):
                found.append(int(folder.name))
    return found


def processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, running or not waited for, and no temporary file outlives a run."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    before = set(children())
    yield
    assert set(children()) <= before
    gc.collect()
    left = {path.name for path in (tmp_path / "scratch").iterdir()}
    assert left <= {".ses"}  # which ONNX Runtime writes there


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


def assert_costs_one_pass(result: Any, reason: str) -> None:
    wrong, gelu = result.report.passes
    assert (wrong.status, gelu.status) == ("rolled-back", "applied")
    assert reason in wrong.reason
    assert result.report.verdict == "passed-with-rollbacks"
    assert "com.microsoft::GroupQueryAttention" not in result.report.model.ops_after
    assert result.report.model.ops_after["com.microsoft::Gelu"] == 1


@pytest.mark.parametrize("verify", ["model", "sites"])
def test_a_kernel_that_crashes_costs_the_site_that_it_serves(verify: Any) -> None:
    result = chain(EmptyBatch(), Gelu()).run(onnx.parser.parse_model(MODEL), verify=verify)
    crashing, gelu = result.report.passes
    assert (crashing.status, gelu.status) == ("applied", "applied")
    assert [(site.removed, site.status) for site in crashing.sites] == [(["r"], "kept"), (["t"], "rolled-back")]
    assert "1 of 2 sites were undone" in crashing.reason
    assert "died of SIGFPE" in crashing.reason
    assert result.report.verdict == "passed-with-rollbacks"


def test_a_pass_that_crashes_at_every_site_costs_itself() -> None:
    assert_costs_one_pass(
        chain(EmptyBatch(everywhere=True), Gelu()).run(onnx.parser.parse_model(MODEL)), "ONNX Runtime's process died of SIGFPE"
    )


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


def test_an_original_that_crashes_is_rewritten_but_not_verified() -> None:
    crashing = chain(EmptyBatch(everywhere=True)).run(onnx.parser.parse_model(MODEL), verify="off").model
    sets = [{"x": np.ones((batch, 3, 16), np.float32)} for batch in (1, 2)]
    report = chain(Gelu()).run(crashing, verify="model", inputs=sets).report
    assert report.verdict == "unverified"
    assert "the original cannot be run on any input set; inputs-0" in report.reason
    assert "died of SIGFPE" in report.reason
    assert [record.status for record in report.passes] == ["applied"]


def test_an_input_set_that_crashes_the_original_is_left_out_and_told() -> None:
    text = f"""{HEADER} g (float[B, S, 16] x, int32[B] lengths) => (float[B, S, 16] y) <int32 total = {{4}}, float[16] w = {{{
        ",".join(["2"] * 16)
    }}}> {{
        r = Relu(x)
        a = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2>(r, r, r, "", "", lengths, total)  y = Mul(a, w)
    }}"""
    sets = [
        {"x": np.random.default_rng(batch).standard_normal((batch, 4, 16), np.float32), "lengths": np.full(batch, 3, np.int32)}
        for batch in (2, 0, 1)
    ]
    report = chain(EmptyBatch()).run(onnx.parser.parse_model(text), inputs=sets).report
    assert report.parity is not None
    assert report.parity.input_sets == ["inputs-0", "inputs-2"]
    assert "died of SIGFPE" in report.parity.dropped[0]
    assert "inputs-1" in report.parity.dropped[0]


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


@pytest.mark.parametrize(("policy", "status"), [("rollback", 0), ("raise", 1)])
def test_the_exit_status_is_the_policys(policy: str, status: int, process: Any, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "model.onnx")
    options = ["--plugin", "test_killed_worker:EmptyBatch", "-p", "empty-batch, gelu", "--on-failure", policy, "--quiet"]
    outcome = process("optimize", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", *options, path=Path(__file__).parent)
    assert outcome.status == status, outcome.err
    assert (tmp_path / "out.onnx").is_file() == (status == 0)
    if status:
        assert "died of SIGFPE" in outcome.assert_one_error(status)
    folder = tmp_path / "out.onnx.reproducers" / "00-empty-batch"
    ops = [node.op_type for node in onnx.load(folder / "before.onnx").graph.node]
    assert ops == ["Relu"]


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
    import json
    import subprocess

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
