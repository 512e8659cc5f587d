"""Passes whose results end ONNX Runtime's process or never end, and the processes that this one has started."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from rewright import ModelPass, PatternPass
from rewright.api import Chain
from rewright.registry.catalog import Catalog

NOTHING_ELSE = Catalog([])
LOOKS_AT_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

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


@contextmanager
def nothing_left(scratch: Path) -> Iterator[None]:
    """No process, running or not waited for, and no file in the folder for temporary ones outlives what is done meanwhile."""
    scratch.mkdir()
    before = set(children())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        yield
    assert set(children()) <= before
    gc.collect()
    left = {path.name for path in scratch.iterdir()}
    assert left <= {".ses"}  # which ONNX Runtime writes there


def assert_costs_one_pass(result: Any, reason: str) -> None:
    wrong, gelu = result.report.passes
    assert (wrong.status, gelu.status) == ("rolled-back", "applied")
    assert reason in wrong.reason
    assert result.report.verdict == "passed-with-rollbacks"
    assert "com.microsoft::GroupQueryAttention" not in result.report.model.ops_after
    assert result.report.model.ops_after["com.microsoft::Gelu"] == 1
