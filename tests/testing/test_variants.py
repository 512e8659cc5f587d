"""The circumstances that the conformance suite puts a model into: each is the same computation, and runs."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from rewright import load
from rewright.model.carrier import all_nodes
from rewright.testing import GraphBuilder, parse, variants
from rewright.testing.sources import content, model_of
from rewright.testing.variants import NoVariantError

X = np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 8)
TEXT = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) <float[4] w = {1, 2, 3, 4}> {
    a = Add(x, w)  b = Relu(a)  c = Constant<value_float = 0.5>()  y = Mul(b, c)  z = Neg(b)
}"""


def run(model, **feeds):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", type(model).SESSION_FOLDER)
    session = ort.InferenceSession(model.session_bytes(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def large():
    """A model whose weight lies in a file."""
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 8])
    g.output(g.Relu(x @ g.weight(8, 64)), "y")
    return load(g.model())


@pytest.mark.parametrize("opset", [11, 13, 18, 23])
def test_another_opset_where_nothing_is_written_otherwise(opset):
    made = variants.at_opset(model_of(TEXT.replace("value_float = 0.5", "value = float {0.5}")), opset)
    assert [entry.version for entry in made.proto.opset_import] == [opset]
    assert made.proto.ir_version >= 7
    for old, new in zip(run(model_of(TEXT), x=X[:, :4]), run(made, x=X[:, :4]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_another_opset_through_the_version_converter():
    before = model_of("g (float[N, 4] x) => (float[N] y) { y = ReduceMean<axes = [1], keepdims = 0>(x) }")
    made = variants.at_opset(before, 18)
    assert [len(node.input) for node in made.proto.graph.node if node.op_type == "ReduceMean"] == [2]
    np.testing.assert_allclose(run(before, x=X[:, :4])[0], run(made, x=X[:, :4])[0])


def test_a_weight_in_a_file_stays_there_at_another_opset():
    before = large()
    made = variants.at_opset(before, 18)
    assert made.proto.graph.initializer[0] == before.proto.graph.initializer[0]
    np.testing.assert_array_equal(run(before, x=X)[0], run(made, x=X)[0])


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        ('<opset_import: ["": 20]> g (float[N] x) => (float[N] y) { y = Gelu(x) }', 17, "opset 17 has no Gelu"),
        ('<opset_import: ["com.example": 1]> g (float[N] x) => (float[N] y) { y = com.example.F(x) }', 12, ""),
    ],
)
def test_no_such_opset(text, opset, reason):
    model = model_of(text)
    if reason:
        with pytest.raises(NoVariantError, match=reason):
            variants.at_opset(model, opset)
    else:
        assert variants.at_opset(model, opset).proto.opset_import[-1].version == opset


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("float64", 1e-6)])
def test_another_dtype(dtype, tolerance):
    text = """
    g (float[N, 4] x, int64[N] ids) => (float[N, 4] y)
    <float[4] w = {1, 2, 3, 4}, float[3, 4] t = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}> {
        a = Add(x, w)
        c = Constant<value_floats = [0.5, 1.5, 2.5, 3.5]>()
        b = Mul(a, c)
        i = Cast<to = 6>(b)
        f = Cast<to = 1>(i)
        s = Shape(f)
        k = ConstantOfShape<value = float[1] {2.0}>(s)
        e = Gather<axis = 0>(t, ids)
        h = Add(k, e)
        y = Add(f, h)
    }"""
    before, ids = model_of(text), np.array([2, 0])
    made = variants.in_dtype(before, dtype)
    (old,), (new,) = run(before, x=X[:, :4], ids=ids), run(made, x=X[:, :4].astype(dtype), ids=ids)
    assert new.dtype == dtype
    np.testing.assert_allclose(old, new, rtol=tolerance)


def test_the_lowest_number_stays_finite():
    text = "g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {-3.4e38, 1}> { y = Add(x, w) }"
    (tensor,) = variants.in_dtype(model_of(text), "float16").proto.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), np.array([-65504, 1], np.float16))


def test_a_weight_in_a_file_gets_another_dtype():
    made = variants.in_dtype(large(), "float64")
    assert run(made, x=X.astype(np.float64))[0].dtype == np.float64


def test_bfloat16_is_well_typed():
    made = variants.in_dtype(model_of(TEXT.replace("value_float = 0.5", "value = float {0.5}")), "bfloat16")
    onnx.checker.check_model(made.proto, full_check=True)


def test_nothing_to_retype():
    with pytest.raises(NoVariantError, match="no float32 input"):
        variants.in_dtype(model_of("g (int64[N] x) => (int64[N] y) { y = Neg(x) }"), "float16")


@pytest.mark.parametrize("make", [lambda: model_of(TEXT), large])
def test_twice(make):
    before = make()
    made = variants.twice(before)
    width = before.proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    first, second = X[:, :width], X[:, :width] + 1
    together = run(made, a_x=first, b_x=second)
    for got, wanted in zip(together, (*run(before, x=first), *run(before, x=second)), strict=True):
        np.testing.assert_array_equal(got, wanted)


BODY = """g (float[N, 4] x, bool c) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
    r = Relu(x)
    y = If(c) <then_branch = t () => (float[N, 4] a) { a = Add(r, w) }, else_branch = e () => (float[N, 4] b) { b = Sub(r, w) }>
}"""


@pytest.mark.parametrize("text", [TEXT, BODY])
def test_in_bodies(text):
    before = model_of(text)
    made = variants.in_bodies(before)
    assert [node.op_type for node in made.proto.graph.node] == ["If"]
    assert sum(1 for _ in all_nodes(made.proto)) == 1 + 2 * sum(1 for _ in all_nodes(before.proto))
    for flag in (True, False):
        feeds = {"x": X[:, :4]} | ({"c": np.array(True)} if text == BODY else {})
        for old, new in zip(run(before, **feeds), run(made, **feeds, rewright_condition=np.array(flag)), strict=True):
            np.testing.assert_array_equal(old, new)


def test_twice_with_shared_weights():
    before = large()
    made = variants.twice(before, shares_weights=True)
    assert len(made.proto.graph.initializer) == 1
    for got, feed in zip(run(made, a_x=X, b_x=X + 1), (X, X + 1), strict=True):
        np.testing.assert_array_equal(got, run(before, x=feed)[0])
    with pytest.raises(NoVariantError, match="no weights"):
        variants.twice(model_of("g (float[N] x) => (float[N] y) { y = Neg(x) }"), shares_weights=True)


def test_weights_as_defaults_of_inputs():
    before = model_of(TEXT)
    made = variants.with_overridable_weights(before)
    assert [info.name for info in made.proto.graph.input] == ["x", "w"]
    np.testing.assert_array_equal(run(made, x=X[:, :4])[0], run(before, x=X[:, :4])[0])
    np.testing.assert_array_equal(run(made, x=X[:, :4], w=np.zeros(4, np.float32))[1], -np.maximum(X[:, :4], 0))
    with pytest.raises(NoVariantError, match="no initializer"):
        variants.with_overridable_weights(made)


@pytest.mark.parametrize("text", [TEXT, BODY])
def test_in_a_function(text):
    before = model_of(text)
    made = variants.in_a_function(before)
    assert [node.op_type for node in made.proto.graph.node] == ["whole"]
    feeds = {"x": X[:, :4]} | ({"c": np.array(True)} if text == BODY else {})
    for old, new in zip(run(before, **feeds), run(made, **feeds), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(NoVariantError, match="no node computes"):
        variants.in_a_function(model_of("g (float[N] x) => (float[N] y, float[N] x) { y = Neg(x) }"))


def test_an_input_that_is_an_output_is_copied_in_bodies():
    before = model_of("g (float[N] x) => (float[N] y, float[N] x) { y = Neg(x) }")
    made = variants.in_bodies(before)
    old, new = run(before, x=X[0]), run(made, x=X[0], rewright_condition=np.array(True))
    assert [array.tolist() for array in old] == [array.tolist() for array in new]
    with pytest.raises(NoVariantError, match="no node"):
        variants.in_bodies(model_of("g (float[N] x) => (float[N] x) { }"))


def test_inner_values_as_outputs_and_with_readers():
    before = model_of(TEXT)
    found = dict(variants.inner_values(before, ["a", "b", "c", "x", "y", "nothing"]))
    assert list(found) == ["a", "b", "c"]
    shown = variants.with_output(before, "a", found["a"])
    np.testing.assert_array_equal(run(shown, x=X[:, :4])[-1], X[:, :4] + np.float32([1, 2, 3, 4]))
    read = variants.with_reader(before, "b", found["b"])
    value = np.maximum(X[:, :4] + np.float32([1, 2, 3, 4]), 0)
    np.testing.assert_array_equal(run(read, x=X[:, :4])[-1], np.concatenate([value, value]))
    with pytest.raises(NoVariantError, match="rank of 'c' is 0"):
        variants.with_reader(before, "c", found["c"])


def test_kernels_that_a_target_lacks():
    before = model_of("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    after = model_of("g (float[N, 4] x) => (float[N, 4] y) { a = com.microsoft.Gelu(x) b = com.example.F(a) y = Relu(b) }")
    assert list(variants.without_kernel(after, before, "cpu")) == []
    assert list(variants.without_kernel(after, before, "portable")) == [
        "the target 'portable' has no kernel for com.microsoft.Gelu",
        "the target 'portable' has standard ops only, not com.example.F",
    ]
    half = variants.in_dtype(after, "float16")
    assert list(variants.without_kernel(half, before, "cpu")) == [
        "the target 'cpu' has no kernel for com.microsoft.Gelu on float16"
    ]
    assert list(variants.without_kernel(after, after, "portable")) == []


def test_equal_content_wherever_the_weights_lie():
    assert content(large()) == content(large())
    assert large().fingerprint() != large().fingerprint()
    proto = onnx.ModelProto()
    proto.CopyFrom(parse(TEXT))
    assert content(load(proto)) == content(model_of(TEXT))
