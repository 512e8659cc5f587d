"""Editing: removal, insertion, redirection; by identity, over bodies, with graph outputs, in linear time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from rewright.model import edit
from rewright.model.edit import Editor, remove_dead_nodes
from rewright.model.elements import drop, make_constant, make_node, make_variable
from rewright.model.load import load
from rewright.model.view import View

HEADER = '<ir_version: 10, opset_import: ["" : 18]> g '
BRANCHES = "< then_branch = t () => (float[3] p) { p = Neg(h) }, else_branch = e () => (float[3] h) { } >"


def view(body: str, signature: str = "(float[3] x) => (float[3] y)", inner: str = "") -> View:
    return View(load(onnx.parser.parse_model(f"{HEADER} {signature} {inner} {{ {body} }}")))


def wide(count: int) -> View:
    proto = onnx.parser.parse_model(f"{HEADER} (float[3] x) => (float[3] y) <float c = {{2.0}}> {{ y = Neg(x) }}")
    proto.graph.node.extend(helper.make_node("Mul", ["x", "c"], [f"v{index}"]) for index in range(count))
    return View(load(proto))


def written(opened: View) -> list[str]:
    return [f"{','.join(node.output)} = {node.op_type}({','.join(node.input)})" for node in opened.to_model().proto.graph.node]


def finished(opened: View, work: Callable[[Editor], object]) -> list[str]:
    editor = Editor(opened)
    work(editor)
    editor.finish()
    return written(opened)


def test_removal_takes_the_node_from_both_sides_and_drops_the_initializer_it_used_last() -> None:
    opened = view("a = Mul(x, c) b = Mul(x, d) y = Neg(x)", inner="<float c = {2.0}, float d = {3.0}>")
    first = opened.graph.nodes[0]
    assert finished(opened, lambda editor: editor.remove(first)) == ["b = Mul(x,d)", "y = Neg(x)"]
    assert [tensor.name for tensor in opened.to_model().proto.graph.initializer] == ["d"]
    assert [node.op for node in opened.graph.inputs[0].outputs] == ["Mul", "Neg"]


def test_an_initializer_that_was_unused_all_along_stays() -> None:
    opened = view("a = Neg(x) y = Neg(x)", inner="<float unused = {2.0}>")
    finished(opened, lambda editor: editor.remove(opened.graph.nodes[0]))
    assert [tensor.name for tensor in opened.to_model().proto.graph.initializer] == ["unused"]


def test_removal_of_many_consumers_looks_at_each_link_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, looked = wide(2000), 0
    original = drop

    def counting(items: Any, wanted: Any) -> None:
        nonlocal looked
        looked += len(items)
        original(items, wanted)

    monkeypatch.setattr(edit, "drop", counting)
    doomed = [node for node in opened.graph.nodes if node.op == "Mul"]
    assert finished(opened, lambda editor: [editor.remove(node) for node in doomed]) == ["y = Neg(x)"]
    assert looked <= 40 * len(doomed)


def test_dead_readers_of_a_shared_value_are_passed_once() -> None:
    opened = wide(1000)
    constant = next(tensor for node in opened.graph.nodes for tensor in node.inputs if tensor.name == "c")
    editor, left = Editor(opened), []
    for node in list(constant.outputs):
        assert editor.is_used(constant)
        left.append(len(constant.outputs))
        editor.remove(node)
    assert not editor.is_used(constant)
    assert left[500] < 600  # or each question would pass all that died before
    editor.finish()
    assert written(opened) == ["y = Neg(x)"]
    assert not opened.to_model().proto.graph.initializer


@pytest.mark.parametrize("backwards", [False, True])
def test_dropping_all_items_in_either_order_is_linear(backwards: bool) -> None:
    class Watched(list):  # type: ignore[type-arg]
        looked = 0

        def __getitem__(self, index: Any) -> Any:
            Watched.looked += 1
            return super().__getitem__(index)

    items = Watched(object() for _ in range(1000))
    for item in reversed(list(items)) if backwards else list(items):
        drop(items, item)
    assert not list(items)
    assert Watched.looked <= 2 * 1000


def test_drop_removes_one_occurrence_by_identity() -> None:
    one, other = make_variable("same"), make_variable("same")
    items = [one, other, one]
    drop(items, one)
    assert [item is wanted for item, wanted in zip(items, (one, other), strict=True)] == [True, True]
    drop(items, make_variable("same"))
    assert len(items) == 2


def test_new_nodes_stand_where_they_were_put_even_at_nodes_that_are_new_or_gone() -> None:
    opened = view("a = Neg(x) b = Abs(x) y = Add(a, b)")
    absolute, addition = opened.graph.nodes[1:]

    def work(editor: Editor) -> None:
        x = opened.graph.inputs[0]
        first = make_node("Exp", "first", "", [x], [make_variable("e")])
        second = make_node("Log", "second", "", [first.outputs[0]], [make_variable("l")])
        third = make_node("Sqrt", "third", "", [x], [make_variable("s")])
        editor.insert([second], at=absolute)
        editor.insert([first], at=second)
        editor.insert([third], at=addition)
        editor.redirect(absolute.outputs[0], second.outputs[0], at=absolute)
        editor.remove(absolute)
        assert editor.graph_of(first) is opened.graph

    assert finished(opened, work) == ["a = Neg(x)", "e = Exp(x)", "l = Log(e)", "s = Sqrt(x)", "y = Add(a,l)"]


def test_redirect_reaches_every_use_twice_read_and_captured_ones_too() -> None:
    opened = view(f"h = Neg(x) m = Mul(h, h) z = If (c) {BRANCHES} y = Add(m, z)", "(float[3] x, bool c) => (float[3] y)")
    h, x = opened.graph.nodes[0].outputs[0], opened.graph.inputs[0]

    def work(editor: Editor) -> None:
        assert len(editor.consumers(h)) == 3
        old = opened.graph.nodes[0]
        made = editor.redirect(h, x, at=old)
        assert [node.op for node in made] == ["Identity"]  # a branch returns h, so its name stays
        assert [node.op for node in editor.consumers(x)] == ["Neg", "Mul", "Mul", "Neg", "Identity"]
        editor.remove(old)

    assert finished(opened, work) == ["h = Identity(x)", "m = Mul(x,x)", "z = If(c)", "y = Add(m,z)"]
    branch = opened.graph.nodes[-2].attrs["then_branch"]
    assert branch.nodes[0].inputs[0] is x


def test_a_graph_output_keeps_its_name_through_an_identity() -> None:
    opened = view("a = Neg(x) y = Identity(a)")
    last = opened.graph.nodes[1]

    def work(editor: Editor) -> None:
        y, a = last.outputs[0], opened.graph.nodes[0].outputs[0]
        assert editor.is_graph_output(y)
        assert not editor.is_graph_output(a)
        editor.remove(last)
        assert len(editor.redirect(y, a, at=last)) == 1

    assert finished(opened, work) == ["a = Neg(x)", "y = Identity(a)"]


def test_redirecting_one_of_several_outputs_leaves_the_others_in_place() -> None:
    opened = view("a, b = Split <num_outputs = 2> (x) c = Neg(b)", "(float[4] x) => (float[2] a, float[2] c)")
    split = opened.graph.nodes[0]
    a, c = split.outputs[0], opened.graph.nodes[1].outputs[0]
    assert finished(opened, lambda editor: editor.redirect(a, c, at=split)) == [
        "a/replaced,b = Split(x)",
        "c = Neg(b)",
        "a = Identity(c)",
    ]
    onnx.checker.check_model(opened.to_model().proto)


def test_a_fan_out_is_redirected_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = view("h = Neg(x) y = Abs(x)")
    h, x = opened.graph.nodes[0].outputs[0], opened.graph.inputs[0]
    for index in range(1000):
        opened.graph.nodes.append(make_node("Exp", f"e{index}", "", [h], [make_variable(f"e{index}")]))
    steps = 0
    original = drop

    def counting(items: Any, wanted: Any) -> None:
        nonlocal steps
        steps += 1 if items and (items[0] is wanted or items[-1] is wanted) else len(items)
        original(items, wanted)

    monkeypatch.setattr(edit, "drop", counting)
    finished(opened, lambda editor: editor.redirect(h, x, at=opened.graph.nodes[0]))
    assert len(x.outputs) == 1002
    assert steps <= 1000


def test_a_new_node_takes_over_name_facts_and_uses() -> None:
    opened = view("a = Neg(x) b = Abs(a) y = Add(b, b)")
    absolute = opened.graph.nodes[1]
    old = absolute.outputs[0]
    old.dtype, old.shape = np.dtype(np.float32), (3,)

    def work(editor: Editor) -> None:
        new = make_node("Exp", "exp", "", [absolute.inputs[0]], [make_variable("temporary")])
        editor.insert([new], at=absolute)
        editor.remove(absolute)
        editor.take_output(old, new)
        assert new.outputs[0] is old
        assert old.inputs[0] is new

    assert finished(opened, work) == ["a = Neg(x)", "b = Exp(a)", "y = Add(b,b)"]


def test_dead_producers_go_with_their_last_user_but_not_through_captures_or_outputs() -> None:
    body = f"a = Neg(x) b = Abs(a) h = Exp(x) d = Mul(b, h) z = If (c) {BRANCHES} y = Identity(z)"
    opened = view(body, "(float[3] x, bool c) => (float[3] y, float[3] a)")
    last = opened.graph.nodes[3]
    removed: list[Any] = []
    finished(opened, lambda editor: removed.extend(editor.remove_with_dead_producers([last])))
    assert sorted(node.op for node in removed) == ["Abs", "Mul"]  # a is an output, h is captured


def test_a_removed_control_flow_node_releases_what_its_bodies_captured() -> None:
    opened = view(f"h = Neg(x) z = If (c) {BRANCHES} y = Abs(x)", "(float[3] x, bool c) => (float[3] y)")
    h = opened.graph.nodes[0].outputs[0]
    finished(opened, lambda editor: editor.remove(opened.graph.nodes[1]))
    assert list(h.outputs) == []


def test_discarded_nodes_leave_no_trace() -> None:
    opened = view("y = Neg(x)")
    editor, x = Editor(opened), opened.graph.inputs[0]
    constant = make_constant("c", np.ones(3, np.float32))
    made = make_node("Add", "add", "", [x, constant], [make_variable("s")])
    editor.discard([made])
    assert [node.op for node in x.outputs] == ["Neg"]
    assert written(opened) == ["y = Neg(x)"]


def test_dead_nodes_are_found_through_bodies_and_loops_of_uses() -> None:
    body = f"h = Neg(x) k = Abs(x) l = Exp(k) z = If (c) {BRANCHES} y = Identity(z)"
    opened = view(body, "(float[3] x, bool c) => (float[3] y)")
    removed = remove_dead_nodes(list(opened.graphs()))
    assert [node.op for node in removed] == ["Abs", "Exp"]
    assert [node.op for node in opened.graph.inputs[0].outputs] == ["Neg"]


def test_edits_of_nodes_reach_the_export() -> None:
    opened = view(
        "a = Gemm <alpha = 0.5, transB = 1> (x, w) y = Constant <value = float[3] {1, 2, 3}> ()",
        "(float[3,3] x) => (float[3,3] a)",
        "<float[3,3] w = {1,0,0,0,1,0,0,0,1}>",
    )
    gemm, constant = opened.graph.nodes
    gemm.attrs["alpha"] = np.float32(2)
    del gemm.attrs["transB"]
    gemm.attrs["beta"] = 1.0
    constant.attrs["value"].values = np.zeros(3, np.float32)
    made = opened.to_model().proto.graph.node
    assert {item.name: item.f for item in made[0].attribute} == {"alpha": 2.0, "beta": 1.0}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(made[1].attribute[0].t), np.zeros(3))
    opened.graph.state.initializers["w"].values = np.ones((3, 3), np.float32)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(opened.to_model().proto.graph.initializer[0]), np.ones((3, 3)))


def test_a_domain_change_alone_reaches_the_export() -> None:
    opened = view("y = Gelu(x)")
    opened.graph.nodes[0].domain = "com.microsoft"
    made = opened.to_model().proto
    assert made.graph.node[0].domain == "com.microsoft"
    assert [entry.domain for entry in made.opset_import] == ["", "com.microsoft"]
    again = View(load(made))
    again.graph.nodes[0].domain = None
    assert again.to_model().proto.graph.node[0].domain == ""


def test_a_renamed_initializer_is_written_once() -> None:
    opened = view("y = Mul(x, c)", inner="<float c = {2.0}>")
    opened.graph.state.initializers["c"].name = "scale"
    made = opened.to_model().proto.graph
    assert [tensor.name for tensor in made.initializer] == ["scale"]
    assert list(made.node[0].input) == ["x", "scale"]


def test_a_value_info_that_an_edit_made_wrong_is_replaced() -> None:
    proto = onnx.parser.parse_model(f"{HEADER} (float[3] x) => (float[3] y) <float[3] a> {{ a = Neg(x) y = Abs(a) }}")
    opened = View(load(proto))
    a = opened.graph.nodes[0].outputs[0]
    a.dtype, a.shape = np.dtype(np.float16), (3,)
    (made,) = opened.to_model().proto.graph.value_info
    assert made.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
