"""Names that ONNX Runtime changes are given back where every reader means the same value."""

from __future__ import annotations

import pytest
from onnx import GraphProto, TensorProto, checker, helper, parser

from rewright.passes.ort.renamed import restore_names

SOURCE = "a = Relu(x) b = Neg(a) y = Exp(b) z = Abs(b)"


def graph_of(text: str, inputs: str = "float[N] x") -> GraphProto:
    head = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[N] y, float[N] z)'
    proto = parser.parse_model(f"{head} {{ {text} }}")
    checker.check_model(proto)
    return proto.graph


def restored(after: str, source: str = SOURCE, inputs: str = "float[N] x", **types: int) -> list[str]:
    """Each node of the model after, as "op inputs -> outputs"."""
    graph = graph_of(after, inputs)
    graph.value_info.extend(helper.make_tensor_value_info(name, kind, ["N"]) for name, kind in types.items())
    restore_names(graph_of(source, inputs), graph)
    assert len({value.name for value in graph.value_info}) == len(graph.value_info)
    return [f"{node.op_type} {' '.join(node.input)} -> {' '.join(node.output)}" for node in graph.node]


def test_a_value_gets_the_name_back_that_all_its_readers_knew() -> None:
    assert restored("fused = HardSwish(x) y = Exp(fused) z = Abs(fused)") == ["HardSwish x -> b", "Exp b -> y", "Abs b -> z"]


def test_in_bodies_too() -> None:
    branches = "<then_branch = t () => (float[N] p) {{ p = Neg({0}) }}, else_branch = f () => (float[N] q) {{ q = Abs({0}) }}>"
    source = f"a = Relu(x) b = Neg(a) y = Exp(b) z = If (c) {branches.format('b')}"
    after = f"fused = HardSwish(x) y = Exp(fused) z = If (c) {branches.format('fused')}"
    inputs = "float[N] x, bool c"
    graph = graph_of(after, inputs)
    restore_names(graph_of(source, inputs), graph)
    assert [list(attribute.g.node[0].input) for attribute in graph.node[2].attribute] == [["b"], ["b"]]


@pytest.mark.parametrize(
    ("after", "types"),
    [
        # Another reader has the value under its old name still, or two values would get one name.
        ("b = Neg(x) fused = HardSwish(x) y = Exp(fused) z = Abs(b)", {}),
        ("one = HardSwish(x) two = HardSigmoid(x) y = Exp(one) z = Abs(two)", {}),
        # A value that was there before stands for it now.
        ("a = Relu(x) y = Exp(a) z = Abs(a)", {}),
        # It is known to be of another type.
        ("fused = HardSwish(x) y = Exp(fused) z = Abs(fused)", {"fused": TensorProto.FLOAT16, "b": TensorProto.FLOAT}),
        # The nodes that read it are others.
        ("fused = HardSwish(x) y = Sin(fused) z = Cos(fused)", {}),
    ],
)
def test_other_names_stay(after: str, types: dict[str, int]) -> None:
    plain = graph_of(after)
    assert restored(after, **types) == [
        f"{node.op_type} {' '.join(node.input)} -> {' '.join(node.output)}" for node in plain.node
    ]


def test_what_was_said_of_the_new_name_is_forgotten() -> None:
    after = "fused = HardSwish(x) y = Exp(fused) z = Abs(fused)"
    assert restored(after, fused=TensorProto.FLOAT, b=TensorProto.FLOAT)[0] == "HardSwish x -> b"
