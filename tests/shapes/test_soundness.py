"""Facts hold when models run: real exports at several sizes, and random graphs of shape arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from fact_check import known_about, violations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper, parser

from rewright.model.facts import shape_of
from rewright.model.load import load
from rewright.shapes import inference
from rewright.shapes.dimensions import is_vague
from rewright.verify.inputs import make_input_sets

ZOO = sorted((Path(__file__).parent.parent / "zoo").glob("*.onnx"))
SIZES = ((2, 3), (1, 1), (4, 7), (3, 2), (1, 5), (5, 1))


@pytest.mark.parametrize("path", ZOO, ids=[path.stem for path in ZOO])
def test_every_fact_about_real_exports_holds_and_none_is_missing(path):
    model = load(path)
    wrong, ran = violations(model, [inputs.arrays for inputs in make_input_sets(model)])
    assert not wrong
    assert ran > 1
    view, _ = known_about(model)
    shapes = {tensor.name: shape_of(tensor) for node in view.graph.nodes for tensor in node.outputs if tensor.name}
    assert not {name: shape for name, shape in shapes.items() if shape is None or any(map(is_vague, shape))}


class Writer:
    """Writes ops over float values of a known rank and over int64 scalars that come from shapes."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.values: list[tuple[str, int]] = [("x", 3), ("y", 2)]
        self.scalars: list[str] = []

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n{name}", **attributes))
        return name

    def const(self, value: object, dtype: type = np.int64) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def value(self, least: int = 0) -> tuple[str, int]:
        return self.draw(st.sampled_from([held for held in self.values if held[1] >= least]))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def scalar(self) -> str:
        """A dimension, a small number, or arithmetic of them."""
        kind = self.number(0, 3)
        if kind == 0 or not self.scalars:
            name, rank = self.value(1)
            made = self.op("Gather", self.op("Shape", name), self.const(self.number(0, rank - 1)))
        elif kind == 1:
            made = self.const(self.number(-3, 9))
        else:
            kind = self.draw(st.sampled_from(("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max")))
            other = self.const(self.number(1, 4)) if kind in ("Div", "Mod") else self.scalar()  # dividing by 0 ends the process
            made = self.op(kind, self.draw(st.sampled_from(self.scalars)), other)
        self.scalars.append(made)
        return made

    def vector(self) -> str:
        return self.op("Unsqueeze", self.scalar(), self.const([0]))

    def step(self) -> None:
        made = getattr(self, self.draw(st.sampled_from(STEPS)))()
        if made is not None:
            self.values.append(made)

    def transpose(self) -> tuple[str, int]:
        name, rank = self.value(1)
        return self.op("Transpose", name, perm=self.draw(st.permutations(range(rank)))), rank

    def slice(self) -> tuple[str, int]:
        name, rank = self.value(1)
        ends = [self.vector() if self.draw(st.booleans()) else self.const([self.number(-9, 9)]) for _ in range(2)]
        if self.draw(st.booleans()):
            ends[0] = self.const([0])
        steps = self.const([self.draw(st.sampled_from([1, 1, 2, -1]))])
        return self.op("Slice", name, *ends, self.const([self.number(0, rank - 1)]), steps), rank

    def add(self) -> tuple[str, int]:
        (one, left), (two, right) = self.value(), self.value()
        return self.op(self.draw(st.sampled_from(["Add", "Mul"])), one, two), max(left, right)

    def reduce(self) -> tuple[str, int]:
        name, rank = self.value(1)
        keeps = self.number(0, 1)
        axes = [self.number(0, rank - 1)]
        return self.op("ReduceMax", name, self.const(axes), keepdims=keeps), rank if keeps else rank - 1

    def concat(self) -> tuple[str, int]:
        (one, rank), (two, other) = self.value(1), self.value(1)
        return self.op("Concat", one, two if rank == other else one, axis=self.number(0, rank - 1)), rank

    def product(self) -> tuple[str, int]:
        (one, left), (two, right) = self.value(2), self.value(2)
        if self.draw(st.booleans()):
            perm = [*range(left - 2), left - 1, left - 2]
            two, right = self.op("Transpose", one, perm=perm), left
        return self.op("MatMul", one, two), max(left, right)

    def flatten(self) -> tuple[str, int]:
        name, rank = self.value()
        return self.op("Flatten", name, axis=self.number(0, rank)), 2

    def reshape(self) -> tuple[str, int]:
        name, rank = self.value(1)
        shape = self.op("Shape", name)
        parts = [self.op("Slice", shape, self.const([axis]), self.const([axis + 1])) for axis in range(rank)]
        merged = self.number(0, rank - 1)
        if self.draw(st.booleans()):
            parts[merged] = self.const([-1])
        elif merged + 1 < rank:
            parts[merged : merged + 2] = [self.op("Mul", parts[merged], parts[merged + 1])]
        return self.op("Reshape", name, self.op("Concat", *parts, axis=0)), len(parts)

    def expand(self) -> tuple[str, int]:
        name, rank = self.value()
        like, other = self.value()
        return self.op("Expand", name, self.op("Shape", like)), max(rank, other)

    def filled(self) -> tuple[str, int]:
        count = self.number(1, 2)
        return self.op("ConstantOfShape", self.op("Concat", *(self.vector() for _ in range(count)), axis=0)), count

    def counted(self) -> tuple[str, int]:
        made = self.op("Range", self.scalar(), self.scalar(), self.const(self.draw(st.sampled_from([1, 2, -1]))))
        return self.op("Cast", made, to=TensorProto.FLOAT), 1

    def pooled(self) -> tuple[str, int] | None:
        name, rank = self.value()
        if rank != 3:
            return None
        kernel = self.number(1, 4)
        options = {"strides": [self.number(1, 3)], "kernel_shape": [kernel], "pads": [self.number(0, kernel - 1)] * 2}
        return self.op(self.draw(st.sampled_from(["MaxPool", "AveragePool"])), name, **options), 3

    def padded(self) -> tuple[str, int]:
        name, rank = self.value(1)
        return self.op("Pad", name, self.const([self.number(-1, 2) for _ in range(2 * rank)])), rank

    def tiled(self) -> tuple[str, int]:
        name, rank = self.value(1)
        return self.op("Tile", name, self.op("Concat", *(self.vector() for _ in range(rank)), axis=0)), rank

    def einsum(self) -> tuple[str, int] | None:
        (one, left), (two, right) = self.value(), self.value()
        return (self.op("Einsum", one, two, equation="abc,abd->bcd"), 3) if left == right == 3 else None

    def squeezed(self) -> tuple[str, int]:
        name, rank = self.value(1)
        if self.draw(st.booleans()):
            return self.op("Unsqueeze", name, self.const([self.number(0, rank)])), rank + 1
        return self.op("Squeeze", name, self.const([self.number(0, rank - 1)])), rank - 1

    def model(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", 6]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["s", None]),
        ]
        outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
        nodes = [*self.nodes, helper.make_node("Identity", [self.values[-1][0]], ["out"])]
        graph = helper.make_graph(nodes, "random", inputs, outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


STEPS = (
    "transpose", "slice", "slice", "add", "add", "reduce", "concat", "product", "flatten", "reshape", "reshape", "expand",
    "filled", "counted", "pooled", "padded", "tiled", "einsum", "squeezed",
)  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    writer = Writer(draw)
    for _ in range(draw(st.integers(2, 7))):
        writer.step()
    return writer.model()


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(models())
def test_every_fact_about_random_graphs_holds(model):
    feeds = [
        {"x": np.ones((batch, length, 6), np.float32), "y": np.ones((length, width), np.float32)}
        for batch, length in SIZES
        for width in (1, 6)
    ]
    wrong, _ = violations(model, feeds)
    assert not wrong


def test_the_check_notices_a_wrong_fact(monkeypatch):
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[b, s] x) => (float[?, ?] y) {
            z = Transpose<perm = [1, 0]>(x)
            y = Relu(z)
        }""")
    feeds = [{"x": np.ones((2, 3), np.float32)}]
    assert violations(model, feeds) == ([], 1)
    monkeypatch.setitem(inference._RULES[""], "Transpose", lambda known, node: [known.dims(node.inputs[0])])
    wrong, _ = violations(model, feeds)
    assert len(wrong) > 1
