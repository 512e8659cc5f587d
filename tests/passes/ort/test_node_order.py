"""Nodes that ONNX Runtime left alone stand where they stood."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
from onnx import GraphProto, parser

from rewright.api import Chain
from rewright.model.load import load
from rewright.passes.ort.ordering import restore_order

ZOO = Path(__file__).parents[2] / "zoo"
SOURCE = """g (float[N] x, bool c) => (float[N] y, float[N] z) {
    a = Neg(x)  b = Abs(x)  d = Add(a, b)  e = Exp(x)  f = Mul(d, e)
    y = If(c) <
        then_branch = t () => (float[N] u) { p = Sin(f)  q = Cos(x)  u = Add(p, q) },
        else_branch = o () => (float[N] v) { v = Tan(e) }>
    z = Log(f)
}"""


def graph(text: str = SOURCE) -> GraphProto:
    return parser.parse_graph(text)


def made(found: GraphProto) -> list[str]:
    return [node.output[0] for node in found.node]


def ordered(found: GraphProto) -> GraphProto:
    restore_order(graph(), found)
    return found


def rearranged(seed: int) -> GraphProto:
    """The same nodes in another topological order."""
    draw, left, there, nodes = random.Random(seed), list(graph().node), {"x", "c"}, []
    while left:
        ready = [
            node for node in left if all(name in there or name not in made(graph()) for name in (*node.input, *_inner(node)))
        ]
        node = draw.choice(ready)
        left.remove(node)
        nodes.append(node)
        there.update(node.output)
    found = graph()
    del found.node[:]
    found.node.extend(nodes)
    return found


def _inner(node: onnx.NodeProto) -> list[str]:
    return ["f", "e"] if node.op_type == "If" else []


def test_every_order_becomes_that_of_the_source():
    assert {tuple(made(rearranged(seed))) for seed in range(20)} != {tuple(made(graph()))}
    for seed in range(20):
        assert ordered(rearranged(seed)) == graph()


def test_an_order_that_is_right_is_left_alone():
    assert ordered(graph()) == graph()


def test_a_new_node_comes_right_before_its_first_reader():
    changed = graph("""g (float[N] x, bool c) => (float[N] z) {
        n = Sqrt(x)  e = Exp(x)  m = Floor(n)  d = Ceil(x)  f = Mul(d, m)  a = Neg(x)  z = Add(f, a)  w = Sign(e)
    }""")
    assert made(ordered(changed)) == ["a", "d", "e", "n", "m", "f", "z", "w"]


def test_what_is_read_comes_first_whatever_stood_first():
    changed = graph("g (float[N] x) => (float[N] z) { e = Exp(x)  d = Add(e, e)  f = Mul(d, e)  a = Neg(f)  z = Log(a) }")
    assert made(ordered(changed)) == ["e", "d", "f", "a", "z"]


def test_what_a_body_captures_comes_before_the_node_that_has_it():
    changed = graph("""g (float[N] x, bool c) => (float[N] y) {
        h = Exp(x)
        y = If(c) < then_branch = t () => (float[N] u) { u = Sin(h) }, else_branch = o () => (float[N] v) { v = Tan(x) }>
    }""")
    assert made(ordered(changed)) == ["h", "y"]


def test_bodies_have_an_order_too():
    changed = graph(SOURCE.replace("p = Sin(f)  q = Cos(x)", "q = Cos(x)  p = Sin(f)"))
    assert changed != graph()
    assert ordered(changed) == graph()


def test_a_graph_with_a_cycle_is_left_alone():
    changed = graph("g (float[N] x) => (float[N] z) { b = Add(a, x)  a = Neg(b)  z = Log(a) }")
    assert made(ordered(changed)) == ["b", "a", "z"]


def test_a_real_exchange_keeps_the_order():
    source = load(ZOO / "llama.ts17.eager.onnx")
    result = Chain("constant-folding{backend=ort}").run(source, verify="structure")
    assert result.report.passes[0].status == "applied"
    place = {tuple(node.output): index for index, node in enumerate(source.proto.graph.node)}
    order = [place.get(tuple(node.output)) for node in result.model.proto.graph.node if node.op_type != "Constant"]
    known = [index for index in order if index is not None]
    assert len(known) > 0.9 * len(order)
    assert known == sorted(known)
