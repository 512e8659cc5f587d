"""GraphBuilder: what it writes, what it infers, what it refuses."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from rewright import UsageError
from rewright.testing import GraphBuilder


def run(g, **feeds):
    model = g.model()
    onnx.checker.check_model(model, full_check=all(not node.domain for node in model.graph.node))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def types(model):
    return {
        info.name: (
            TensorProto.DataType.Name(info.type.tensor_type.elem_type),
            [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None) for dim in info.type.tensor_type.shape.dim],
        )
        for info in model.graph.output
    }


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


X = np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 8)


def test_the_example_of_the_documentation():
    g = GraphBuilder(opset=17)
    x = g.input("x", "float32", ["batch", 8])
    y = g.Relu(x @ g.weight(8, 8) + 0.5)
    g.output(y)
    model = g.model()
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add", "Relu"]
    assert types(model) == {"relu": ("FLOAT", ["batch", 8])}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    (result,) = run(g, x=X)
    np.testing.assert_allclose(result, np.maximum(X @ constants(model)["weight"] + 0.5, 0), rtol=1e-5, atol=1e-6)


def test_operators():
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 8])
    y = 1.0 - (-x) / 2 + (2.0 * x - x**2) @ np.eye(8, dtype=np.float32) + 1 / (x + 3.0) + x.__rsub__(1) + X[:1]
    g.output(y)
    (result,) = run(g, x=X)
    np.testing.assert_allclose(result, 1 + X / 2 + 2 * X - X**2 + 1 / (X + 3) + 1 - X + X[:1], rtol=1e-5, atol=1e-5)
    assert {array.dtype for array in constants(g.model()).values()} == {np.dtype(np.float32)}


def test_an_array_on_the_left_makes_a_node_and_not_an_array_of_them():
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 8])
    g.output(X[:1] * x)
    np.testing.assert_array_equal(run(g, x=X)[0], X[:1] * X)


@pytest.mark.parametrize(
    ("dtype", "elem_type"),
    [("float16", 10), ("float64", 11), ("bfloat16", 16), (np.int32, 6), ("bool", 9), ("string", 8), (1, 1)],
)
def test_dtypes(dtype, elem_type):
    g = GraphBuilder()
    g.output(g.Identity(g.input("x", dtype, ["N"])))
    assert g.model().graph.input[0].type.tensor_type.elem_type == elem_type
    assert g.model().graph.output[0].type.tensor_type.elem_type == elem_type


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_numbers_take_the_type_of_the_other_operand(dtype):
    g = GraphBuilder()
    x = g.input("x", dtype, ["N", 8])
    g.output(g.Relu(x * 2 + 0.5))
    assert {tensor.data_type for tensor in g.model().graph.initializer} == {g.model().graph.input[0].type.tensor_type.elem_type}


def test_numbers_and_lists_take_the_type_that_the_op_asks_for():
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 8])
    values, indices = g.TopK(x, [3])
    body = g.body()
    body.input("i", "int64", [])
    kept = body.input("keep", "bool", [])
    carried = body.input("carried", "float32", ["N", 3])
    body.output(body.Identity(kept))
    body.output(carried + 1.0)
    g.output(g.Loop(2, True, values, body=body), shape=["N", 3])
    g.output(indices)
    g.output(g.Clip(x, 0, 6))
    first, second, third = run(g, x=X)
    np.testing.assert_allclose(first, np.sort(X)[:, :-4:-1] + 2)
    assert second.dtype == np.int64
    np.testing.assert_array_equal(third, np.clip(X, 0, 6))


def test_constants():
    g = GraphBuilder()
    made = [
        g.constant(1.0),
        g.constant([1.0, 2.0]),
        g.constant(3),
        g.constant([[1, 2]]),
        g.constant(True),
        g.constant(np.float64(2)),
        g.constant(np.zeros((2, 0), np.int32)),
        g.constant([1, 2], "float16"),
    ]
    assert [(value.dtype.name, value.shape) for value in made] == [
        ("float32", ()),
        ("float32", (2,)),
        ("int64", ()),
        ("int64", (1, 2)),
        ("bool", ()),
        ("float64", ()),
        ("int32", (2, 0)),
        ("float16", (2,)),
    ]


def test_weights_are_seeded():
    def weights(seed):
        g = GraphBuilder(seed=seed)
        first, second = g.weight(4, 4), g.weight(4, 4, dtype="float16", scale=2.0)
        g.output(g.Add(first, g.Cast(second, to="float32")))
        return constants(g.model())

    assert all(np.array_equal(weights(0)[name], array) for name, array in weights(0).items())
    assert not np.array_equal(weights(0)["weight"], weights(1)["weight"])
    assert not np.array_equal(weights(0)["weight"], weights(0)["weight_1"])
    assert weights(0)["weight_1"].dtype == np.float16


def test_several_outputs_and_those_that_are_left_out():
    g = GraphBuilder(18)
    x = g.input("x", "float32", ["N", 8])
    a, b, c = g.Split(x, [2, 2, 4], outputs=3, axis=1)
    g.output(g.Clip(a, None, 1.0))
    g.output(b)
    g.output(c, name="rest")
    model = g.model()
    assert model.graph.node[1].input[1] == ""
    assert types(model) == {"clip": ("FLOAT", ["N", 2]), "split_1": ("FLOAT", ["N", 2]), "rest": ("FLOAT", ["N", 4])}
    assert [array.shape for array in run(g, x=X)] == [(2, 2), (2, 2), (2, 4)]


def test_bodies_capture_and_nest():
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 8])
    flag = g.input("flag", "bool", [])
    yes, no = g.body(), g.body()
    inner_yes, inner_no = yes.body(), yes.body()
    inner_yes.output(inner_yes.Add(x, inner_yes.constant(1.0)))
    inner_no.output(x)
    positive = yes.Greater(yes.ReduceSum(x, keepdims=0), 0.0)
    yes.output(yes.If(positive, then_branch=inner_yes, else_branch=inner_no))
    no.output(no.Neg(x))
    y = g.If(flag, then_branch=yes, else_branch=no)
    g.output(y)
    assert list(types(g.model()).values()) == [("FLOAT", ["N", 8])]
    np.testing.assert_array_equal(run(g, x=X + 1, flag=np.array(True))[0], X + 1 + np.float32(1))
    np.testing.assert_array_equal(run(g, x=X - 1, flag=np.array(True))[0], X - 1)
    np.testing.assert_array_equal(run(g, x=X, flag=np.array(False))[0], -X)


def test_other_domains():
    g = GraphBuilder(domains={"ai.onnx.ml": 3})
    x = g.input("x", "float32", ["N", 8])
    y = g.Gelu(x + g.weight(8), domain="com.microsoft")
    a, _, _, d = g.SkipLayerNormalization(y, x, g.weight(8), g.weight(8), domain="com.microsoft", epsilon=1e-5, outputs=4)
    g.output(a)
    g.output(d)
    model = g.model()
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 17, "ai.onnx.ml": 3, "com.microsoft": 1}
    assert list(types(model).values()) == [("FLOAT", ["N", 8])] * 2
    assert [array.shape for array in run(g, x=X)] == [(2, 8), (2, 8)]


def test_attributes_have_the_schemas_type():
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 8])
    g.output(g.LeakyRelu(x, alpha=1))
    g.output(g.Constant(value=np.arange(3.0, dtype=np.float32)))
    g.output(g.Cast(x, to=np.float16))
    node = g.model().graph.node[0]
    assert node.attribute[0].type == onnx.AttributeProto.FLOAT
    assert [array.dtype.name for array in run(g, x=X)] == ["float32", "float32", "float16"]


def test_names_stay_unique():
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 8])
    body = g.body()
    body.output(body.Relu(x))
    other = g.body()
    other.output(other.Relu(x))
    y = g.Relu(g.Relu(x))
    g.output(g.If(g.input("flag", "bool", []), then_branch=body, else_branch=other))
    g.output(y)
    g.output(y, name="again")
    g.output(x, name="input_again")
    model = g.model()
    branches = [attribute.g for attribute in model.graph.node[2].attribute]
    names = [
        name for nodes in (model.graph.node, *(branch.node for branch in branches)) for node in nodes for name in node.output
    ]
    assert len(set(names)) == len(names) == 8 - 1
    assert len(run(g, x=X, flag=np.array(True))) == 4


def test_output_types_that_are_stated():
    g = GraphBuilder()
    y = g.Mystery(g.input("x", "float32", ["N"]), domain="com.example")
    g.output(y)
    with pytest.raises(UsageError, match="the type of the output 'mystery' is not inferred") as raised:
        g.model()
    assert "output(value, dtype=" in raised.value.hint
    g = GraphBuilder()
    g.output(g.Mystery(g.input("x", "float32", ["N"]), domain="com.example"), dtype="float16", shape=["N", None])
    assert types(g.model()) == {"mystery": ("FLOAT16", ["N", None])}


def test_an_unknown_op_is_refused_with_a_proposal():
    g = GraphBuilder(17)
    x = g.input("x")
    with pytest.raises(UsageError, match="opset 17 has no op 'Rleu'") as raised:
        g.Rleu(x)
    assert "Did you mean Relu" in raised.value.hint
    with pytest.raises(UsageError, match="opset 17 has no op 'Gelu'") as raised:
        g.Gelu(x)
    assert raised.value.hint == "Choose another opset."
    with pytest.raises(AttributeError, match=r"op\('relu', ...\)"):
        g.relu(x)


def test_values_of_another_graph_are_refused():
    g, other = GraphBuilder(), GraphBuilder()
    body = g.body()
    inner = body.constant(1.0)
    for value in (other.input("x"), inner):
        with pytest.raises(UsageError, match="belongs to another graph"):
            g.Relu(value)
    with pytest.raises(UsageError, match="a body is not a model"):
        body.model()
    with pytest.raises(UsageError, match="the graph has no output"):
        g.model()
    with pytest.raises(UsageError, match="there is no dtype 'flaot32'"):
        g.input("y", "flaot32")


def test_names_that_are_taken_and_numbers_that_do_not_fit_are_refused():
    g = GraphBuilder()
    x = g.input("x", "int64", ["N"])
    with pytest.raises(UsageError, match="the name 'x' is taken"):
        g.input("x")
    with pytest.raises(UsageError, match="the name 'x' is taken"):
        g.output(g.Neg(x), name="x")
    with pytest.raises(UsageError, match=r"2\.5 is no int64"):
        g.Mul(x, 2.5)
    g.output(x * 2.0)
    np.testing.assert_array_equal(run(g, x=np.array([1, 2]))[0], [2, 4])


def test_a_large_weight_is_not_in_the_way_of_inference():
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 64])
    g.output(g.Reshape(x @ g.weight(64, 64), g.constant([0, 8, 8])))
    assert types(g.model()) == {"reshape": ("FLOAT", ["N", 8, 8])}
