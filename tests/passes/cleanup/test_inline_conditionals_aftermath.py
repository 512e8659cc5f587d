"""The inline-conditionals pass: what the passes after it, and bodies around it, find."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser
from pass_harness import as_model, ops, parity, run_pass

from rewright.model.facts import dtype_of, shape_of
from rewright.passes.cleanup.common_subexpression import CommonSubexpression
from rewright.passes.cleanup.constant_folding import ConstantFolding
from rewright.passes.cleanup.dead_code import DeadCode
from rewright.passes.cleanup.inline_conditionals import InlineConditionals
from rewright.passes.session import PassSession

X = {"x": np.array([[-2.0, -0.5, 0.0, 3.0], [1.0, -1.0, 4.0, -7.5]], np.float32)}


def test_the_dimensions_of_the_branch_are_known_outside_afterwards() -> None:
    source = """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] z) <bool c = {1}, int64 one = {1}> {
            y = If (c) < then_branch = t () => (p) { p = Relu (x) },
                         else_branch = e () => (q) <int64[3] s = {0, 2, 2}> { q = Reshape (x, s) } >
            d = Shape (y)
            n = Gather (d, one)
            f = Cast <to = 1> (n)
            z = Mul (y, f)
        }"""
    model = as_model(source)
    view = None
    for current in (InlineConditionals(), ConstantFolding()):
        session = PassSession(current, model, opened=view)
        view = session.view
        session.ensure_facts()  # also before the branch is part of the graph
        current.apply(session)
    assert view is not None
    after = view.to_model()
    assert ops(after) == ["Relu", "Mul"]
    parity(source, after, X)


def test_what_is_declared_of_a_branch_holds_for_the_output_of_the_if() -> None:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17, "unheard.of" : 1]>
        g (float[N, 4] x) => (float[N, 4] z) <bool c = {1}> {
            y = If (c) < then_branch = t () => (float[N, 4] p) { p = unheard.of.Op (x) },
                         else_branch = e () => (q) { q = Neg (x) } >
            z = Abs (y)
        }""")
    session, _ = run_pass(InlineConditionals(), model)
    (value,) = session.view.graph.nodes[0].outputs
    assert value.name == "y"
    assert dtype_of(value) == np.float32
    assert shape_of(value) == ("N", 4)


def test_initializers_of_a_branch_are_merged_with_equal_ones_of_the_graph() -> None:
    source = """
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] z) <bool c = {1}, float[1] w = {2}> {
            y = If (c) < then_branch = t () => (float[N, 4] p) <float[1] v = {2}> { p = Mul (x, v) },
                         else_branch = e () => (q) { q = Neg (x) } >
            z = Add (y, w)
        }"""
    view = None
    for current in (InlineConditionals(), CommonSubexpression()):
        session = PassSession(current, as_model(source), opened=view)
        view = session.view
        current.apply(session)
    assert view is not None
    after = view.to_model()
    assert [tensor.name for tensor in after.proto.graph.initializer] == ["w"]
    parity(source, after, X)


def test_a_value_that_an_inner_body_returns_as_well_stays_the_same_value() -> None:
    # Neither ONNX Runtime nor onnx's checker takes a body that returns a captured value as it is.
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x, bool run) => (float[N, 4] y, float[N, 4] z) <bool c = {1}> {
            y, z = If (c) <
                then_branch = t () => (float[N, 4] p, float[N, 4] r) {
                    p = Relu (x)
                    r = If (run) < then_branch = tt () => (float[N, 4] a) { a = Neg (p) },
                                   else_branch = te () => (float[N, 4] b) { b = Abs (p) } >
                },
                else_branch = e () => (float[N, 4] q, float[N, 4] s) { q = Neg (x)  s = Abs (x) }
            >
        }""")
    branch = model.graph.node[0].attribute[0].g
    inner = next(item.g for item in branch.node[1].attribute if item.name == "then_branch")
    del inner.node[:]
    inner.output[0].CopyFrom(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 4]))
    session = PassSession(InlineConditionals(), as_model(model))
    session.current.apply(session)
    after = session.view.to_model()
    assert ops(after) == ["Relu", "If", "Identity"]
    relu, conditional, identity = after.proto.graph.node
    assert (list(identity.input), list(identity.output), list(conditional.output)) == (list(relu.output), ["y"], ["z"])
    inner = next(item.g for item in conditional.attribute if item.name == "then_branch")
    assert [value.name for value in inner.output] == list(relu.output)


def test_what_a_branch_that_goes_returned_is_returned_no_more() -> None:
    # k is what the first If's other branch returns; once that is gone, nothing but the graph's output needs its name.
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] z) <bool c = {1}> {
            w = If (c) < then_branch = t () => (float[N, 4] p) { k = Exp (x)  p = If (c) <
                             then_branch = tt () => (float[N, 4] a) { a = Relu (k) },
                             else_branch = te () => (float[N, 4] b) { b = Neg (k) } > },
                         else_branch = e () => (float[N, 4] q) { q = Neg (x) } >
            z = Abs (w)
        }""")
    branch = model.graph.node[0].attribute[0].g
    inner = next(item.g for item in branch.node[1].attribute if item.name == "else_branch")
    del inner.node[:]
    inner.output[0].CopyFrom(helper.make_tensor_value_info("k", TensorProto.FLOAT, ["N", 4]))
    session, after = run_pass(InlineConditionals(), model)
    assert ops(after) == ["Exp", "Relu", "Abs"]
    (exp, *_) = session.view.graph.nodes
    assert not session.editor.is_graph_output(exp.outputs[0])


def test_an_initializer_that_only_the_branch_that_goes_returned_goes() -> None:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[2, 4] x) => (float[2, 4] y) <bool c = {1}, float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
            y = If (c) < then_branch = t () => (float[2, 4] p) { p = Relu (x) }, else_branch = e () => (q) { q = Neg (w) } >
        }""")
    other = next(item.g for item in model.graph.node[0].attribute if item.name == "else_branch")
    del other.node[:]
    other.output[0].CopyFrom(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 4]))
    _, after = run_pass(InlineConditionals(), model)
    assert ops(after) == ["Relu"]
    assert not after.proto.graph.initializer
    again, _ = run_pass(DeadCode(), after)
    assert not again.sites


def test_below_ir_version_4_initializers_of_a_branch_become_constant_nodes() -> None:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y) {
            c = Constant <value = bool {1}> ()
            y = If (c) < then_branch = t () => (float[N, 4] p) { p = Mul (x, h) }, else_branch = e () => (q) { q = Neg (x) } >
        }""")
    branch = next(item.g for item in model.graph.node[1].attribute if item.name == "then_branch")
    branch.initializer.append(numpy_helper.from_array(np.array([0.5], np.float32), "h"))
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    model.ir_version = 3
    _, after = run_pass(InlineConditionals(), model)
    assert ops(after) == ["Constant", "Mul"]
    assert not after.proto.graph.initializer
    parity(expected, after, X)
