"""Symbols that shape inference makes up mean one dimension each, however often it runs."""

from __future__ import annotations

from onnx import parser

from rewright.model import facts
from rewright.model.load import load
from rewright.model.view import View


def test_made_up_symbols_of_two_runs_are_two_dimensions() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x, int64[2] s, int64[2] t) => (float y) {
            a = Reshape(x, s)
            b = Reshape(x, t)
            y = Add(a, b)
        }""")
    view = View(load(model))
    first, second = (node.outputs[0] for node in view.graph.nodes[:2])
    facts.ensure(view)
    before = facts.shape_of(first)
    second.shape, view.facts_stale = None, True
    facts.ensure(view)
    known = facts.shape_of(second)
    assert facts.shape_of(first) == before
    assert before is not None and known is not None and not set(before) & set(known)  # noqa: PT018


def test_made_up_symbols_do_not_reach_the_file() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x, int64[2] s) => (float y) {
            a = Reshape(x, s)
            y = Relu(a)
        }""")
    loaded = load(model)
    view = View(loaded)
    facts.ensure(view)
    assert view.to_model().fingerprint() == loaded.fingerprint()


def test_a_split_that_would_abort_inference_only_costs_the_facts() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]> g (float[N, 6] x) => (float[N, 2] a, float[N, 2] b, float[N, 2] c) {
            a, b, c = Split <axis = 1, num_outputs = 2> (x)
        }""")
    view = View(load(model))
    facts.ensure(view)
    assert "num_outputs" in view.facts_problem
