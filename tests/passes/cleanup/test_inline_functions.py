"""The inline-functions pass."""

from __future__ import annotations

import numpy as np

from rewright.passes.cleanup.inline_functions import InlineFunctions
from rewright.testing import check_pass, refuses

NESTED = """
    <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) { a = local.leaky <alpha = 0.25> (x)  y = local.twice (a) }
    <domain: "local", opset_import: ["" : 17]> leaky <alpha> (v) => (w) { w = LeakyRelu <alpha: float = @alpha> (v) }
    <domain: "local", opset_import: ["" : 17, "local" : 1]> twice (v) => (w) { t = local.leaky <alpha = 0.5> (v)  w = Add (t, t) }
"""


def test_nested_functions_are_inlined_with_their_attributes() -> None:
    result = check_pass(InlineFunctions, NESTED)
    assert not result.model.proto.functions
    nodes = result.model.proto.graph.node
    assert [node.op_type for node in nodes] == ["LeakyRelu", "LeakyRelu", "Add"]
    np.testing.assert_allclose([node.attribute[0].f for node in nodes[:2]], [0.25, 0.5])
    assert all(("rewright.pass", "inline-functions") in [(p.key, p.value) for p in node.metadata_props] for node in nodes)
    assert result.report.passes[0].parity is not None
    assert result.report.passes[0].parity.outputs[0].max_abs == 0


def test_a_function_of_another_opset_stays_with_a_reason() -> None:
    text = """
        <ir_version: 9, opset_import: ["" : 17, "local" : 1]> g (float[N, 4] x) => (float[N, 4] y) { y = local.old (x) }
        <domain: "local", opset_import: ["" : 13]> old (v) => (w) { w = Relu (v) }"""
    refuses(InlineFunctions, text, "^the function old follows ai.onnx 13, which the model does not$")


def test_a_call_inside_a_body_is_inlined() -> None:
    text = """
        <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 4] x, bool c) => (float[N, 4] y) {
            y = If (c) <
                then_branch = t () => (float[N, 4] p) { p = local.double (x) },
                else_branch = e () => (float[N, 4] q) { q = Neg (x) }
            >
        }
        <domain: "local", opset_import: ["" : 17]> double (v) => (w) { w = Add (v, v) }"""
    result = check_pass(InlineFunctions, text)
    assert result.model.op_counts() == {"ai.onnx::Add": 1, "ai.onnx::If": 1, "ai.onnx::Neg": 1}
