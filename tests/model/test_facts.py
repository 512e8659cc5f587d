"""Facts: what is known about a value, and that what is unknown stays unknown for that value alone."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from rewright.model import facts
from rewright.model.edit import Editor
from rewright.model.elements import make_constant, make_node, make_variable
from rewright.model.load import load
from rewright.model.view import View

HEADER = '<ir_version: 10, opset_import: ["" : 18, "custom" : 1, "local" : 1]> g '
F32 = np.dtype(np.float32)


def view(body: str, signature: str = "(float[batch,3] x) => (float[batch,3] y)", inner: str = "") -> View:
    opened = View(load(onnx.parser.parse_model(f"{HEADER} {signature} {inner} {{ {body} }}")))
    facts.ensure(opened)
    return opened


def of(opened: View, name: str) -> tuple[object, object]:
    tensor = next(t for g in opened.graphs() for node in g.nodes for t in (*node.outputs, *node.inputs) if t.name == name)
    return facts.dtype_of(tensor), facts.shape_of(tensor)


def test_dtypes_and_symbolic_shapes_are_inferred() -> None:
    opened = view("a = Neg(x) s = Shape(a) t = Transpose(a) y = Abs(a)")
    assert of(opened, "x") == (F32, ("batch", 3))
    assert of(opened, "a") == (F32, ("batch", 3))
    assert of(opened, "t") == (F32, (3, "batch"))
    assert of(opened, "s") == (np.dtype(np.int64), (2,))


def test_one_unknown_op_degrades_one_place() -> None:
    opened = view("a = custom.Mystery(x) b = Neg(a) c = Neg(x) d = Add(b, c) e = Cast <to = 1> (b) y = Add(c, c)")
    assert of(opened, "a") == (None, None)
    assert of(opened, "b") == (None, None)
    assert of(opened, "c") == (F32, ("batch", 3))
    assert of(opened, "e")[0] == F32


def test_the_exporters_value_infos_fill_in_behind_unknown_ops() -> None:
    opened = view("a = custom.Mystery(x) b = Neg(a) y = Neg(x)", inner="<float[batch,7] a>")
    assert of(opened, "a") == (F32, ("batch", 7))
    assert of(opened, "b") == (F32, ("batch", 7))


def test_where_inference_fails_the_exporters_value_infos_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise onnx.shape_inference.InferenceError("[ShapeInferenceError] broken\nmore")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    opened = view("a = Neg(x) b = Neg(a) y = Neg(b)", inner="<float[batch,3] a>")
    assert opened.facts_problem == "[ShapeInferenceError] broken"
    assert of(opened, "a") == (F32, ("batch", 3))
    assert of(opened, "b") == (None, None)
    assert of(opened, "y") == (F32, ("batch", 3))


def test_values_in_bodies_have_facts() -> None:
    branches = "< then_branch = t () => (float[batch,3] p) { h = Neg(x) p = Abs(h) }, else_branch = e () => (q) { q = Exp(x) } >"
    opened = view(f"y = If (c) {branches}", "(float[batch,3] x, bool c) => (float[batch,3] y)")
    assert of(opened, "h") == (F32, ("batch", 3))
    assert of(opened, "q") == (F32, ("batch", 3))


def test_inference_runs_once_until_the_graph_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = view("y = Neg(x)")
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda *_, **__: pytest.fail("inferred again"))
    facts.ensure(opened)


def test_facts_are_refined_and_never_erased() -> None:
    opened = view("y = Neg(x)", "(float[batch,3] x) => (float[batch,n] y)")
    assert of(opened, "y") == (F32, ("batch", 3))
    opened.facts_stale = True
    facts.ensure(opened)
    assert of(opened, "y") == (F32, ("batch", 3))
    source = opened.model.proto.graph.output[0]
    assert opened.to_model().proto.graph.output[0] == source  # the signature stays as it was declared


@pytest.mark.parametrize(
    ("spelling", "value"),
    [
        ("value = float[2] {1, 2}", [1, 2]),
        ("value_float = 1.5", 1.5),
        ("value_floats = [1.5, 2.0]", [1.5, 2]),
        ("value_int = 3", 3),
        ("value_ints = [3, 4]", [3, 4]),
    ],
)
def test_every_spelling_of_a_constant_node_is_constant(spelling: str, value: object) -> None:
    tensor = view(f"k = Constant <{spelling}> () y = Mul(x, x)").graph.nodes[0].outputs[0]
    assert facts.is_constant(tensor)
    found = facts.constant_of(tensor)
    assert found is not None
    assert found.dtype == (np.int64 if "int" in spelling else np.float32)
    np.testing.assert_array_equal(found, value)


def test_a_constant_that_is_edited_is_read_again() -> None:
    node = view("k = Constant <value = float[2] {1, 2}> () y = Neg(x)").graph.nodes[0]
    np.testing.assert_array_equal(facts.constant_of(node.outputs[0]), [1, 2])
    node.attrs["value"].values = np.array([3, 4], np.float32)
    np.testing.assert_array_equal(facts.constant_of(node.outputs[0]), [3, 4])
    node.attrs = {"value_float": 5.0}
    np.testing.assert_array_equal(facts.constant_of(node.outputs[0]), 5)


def test_inputs_overridable_initializers_and_custom_constants_are_not_constant() -> None:
    opened = view(
        "a = Add(x, w) b = custom.Constant () y = Add(a, c)",
        "(float[batch,3] x, float[3] w) => (float[batch,3] y)",
        "<float[3] w = {1, 2, 3}, float[3] c = {1, 2, 3}>",
    )
    add, custom, last = opened.graph.nodes
    assert [facts.is_constant(tensor) for tensor in (*add.inputs, custom.outputs[0], last.inputs[1])] == [
        False,
        False,
        False,
        True,
    ]
    assert facts.constant_of(add.inputs[1]) is None


def test_a_reference_to_an_attribute_of_the_function_is_unknown() -> None:
    function = (
        '<domain: "local", opset_import: ["" : 18]> F <alpha> (a) => (b) '
        "{ k = Constant <value_float : float = @alpha> () b = Mul(a, k) }"
    )
    text = f"{HEADER} (float[3] x) => (float[3] y) {{ y = local.F <alpha = 2.0> (x) }} {function}"
    opened = View(load(onnx.parser.parse_model(text)))
    node = opened.functions[0].nodes[0]
    assert isinstance(facts.attribute(node, "value_float"), gs.Node.AttributeRef)
    assert facts.constant_of(node.outputs[0]) is None


def test_large_weights_are_not_read_for_a_question_about_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.parser.parse_model(f"{HEADER} (float[3] x) => (float[3] y) {{ y = Neg(x) }}")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(5000, np.float32), "w"))
    constant = View(load(proto)).graph.state.initializers["w"]
    monkeypatch.setattr(type(constant._values), "load", lambda _: pytest.fail("the weight was read"))
    assert not facts.is_small_constant(constant, 4999)
    assert facts.is_small_constant(constant, 5000)
    assert facts.is_constant(constant)


def test_attributes_have_the_default_that_the_caller_names() -> None:
    node = view("y = LeakyRelu <alpha = 0.25> (x)").graph.nodes[0]
    assert facts.attribute(node, "alpha", 0.01) == 0.25
    assert facts.attribute(node, "beta", 3) == 3
    assert facts.attribute(view("y = Neg(x)").graph.nodes[0], "axis", -1) == -1


def test_new_standard_nodes_have_facts_at_once_and_unknown_ones_stay_unknown() -> None:
    opened = view("y = Neg(x)")
    x = opened.graph.inputs[0]
    axes = make_constant("axes", np.array([-1], np.int64))
    reduced, strange = make_variable("r"), make_variable("s")
    node = make_node("ReduceMean", "mean", "", [x, axes], [reduced])
    facts.infer_outputs(node, 18)
    assert (facts.dtype_of(reduced), facts.shape_of(reduced)) == (F32, ("batch", 1))
    facts.infer_outputs(make_node("NoSuchOp", "n", "", [x], [strange]), 18)
    assert (facts.dtype_of(strange), facts.shape_of(strange)) == (None, None)
    assert facts.producer(reduced) is node
    assert facts.producer(x) is None
    Editor(opened).discard([node])


def test_a_new_node_with_an_input_of_unknown_type_stays_unknown() -> None:
    known, out = view("y = Neg(x)").graph.inputs[0], make_variable("out")
    facts.infer_outputs(make_node("MatMul", "n", "", [known, make_variable("mystery")], [out]), 18)
    assert (facts.dtype_of(out), facts.shape_of(out)) == (None, None)
