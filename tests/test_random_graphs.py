"""Random graphs through the whole level: nothing is rolled back, nothing changes twice."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import rewright

H = 8


class Writer:
    """Writes exporter-like pieces over float[batch, sequence, 8] values; inner values may be read and returned as well."""

    def __init__(self, draw: st.DrawFn, opset: int) -> None:
        self.draw, self.opset, self.count = draw, opset, 0
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.values: list[str] = ["x", "z"]

    def fresh(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        out = self.fresh()
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"n{out}", **attributes))
        return out

    def const(self, value: object, dtype: type = np.float32) -> str:
        name = self.fresh()
        tensor = numpy_helper.from_array(np.asarray(value, dtype), name)
        if self.draw(st.booleans()):
            self.initializers.append(tensor)
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], name=f"n{name}", value=tensor))
        return name

    def vector(self) -> str:
        return self.const(np.random.default_rng(self.count).normal(1, 0.3, H))

    def read(self) -> str:
        return self.draw(st.sampled_from(self.values))

    def commuted(self, kind: str, a: str, b: str) -> str:
        return self.op(kind, a, b) if self.draw(st.booleans()) else self.op(kind, b, a)

    def mean(self, x: str) -> str:
        if self.opset >= 18:
            return self.op("ReduceMean", x, self.const([-1], np.int64))
        return self.op("ReduceMean", x, axes=[self.draw(st.sampled_from([-1, 2]))])

    def layer_norm(self) -> str:
        x = self.read()
        centred = self.op("Sub", x, self.mean(x))
        square = self.op("Pow", centred, self.const(2.0)) if self.draw(st.booleans()) else self.op("Mul", centred, centred)
        root = self.op("Sqrt", self.commuted("Add", self.mean(square), self.const(self.draw(st.sampled_from([1e-5, 1e-3])))))
        scaled = self.op("Div", centred, root)
        return self.commuted("Add", self.commuted("Mul", scaled, self.vector()), self.vector())

    def gelu(self) -> str:
        x = self.read()
        erf = self.commuted("Add", self.op("Erf", self.op("Div", x, self.const(math.sqrt(2)))), self.const(1.0))
        if self.draw(st.booleans()):
            return self.commuted("Mul", self.commuted("Mul", x, self.const(0.5)), erf)
        return self.commuted("Mul", self.commuted("Mul", x, erf), self.const(self.draw(st.sampled_from([0.5, 0.25]))))

    def linear(self) -> str:
        weight = self.const(np.random.default_rng(self.count).normal(0, 0.3, (H, H)))
        return self.commuted("Add", self.op("MatMul", self.read(), weight), self.vector())

    def norm(self) -> str:
        total = self.op("Add", self.read(), self.read())
        self.values.append(total)
        return self.op("LayerNormalization", total, self.vector(), self.vector(), axis=-1)

    def transposes(self) -> str:
        perms = st.sampled_from([[0, 2, 1], [0, 1, 2], [1, 2, 0], [2, 0, 1]])
        first = self.draw(perms)
        x = self.op("Transpose", self.read(), perm=first)
        back = [first.index(axis) for axis in range(3)]
        return self.op("Transpose", x, perm=back)

    def reshape(self) -> str:
        x = self.read()
        shape = self.op("Shape", x)
        dims = [
            self.op("Unsqueeze", self.op("Gather", shape, self.const(i, np.int64)), self.const([0], np.int64)) for i in (0, 1)
        ]
        split = self.op("Concat", *dims, self.const([2, H // 2], np.int64), axis=0)
        joined = self.op("Concat", *dims, self.const([H], np.int64), axis=0)
        return self.op("Reshape", self.op("Reshape", x, split), joined)

    def nothing(self) -> str:
        x = self.read()
        kind = self.draw(st.sampled_from(["Identity", "Cast", "Mul", "Sub", "Add", "Slice", "Expand", "Dropout"]))
        if kind == "Cast":
            return self.op("Cast", x, to=TensorProto.FLOAT)
        if kind in ("Mul", "Sub", "Add"):
            return self.op(kind, x, self.const(1.0 if kind == "Mul" else 0.0))
        if kind == "Slice":
            bounds = [[0], [self.draw(st.sampled_from([2**31 - 1, H]))], [2]]
            return self.op("Slice", x, *(self.const(bound, np.int64) for bound in bounds))
        if kind == "Expand":
            return self.op("Expand", x, self.op("Shape", x))
        return self.op(kind, x)

    def branch(self) -> str:
        outer = self.read()
        bodies = {}
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
            out = self.fresh()
            inner = self.fresh()
            nodes = [helper.make_node("Identity", [outer], [inner]), helper.make_node(kind, [inner], [out])]
            bodies[name] = helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)])
        return self.op("If", "flag", **bodies)

    def plain(self) -> str:
        kind = self.draw(st.sampled_from(["Relu", "Neg", "Tanh", "Add", "Mul", "Sub"]))
        return self.op(kind, *([self.read(), self.read()] if kind in ("Add", "Mul", "Sub") else [self.read()]))


@st.composite
def models(draw: st.DrawFn) -> ModelProto:
    opset = draw(st.sampled_from([17, 18, 20]))
    writer = Writer(draw, opset)
    pieces: list[Callable[[], str]] = [
        writer.layer_norm,
        writer.gelu,
        writer.linear,
        writer.norm,
        writer.transposes,
        writer.reshape,
        writer.nothing,
        writer.branch,
        writer.plain,
    ]
    for _ in range(draw(st.integers(2, 9))):
        writer.values.append(draw(st.sampled_from(pieces))())
    produced = [
        name
        for node in writer.nodes
        for name in node.output
        if node.op_type not in ("Constant", "Shape", "Gather", "Unsqueeze", "Concat")
    ]
    outputs = dict.fromkeys([writer.values[-1], *draw(st.lists(st.sampled_from(produced), max_size=2))])
    graph = GraphProto(name="random", node=writer.nodes, initializer=writer.initializers)
    for name in ("x", "z"):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence", H]))
    graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    for name in outputs:
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(models())
def test_a_level_on_random_graphs(model: ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    first = rewright.optimize(model)
    problems = [
        (record.name, record.status, record.reason)
        for record in first.report.passes
        if record.status in ("failed", "rolled-back")
    ]
    assert not problems
    assert first.report.verdict in ("passed", "unverified"), first.report.reason
    second = rewright.optimize(first.model, verify="structure")
    assert [record.name for record in second.report.passes if record.status != "unchanged"] == []
    assert model.SerializeToString(deterministic=True) == before
