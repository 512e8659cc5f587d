"""Facts are kept while passes edit: what is new is inferred, nothing is inferred twice, and no derived name is saved."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import pytest
from fact_check import facts_of, known_about
from onnx import TensorProto, helper, parser

import rewright
from rewright.model.elements import make_node, make_variable
from rewright.model.facts import shape_of
from rewright.model.load import load
from rewright.passes.cleanup.dead_code import DeadCode
from rewright.passes.graph_pass import graph_pass
from rewright.passes.session import PassSession
from rewright.shapes.walk import shapes_of

ZOO = Path(__file__).parent.parent / "zoo"
TEXT = """
    <ir_version: 8, opset_import: ["" : 17]> g (float[b, s, 6] x) => (float[?, ?, ?] y) {
        z = Transpose<perm = [0, 2, 1]>(x)
        y = Relu(z)
    }"""


def test_a_level_on_a_known_model_needs_no_inference_of_the_whole(monkeypatch):
    calls = []
    infer = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda *args, **kwargs: calls.append(1) or infer(*args, **kwargs))
    rewright.optimize(ZOO / "bert.ts17.sdpa.onnx", level="O2", verify="off")
    assert not calls


def test_onnx_is_asked_once_about_an_op_that_it_does_not_know():
    text = TEXT.replace('"" : 17', '"" : 17, "acme" : 1').replace("Relu(z)", "acme.Frob(z)")
    session = PassSession(DeadCode(), load(parser.parse_model(text)))
    assert [session.ensure_facts() for _ in range(3)] == [True, False, False]


def test_new_nodes_and_what_reads_them_are_inferred():
    session = PassSession(DeadCode(), load(parser.parse_model(TEXT)))
    session.ensure_facts()
    first, second = session.view.graph.nodes
    made = make_node("Flatten", "flat", "", [session.view.graph.inputs[0]], [make_variable("flat_output")])
    made.attrs["axis"] = 2
    session.editor.insert([made], first)
    second.inputs[0] = made.outputs[0]
    second.outputs[0].shape = None
    second.__dict__["inferred"] = None
    session.editor.finish()
    session.ensure_facts()
    assert shape_of(made.outputs[0]) == shape_of(second.outputs[0]) == ("b*s", 6)


def test_a_function_that_edits_freely_is_inferred_anew():
    @graph_pass("swap-axes-back")
    def swap(graph: gs.Graph) -> None:
        """Leaves the axes as they are."""
        graph.nodes[0].attrs["perm"] = [0, 1, 2]

    session = PassSession(swap(), load(parser.parse_model(TEXT)))
    session.current.apply(session)
    session.ensure_facts()
    assert shape_of(session.view.graph.outputs[0]) == ("b", "s", 6)


def test_names_that_turn_out_to_be_others_are_replaced_everywhere():
    found = facts_of(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[b, s] x, int64[2] n, float[t, 4] w) => (float[?, ?] y) {
            r = Reshape(x, n)
            e = Exp(r)
            y = MatMul(e, w)
        }""")
    )
    assert found["r"] == found["e"]
    assert found["r"] is not None
    assert found["r"][1] == "t"


def test_a_node_that_is_visited_again_does_not_bring_back_a_name_that_gave_way():
    """The product needs what broadcasting makes of the mask's length to be that of the values."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]> g (float[b, s, t] x, float[b, m] mask, float[b, t, 4] v) => (float[?, ?, ?] y)
        <int64[1] one = {1}> { u = Unsqueeze(mask, one)  a = Add(x, u)  y = MatMul(a, v) }"""
    session = PassSession(DeadCode(), load(parser.parse_model(text)))
    session.ensure_facts()
    added = session.view.graph.nodes[1]
    assert shape_of(added.outputs[0]) == ("b", "s", "t")
    added.__dict__["inferred"] = None
    session.ensure_facts()
    assert shape_of(added.outputs[0]) == ("b", "s", "t")


@pytest.mark.parametrize("dims", [["b", None, 4], ["b", "2*s", 4], [None, None, None]])
def test_derived_names_change_no_declaration(dims):
    nodes = [helper.make_node("Relu", ["x"], ["z"]), helper.make_node("Concat", ["z", "x"], ["y"], axis=1)]
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, dims)]
    outputs = [value("y", TensorProto.FLOAT, ["whatever", "it", None])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, value_info=[value("z", TensorProto.FLOAT, ["p", "q", "r"])])
    loaded = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    view, shapes = known_about(loaded)
    assert shape_of(view.graph.outputs[0]) != ("whatever", "it", None)
    assert shapes.dims(view.graph.nodes[0].outputs[0]) == shapes.dims(view.graph.inputs[0])
    assert view.to_model().fingerprint() == loaded.fingerprint()


def test_a_name_that_reads_like_a_product_is_told_apart_from_it():
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["b", "s"]), value("z", TensorProto.FLOAT, ["2*b", "s"])]
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=0), helper.make_node("Relu", ["z"], ["w"])]
    outputs = [value("y", TensorProto.FLOAT, None), value("w", TensorProto.FLOAT, None)]
    found = facts_of(
        helper.make_model(
            helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
    )
    assert found["w"] == ("2*b", "s")
    assert found["y"] == ("(2*b)", "s")


def test_loops_carry_what_their_bodies_declare():
    found = facts_of(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[b, 4] x, int64 n, bool c) => (float[?, ?] y) {
            y = Loop(n, c, x) <body = g2 (int64 i, bool k, float[?, ?] v) => (bool l, float[?, ?] w) {
                l = Identity(k)
                w = Concat<axis = 0>(v, v)
            }>
        }""")
    )
    assert found["y"] is None or found["y"][0] != "b"


def test_reasons_show_unnamed_sizes_as_question_marks():
    session = PassSession(DeadCode(), load(parser.parse_model(TEXT)))
    node = session.view.graph.nodes[0]
    session.reject(node, "axis 'unk__dim3' and unk__(4*unk__dim7 + s) differ from unk__(max(unk__dim3 - 1, 0)); s stays")
    assert session.rejections[0].reason == "axis ? and ? differ from ?; s stays"
    assert shapes_of(session.view) is shapes_of(session.view)
