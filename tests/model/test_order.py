"""Topological order: stable, iterative, aware of what bodies capture."""

import sys

import onnx
import pytest
from onnx import helper

from rewright.model.errors import ModelError
from rewright.model.load import load
from rewright.model.order import captured, is_sorted, stable_order
from rewright.model.view import View

HEADER = '<ir_version: 10, opset_import: ["" : 18]> g '


def view(body: str, signature: str = "(float[3] x) => (float[3] y)") -> View:
    return View(load(onnx.parser.parse_model(f"{HEADER} {signature} {{ {body} }}")))


def names(nodes: list[object]) -> list[str]:
    return [node.outputs[0].name for node in nodes]  # type: ignore[attr-defined]


def test_a_right_order_is_returned_as_it_is() -> None:
    nodes = view("a = Neg(x) b = Abs(a) c = Exp(x) y = Add(b, c)").graph.nodes
    assert stable_order(nodes) is nodes


def test_among_the_ready_the_earliest_comes_first() -> None:
    nodes = view("a = Neg(x) b = Abs(a) c = Exp(x) d = Log(x) y = Sum(b, c, d)").graph.nodes
    a, b, c, d, y = nodes
    assert names(stable_order([y, d, b, c, a])) == ["d", "c", "a", "b", "y"]
    assert names(stable_order([b, a, c, d, y])) == ["a", "b", "c", "d", "y"]


def test_a_value_that_a_nested_body_captures_comes_before_it() -> None:
    branches = "then_branch = t2 () => (float[3] p) { p = Neg(h) }, else_branch = e2 () => (float[3] q) { q = Identity(x) }"
    inner = f"y1 = If (c) <{branches}>"
    body = (
        f"h = Abs(x) y = If (c) < then_branch = t () => (float[3] y1) {{ {inner} }}, else_branch = e () => (float[3] h) {{ }} >"
    )
    nodes = view(body, "(float[3] x, bool c) => (float[3] y)").graph.nodes
    assert not is_sorted(nodes[::-1])
    assert names(stable_order(nodes[::-1])) == ["h", "y"]
    assert {tensor.name for tensor in captured(nodes[1])} >= {"h", "x", "c"}
    assert captured(nodes[0]) == []


def test_a_cycle_is_named() -> None:
    nodes = view("a = Neg(x) b = Abs(a) y = Exp(b)").graph.nodes
    nodes[0].inputs[0] = nodes[1].outputs[0]
    with pytest.raises(ModelError, match="cycle") as caught:
        stable_order(nodes)
    assert caught.value.hint


def test_a_chain_of_100_000_is_loaded_reversed_and_sorted_without_recursion() -> None:
    count = 100_000
    proto = onnx.parser.parse_model(f"{HEADER} (float[3] x) => (float[3] v{count}) {{ v1 = Neg(x) }}")
    proto.graph.node.extend(helper.make_node("Neg", [f"v{index}"], [f"v{index + 1}"]) for index in range(1, count))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        opened = View(load(proto))
        order = list(opened.graph.nodes)
        opened.graph.nodes.reverse()
        assert stable_order(opened.graph.nodes) == order
        opened.graph.cleanup()
        made = opened.to_model()
    finally:
        sys.setrecursionlimit(limit)
    assert made.node_count() == count
    assert made.proto.graph.node[0].input[0] == "x"
