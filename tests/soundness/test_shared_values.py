"""Inner values that something else uses as well: outputs of the model, bodies of If, a second consumer."""

import numpy as np
import onnx
import pytest
from blocks import SIZE, Block, D, Graph
from judging import SHAPES, assert_equal, assert_settled, optimized, row_tests, session
from onnx import ModelProto, TensorProto, helper

INNER = ("query", "key", "value", "scores", "masked", "probabilities", "context")

# Each row: a block, and how many attention ops it becomes, or what the reason against it says; None where either is right.
ROWS = {
    # The fused op has no output for scores and probabilities; the others may stand beside it.
    **{f"output-{name}": (Block(mask="additive", outputs=(name,)), 0) for name in ("scores", "masked", "probabilities")},
    **{f"output-{name}": (Block(mask="additive", outputs=(name,)), None) for name in ("query", "key", "value", "context")},
    "output-probabilities-and-context": (Block(outputs=("probabilities", "context")), 0),
    "output-present": (Block(cross=True, outputs=("key", "value")), None),
}


test_parity, test_fused, test_a_second_run_changes_nothing = row_tests(ROWS)


def with_output_itself(block: Block, name: str) -> ModelProto:
    """The inner value is an output by its own name, without an Identity between."""
    model = ModelProto()
    model.CopyFrom(block.model)
    model.graph.output.append(helper.make_tensor_value_info(block.value(name), TensorProto.FLOAT, [None] * 4))
    return model


def with_bodies(block: Block, captured: str) -> ModelProto:
    """The branches of an If read the value by its name in the model; ``flag`` chooses."""
    model = ModelProto()
    model.CopyFrom(block.model)
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    out = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    for end, op in (("then", "Neg"), ("else", "Abs")):
        nodes = [
            helper.make_node(op, [captured], [f"{end}_1"]),
            helper.make_node("Relu", [f"{end}_1"], [f"{end}_2"]),
        ]
        body = helper.make_graph(nodes, end, [], [helper.make_tensor_value_info(f"{end}_2", TensorProto.FLOAT, None)])
        if end == "then":
            then = body
    # Right behind the value: a rewrite that makes it later has to see that the If depends on it.
    place = 1 + next(n for n, node in enumerate(graph.node) if captured in node.output)
    graph.node.insert(place, helper.make_node("If", ["flag"], ["branch"], name="if", then_branch=then, else_branch=body))
    graph.output.append(out)
    return model


def inside_body(block: Block) -> ModelProto:
    """The whole block is the body of an If, with its weights outside; the other branch gives x back."""
    source = block.model.graph
    then = helper.make_graph(source.node, "then", [], source.output)
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])],
        "else",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, [None] * 3)],
    )
    node = helper.make_node("If", ["flag"], ["result"], name="if", then_branch=then, else_branch=other)
    inputs = [*source.input, helper.make_tensor_value_info("flag", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("result", TensorProto.FLOAT, [None] * 3)]
    graph = helper.make_graph([node], "outer", inputs, outputs, source.initializer)
    return helper.make_model(graph, opset_imports=block.model.opset_import, ir_version=block.model.ir_version)


def sets(block: Block, flags=(True, False)):
    return [{**block.feeds(*shape, "left"), "flag": np.asarray(flag)} for shape in SHAPES for flag in flags]


@pytest.mark.parametrize("name", INNER)
def test_an_inner_value_that_is_an_output_by_its_own_name(name):
    block = Block(mask="additive")
    model = with_output_itself(block, name)
    after = optimized(model).model
    assert [value.name for value in after.proto.graph.output] == ["y", block.value(name)]
    assert_equal(model, after, [block.feeds(*shape, "left") for shape in SHAPES])


@pytest.mark.parametrize("name", INNER)
def test_an_inner_value_that_only_bodies_use(name):
    block = Block(mask="additive")
    model = with_bodies(block, block.value(name))
    result = optimized(model)
    assert_equal(model, result.model, sets(block))
    assert_settled(result)


def test_bodies_that_use_the_fused_result():
    block = Block(mask="additive")
    model = with_bodies(block, "y")
    result = optimized(model)
    assert_equal(model, result.model, sets(block))
    assert_settled(result)


@pytest.mark.parametrize(
    "block", [Block(mask="additive"), Block(cross=True), Block(causal="k<=q", qkv="split")], ids=["mask", "cross", "causal"]
)
def test_a_block_inside_a_body(block):
    model = inside_body(block)
    result = optimized(model)
    assert_equal(model, result.model, sets(block))
    assert_settled(result)


def test_a_gelu_that_bodies_use():
    """The order of the nodes is right although only bodies read the fused value."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[n,4] x, bool flag) => (float[n,4] y)
        <float one = {1.0}, float half = {0.5}, float root = {1.4142135}> {
            d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) g = Mul(m, half)
            y = If(flag) <then_branch = t () => (float[n,4] p) { p = Neg(g) },
                          else_branch = f () => (float[n,4] q) { q = Relu(g) }>
        }"""
    )
    result = optimized(model)
    assert result.report.counts()["gelu"] == 1
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert_equal(model, result.model, [{"x": x, "flag": np.asarray(flag)} for flag in (True, False)])
    assert session(model).run(None, {"x": x, "flag": np.asarray(True)})[0].min() < 0


def test_keys_and_values_that_two_attentions_share():
    """Two query projections over one key and one value, as in multi-query attention written out."""
    graph = Graph(17)
    x = graph.input("x", "batch", "sequence", D)
    key, value = (graph("MatMul", x, graph.weight(name, D, SIZE)) for name in ("wk", "wv"))
    turned, contexts = graph("Transpose", key, perm=[0, 2, 1]), []
    for name in ("first", "second"):
        query = graph("MatMul", x, graph.weight(name, D, SIZE))
        scores = graph("Mul", graph("MatMul", query, turned), graph.const(0.7))
        contexts.append(graph("MatMul", graph("Softmax", scores, axis=-1), value))
    graph("Concat", *contexts, out="y", axis=-1)
    model = graph.model({"y": (TensorProto.FLOAT, 3)})
    result = optimized(model)
    assert_equal(model, result.model, [Block().feeds(*shape) for shape in SHAPES])
    assert_settled(result)
