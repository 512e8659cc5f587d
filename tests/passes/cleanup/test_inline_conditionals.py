"""The inline-conditionals pass."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pass_harness import Feeds, as_model, ops, parity, run_pass

from rewright.model.carrier import Model
from rewright.passes.cleanup.constant_folding import ConstantFolding
from rewright.passes.cleanup.inline_conditionals import InlineConditionals

X: Feeds = {"x": np.array([[-2.0, -0.5, 0.0, 3.0], [1.0, -1.0, 4.0, -7.5]], np.float32)}


def inlined(source: str | onnx.ModelProto, feeds: Feeds | None = None) -> Model:
    """The result for a model without any If left: parity, unique names, and a second run that finds nothing."""
    session, after = run_pass(InlineConditionals(), source)
    assert not session.rejections
    assert session.sites
    assert "ai.onnx::If" not in after.op_counts()
    parity(source, after, X if feeds is None else feeds)
    again, once_more = run_pass(InlineConditionals(), after)
    assert not again.sites
    assert once_more.fingerprint() == after.fingerprint()
    return after


def refusal(source: str | onnx.ModelProto) -> str:
    """Why the only If of the model stays; the model is not touched."""
    session, after = run_pass(InlineConditionals(), source)
    assert not session.sites
    assert after.fingerprint() == session.model.fingerprint()
    (rejection,) = session.rejections
    return rejection.reason


def conditional(condition: str, *, then: str, other: str, after: str = "", returns: str = "float[N, 4] y") -> str:
    """A model with one If; ``then`` and ``other`` are bodies with their signatures."""
    return f"""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => ({returns}) <bool c = {{{condition}}}> {{
            y = If (c) < then_branch = t {then}, else_branch = e {other} >
            {after}
        }}"""


@pytest.mark.parametrize(("condition", "op"), [("1", "Relu"), ("0", "Neg")])
def test_the_branch_that_is_taken_stands_for_the_if(condition: str, op: str) -> None:
    source = conditional(condition, then="() => (float[N, 4] p) { p = Relu (x) }", other="() => (float[N, 4] q) { q = Neg (x) }")
    after = inlined(source)
    assert ops(after) == [op]
    assert list(after.proto.graph.node[0].output) == ["y"]
    assert not after.proto.graph.initializer


def test_the_condition_may_be_a_constant_node_of_shape_one() -> None:
    after = inlined("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] z) {
            c = Constant <value = bool[1] {1}> ()
            y = If (c) < then_branch = t () => (float[N, 4] p) { p = Relu (x) }, else_branch = e () => (q) { q = Neg (x) } >
            z = Abs (y)
        }""")
    assert ops(after) == ["Relu", "Abs"]


def test_a_condition_that_known_dimensions_prove_counts_after_constant_folding() -> None:
    source = """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y) <int64 axis = {1}, int64 four = {4}> {
            s = Shape (x)
            d = Gather (s, axis)
            c = Equal (d, four)
            y = If (c) < then_branch = t () => (float[N, 4] p) { p = Relu (x) }, else_branch = e () => (q) { q = Neg (x) } >
        }"""
    assert refusal(source) == "its condition 'c' is computed at run time by Equal 'c'"
    _, folded = run_pass(ConstantFolding(), source)
    assert ops(inlined(folded.proto)) == ["Relu"]


def test_the_other_branch_goes_with_what_only_it_used() -> None:
    session, after = run_pass(
        InlineConditionals(),
        """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y) <bool c = {1}, float[4] w = {1, 2, 3, 4}> {
            a = Exp (x)
            b = Mul (a, w)
            k = Abs (x)
            y = If (c) <
                then_branch = t () => (float[N, 4] p) { p = Relu (k) },
                else_branch = e () => (float[N, 4] q) { r = Neg (b)  q = Add (r, k) }
            >
        }""",
    )
    assert ops(after) == ["Abs", "Relu"]
    assert not after.proto.graph.initializer
    (site,) = session.sites
    assert site.ops_removed == ("If", "Neg", "Add", "Mul", "Exp")
    assert not site.ops_added


def test_captured_values_and_initializers_of_the_branch_are_in_sight() -> None:
    after = inlined("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] z) <bool c = {1}, float[4] w = {1, 2, 3, 4}> {
            a = Mul (x, w)
            y = If (c) <
                then_branch = t () => (float[N, 4] p) <float[4] v = {5, 6, 7, 8}> { s = Add (a, w)  p = Mul (s, v) },
                else_branch = e () => (float[N, 4] q) { q = Neg (x) }
            >
            z = Sub (y, a)
        }""")
    assert ops(after) == ["Mul", "Add", "Mul", "Sub"]
    assert {tensor.name for tensor in after.proto.graph.initializer} == {"w", "v"}


def test_ifs_within_the_branch_are_inlined_too() -> None:
    after = inlined("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y) <bool yes = {1}, bool no = {0}> {
            y = If (yes) <
                then_branch = t () => (float[N, 4] p) {
                    a = Abs (x)
                    p = If (no) <
                        then_branch = tt () => (float[N, 4] pp) { pp = Neg (a) },
                        else_branch = te () => (float[N, 4] pq) {
                            b = Sqrt (a)
                            pq = If (yes) <
                                then_branch = ttt () => (float[N, 4] ppp) { ppp = Add (a, b) },
                                else_branch = tte () => (float[N, 4] ppq) { ppq = Neg (b) }
                            >
                        }
                    >
                },
                else_branch = e () => (float[N, 4] q) { q = If (no) <
                    then_branch = et () => (float[N, 4] qp) { qp = Neg (x) },
                    else_branch = ee () => (float[N, 4] qq) { qq = Exp (x) }
                > }
            >
        }""")
    assert ops(after) == ["Abs", "Sqrt", "Add"]
    assert list(after.proto.graph.node[-1].output) == ["y"]


def test_an_if_in_a_branch_that_may_or_may_not_run_is_inlined_there() -> None:
    source = """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x, bool run) => (float[N, 4] y) <bool yes = {1}> {
            y = If (run) <
                then_branch = t () => (float[N, 4] p) {
                    a = If (yes) < then_branch = tt () => (float[N, 4] b) { b = Relu (x) },
                                   else_branch = te () => (float[N, 4] d) { d = Neg (x) } >
                    p = Add (a, x)
                },
                else_branch = e () => (float[N, 4] q) { q = Neg (x) }
            >
        }"""
    session, after = run_pass(InlineConditionals(), source)
    assert [item.reason for item in session.rejections] == ["its condition 'run' is an input"]
    assert after.op_counts() == {"ai.onnx::If": 1, "ai.onnx::Relu": 1, "ai.onnx::Add": 1, "ai.onnx::Neg": 1}
    for taken in (True, False):
        parity(source, after, {**X, "run": np.array(taken)})


def test_an_if_in_a_loop_is_inlined_in_the_loop() -> None:
    after = inlined("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y) <bool yes = {1}, int64 trips = {3}, bool go = {1}> {
            y = Loop (trips, go, x) < body = l (int64 i, bool again, float[N, 4] s) => (bool on, float[N, 4] r) {
                on = Identity (again)
                r = If (yes) < then_branch = t () => (float[N, 4] a) <float[1] h = {0.5}> { a = Mul (s, h) },
                               else_branch = e () => (float[N, 4] b) { b = Neg (s) } >
            } >
        }""")
    body = next(item.g for item in after.proto.graph.node[0].attribute if item.name == "body")
    assert [node.op_type for node in body.node] == ["Identity", "Mul"]
    assert [tensor.name for tensor in body.initializer] == ["h"]


def test_names_that_are_taken_elsewhere_get_a_number() -> None:
    # Branches side by side may use the same names, for values, initializers and nodes; one graph may not.
    branch = "() => (float[N, 4] p) <float[1] w = {%s}> { [n] a = Mul (x, w)  [m] a_1 = Add (a, a)  [o] p = %s (a_1) }"
    source = f"""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] z) <bool yes = {{1}}, bool no = {{0}}> {{
            u = If (yes) < then_branch = t {branch % ("2", "Neg")}, else_branch = e {branch % ("3", "Abs")} >
            v = If (no) < then_branch = t {branch % ("4", "Neg")}, else_branch = e {branch % ("5", "Abs")} >
            z = Sub (u, v)
        }}"""
    after = inlined(source)
    assert ops(after) == ["Mul", "Add", "Neg", "Mul", "Add", "Abs", "Sub"]
    values = [name for node in after.proto.graph.node for name in node.output]
    held = [tensor.name for tensor in after.proto.graph.initializer]
    nodes = [node.name for node in after.proto.graph.node if node.name]
    assert len({*values, *held}) == len(values) + len(held) == 9
    assert len(set(nodes)) == len(nodes) == 6
    assert {"a", "a_1", "u", "v", "z"} <= set(values)


def test_the_names_of_a_branch_that_goes_are_free() -> None:
    branch = "() => (float[N, 4] p) {{ a = {0} (x)  p = {0} (a) }}"
    after = inlined(conditional("1", then=branch.format("Relu"), other=branch.format("Neg")))
    assert [list(node.output) for node in after.proto.graph.node] == [["a"], ["y"]]


RETURNED_AS_THEY_ARE = {
    "an input": ("", "x", []),
    "a captured value": ("", "k", []),
    "an initializer of the graph": ("", "w", []),
    "an initializer of the branch": ("<float[2, 4] v = {1, 2, 3, 4, 5, 6, 7, 8}>", "v", []),
}


def returning(held: str, value: str, is_output: bool) -> onnx.ModelProto:
    """A model whose branch returns something that it does not compute; onnx's checker admits it."""
    use = "" if is_output else "z = Sqrt (y)"
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[2, 4] x) => (float[2, 4] {"y" if is_output else "z"}, float[2, 4] j)
        <bool c = {{0}}, float[2, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8}}> {{
            k = Abs (x)
            j = Mul (k, w)
            y = If (c) < then_branch = t () => (float[2, 4] p) {{ p = Neg (x) }}, else_branch = e () => (r) {held} {{ }} >
            {use}
        }}""")
    branch = next(item.g for item in model.graph.node[2].attribute if item.name == "else_branch")
    branch.output[0].CopyFrom(helper.make_tensor_value_info(value, TensorProto.FLOAT, [2, 4]))
    return model


@pytest.mark.parametrize("is_output", [True, False])
@pytest.mark.parametrize(("held", "value", "_"), RETURNED_AS_THEY_ARE.values(), ids=RETURNED_AS_THEY_ARE)
def test_a_branch_may_return_what_it_does_not_compute(held: str, value: str, _: list[str], is_output: bool) -> None:
    model = returning(held, value, is_output)
    # ONNX Runtime runs no branch that returns a captured value as it is, so the model is compared with its meaning.
    meaning = as_model(model).proto
    expected = onnx.ModelProto()
    expected.CopyFrom(meaning)
    node = expected.graph.node[2]
    if held:
        expected.graph.initializer.append(numpy_helper.from_array(np.arange(1, 9, dtype=np.float32).reshape(2, 4), "v"))
    node.CopyFrom(helper.make_node("Identity", [value], ["y"]))
    session, after = run_pass(InlineConditionals(), model)
    assert len(session.sites) == 1
    assert ops(after) == ["Abs", "Mul", "Identity" if is_output else "Sqrt"]
    assert after.proto.graph.node[2].input[0] == value
    parity(expected, after, {"x": np.abs(X["x"])})


def test_a_value_that_is_returned_twice_is_computed_once() -> None:
    _, after = run_pass(
        InlineConditionals(),
        """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] u) <bool c = {1}> {
            y, z, v = If (c) <
                then_branch = t () => (float[N, 4] p, float[N, 4] p, float[N, 4] p) { p = Relu (x) },
                else_branch = e () => (float[N, 4] q, float[N, 4] r, float[N, 4] s) { q = Neg (x)  r = Abs (x)  s = Exp (x) }
            >
            u = Neg (v)
        }""",
    )
    assert [(node.op_type, *node.input, *node.output) for node in after.proto.graph.node] == [
        ("Relu", "x", "y"),
        ("Identity", "y", "z"),
        ("Neg", "y", "u"),
    ]
    # ONNX Runtime runs no branch that returns a value twice, so the result is compared with its meaning.
    meaning = """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] u) { y = Relu (x)  z = Relu (x)  u = Neg (z) }"""
    parity(meaning, after, X)


def test_a_returned_value_may_be_used_within_the_branch() -> None:
    after = inlined(
        """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x, bool run) => (float[N, 4] y, float[N, 4] z) <bool c = {1}> {
            y, z = If (c) <
                then_branch = t () => (float[N, 4] p, float[N, 4] r) {
                    p = Relu (x)
                    r = If (c) < then_branch = tt () => (float[N, 4] a) { a = Add (p, x) },
                                 else_branch = te () => (float[N, 4] b) { b = Neg (p) } >
                },
                else_branch = e () => (float[N, 4] q, float[N, 4] s) { q = Neg (x)  s = Abs (x) }
            >
        }""",
        {**X, "run": np.array(True)},
    )
    assert [(node.op_type, *node.input, *node.output) for node in after.proto.graph.node] == [
        ("Relu", "x", "y"),
        ("Add", "y", "x", "z"),
    ]


def test_an_output_that_nothing_reads_needs_nothing() -> None:
    after = inlined("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] z) <bool c = {1}> {
            y, u = If (c) <
                then_branch = t () => (float[N, 4] p, float[N, 4] r) { p = Relu (x)  r = Exp (x) },
                else_branch = e () => (float[N, 4] q, float[N, 4] s) { q = Neg (x)  s = Abs (x) }
            >
            z = Neg (y)
        }""")
    assert ops(after) == ["Relu", "Neg"]


def test_functions_get_constant_nodes_for_the_initializers_of_a_branch() -> None:
    after = inlined("""
        <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 17]> f (v) => (w) {
            c = Constant <value = bool {0}> ()
            w = If (c) < then_branch = t () => (float[N, 4] p) { p = Neg (v) },
                         else_branch = e () => (float[N, 4] q) <float[1] h = {0.5}> { q = Mul (v, h) } >
        }""")
    (function,) = after.proto.functions
    assert [node.op_type for node in function.node] == ["Constant", "Mul"]


def test_a_function_whose_caller_gives_the_condition_keeps_it() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = local.f <c: tensor = bool {1}> (x) }
        <domain: "local", opset_import: ["" : 17]> f <c> (v) => (w) {
            k = Constant <value: tensor = @c> ()
            w = If (k) < then_branch = t () => (p) { p = Neg (v) }, else_branch = e () => (q) { q = Abs (v) } >
        }""")
    assert refusal(model) == "its condition 'k' is given by the caller of the function"


def test_old_models_get_constant_nodes_for_the_initializers_of_a_branch() -> None:
    source = conditional(
        "1",
        then="() => (float[N, 4] p) { h = Constant <value = float {2}> ()  p = Mul (x, h) }",
        other="() => (q) { q = Neg (x) }",
    )
    model = onnx.parser.parse_model(source.replace("ir_version: 9", "ir_version: 3"))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=model.graph.initializer.pop()))
    model.graph.node[1].input[0] = "k"
    after = inlined(model)
    assert ops(after) == ["Constant", "Mul"]
    assert not after.proto.graph.initializer


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("bool c = {1}", "its condition 'c' is an input"),
        ("bool c", "its condition 'c' is an input"),
    ],
)
def test_a_condition_that_the_caller_may_give_is_not_constant(condition: str, reason: str) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x, bool c) => (float[N, 4] y) {
            y = If (c) < then_branch = t () => (float[N, 4] p) { p = Relu (x) }, else_branch = e () => (q) { q = Neg (x) } >
        }""")
    if "=" in condition:
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    assert refusal(model) == reason


def test_a_computed_condition_is_named_with_what_computes_it() -> None:
    source = """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x, float t) => (float[N, 4] y) <float zero = {0}> {
            [test] c = Greater (t, zero)
            y = If (c) < then_branch = t () => (float[N, 4] p) { p = Relu (x) }, else_branch = e () => (q) { q = Neg (x) } >
        }"""
    assert refusal(source) == "its condition 'c' is computed at run time by Greater 'test'"


BRANCHES = {"then": "() => (float[N, 4] p) { p = Relu (x) }", "other": "() => (float[N, 4] q) { q = Neg (x) }"}


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ("bool[2] c = {1, 1}", "has several elements"),
        ("bool[0] c = {}", "is not one boolean, but bool of shape [0]"),
        ("int64 c = {1}", "is not one boolean, but int64 of shape []"),
    ],
)
def test_a_condition_that_is_not_one_boolean_is_left_to_the_checker(held: str, reason: str) -> None:
    source = conditional("1", **BRANCHES).replace("bool c = {1}", held)
    assert refusal(source) == f"its condition 'c' {reason}"


def test_a_branch_with_sparse_initializers_stays() -> None:
    model = onnx.parser.parse_model(conditional("1", **BRANCHES))
    branch = next(item.g for item in model.graph.node[0].attribute if item.name == "then_branch")
    values = numpy_helper.from_array(np.array([2.0], np.float32), "s")
    branch.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1])), [4]))
    branch.node[0].CopyFrom(helper.make_node("Add", ["x", "s"], ["p"]))
    assert refusal(model) == "its then_branch holds sparse initializers"


def test_ifs_in_a_row_whose_branches_use_the_same_names() -> None:
    nodes, names = [], ["x"]
    for index in range(500):
        value = names[-1]
        branches = [
            helper.make_graph(
                [helper.make_node(op, [value], ["r0"]), helper.make_node(op, ["r0"], ["r"])],
                op,
                [],
                [helper.make_tensor_value_info("r", 1, ["N", 4])],
            )
            for op in ("Neg", "Abs")
        ]
        names.append(f"v{index}")
        nodes.append(helper.make_node("If", ["c"], [names[-1]], then_branch=branches[0], else_branch=branches[1]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info(names[-1], 1, ["N", 4])],
        [numpy_helper.from_array(np.array(True), "c")],
    )
    after = inlined(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert ops(after) == ["Neg"] * 1000
    assert len({node.output[0] for node in after.proto.graph.node}) == 1000
