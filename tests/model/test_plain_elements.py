"""Passes may build with graphsurgeon's own classes: its nodes, tensors, bodies and functions are exported like the view's."""

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort

from rewright.model.carrier import Model
from rewright.model.load import load
from rewright.model.view import View
from rewright.passes.graph_pass import graph_pass
from rewright.passes.session import PassSession

TEXT = '<ir_version: 10, opset_import: ["" : 18]> g (float[3] x, bool c) => (float[3] y) { a = Neg(x) y = Abs(a) }'


def opened() -> View:
    return View(load(onnx.parser.parse_model(TEXT)))


def run(model: Model, c: bool = True) -> Any:
    onnx.checker.check_model(model.proto, full_check=True)
    session = ort.InferenceSession(model.session_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array([1, -2, 3], np.float32), "c": np.array(c)})[0]


def test_a_plain_node_and_constant() -> None:
    view = opened()
    absolute = view.graph.nodes[1]
    made = gs.Variable("made", np.float32, [3])
    two = gs.Constant("two", np.array(2, np.float32))
    view.graph.nodes.append(gs.Node("Mul", "times", inputs=[absolute.inputs[0], two], outputs=[made]))
    absolute.inputs[0] = made
    np.testing.assert_array_equal(run(view.to_model()), [2, 4, 6])
    view.graph.toposort().cleanup()
    assert [node.op for node in view.graph.nodes] == ["Neg", "Mul", "Abs"]


def test_a_plain_body_that_captures() -> None:
    view = opened()
    negated, y = view.graph.nodes[0].outputs[0], view.graph.outputs[0]
    view.graph.nodes[1].outputs.clear()
    bodies = {}
    for name, op in (("then_branch", "Sqrt"), ("else_branch", "Exp")):
        out = gs.Variable(f"{op}_out", np.float32, [3])
        squared = gs.Variable(f"{op}_squared", np.float32, [3])
        nodes = [gs.Node("Mul", inputs=[negated, negated], outputs=[squared]), gs.Node(op, inputs=[squared], outputs=[out])]
        bodies[name] = gs.Graph(nodes=nodes, outputs=[out], name=name)
    view.graph.nodes.append(gs.Node("If", "choice", attrs=bodies, inputs=[view.graph.inputs[1]], outputs=[y]))
    view.graph.cleanup()
    assert [node.op for node in view.graph.nodes] == ["Neg", "If"]
    assert [graph.name for graph in view.graphs()] == ["g", "then_branch", "else_branch"]
    assert all(view.opset_of(graph) == 18 for graph in view.graphs())
    np.testing.assert_allclose(run(view.to_model()), [1, 2, 3])
    np.testing.assert_allclose(run(view.to_model(), c=False), np.exp([1, 4, 9]), rtol=1e-6)


def test_a_plain_function() -> None:
    view = opened()
    a, b = gs.Variable("a"), gs.Variable("b")
    scale = gs.Constant("scale", np.array(3, np.float32))
    function = gs.Function("Scale", "local", [gs.Node("Mul", inputs=[a, scale], outputs=[b])], [a], [b], opset=18)
    view.graph.functions.append(function)
    y = view.graph.outputs[0]
    absolute = view.graph.nodes[1]
    absolute.op, absolute.domain = "Scale", "local"
    assert y.inputs[0] is absolute
    made = view.to_model()
    assert {entry.domain: entry.version for entry in made.proto.opset_import} == {"": 18, "local": 1}
    np.testing.assert_array_equal(run(made), [-3, 6, -9])


@graph_pass("double-negation", exactness="exact")
def double_negation(graph: gs.Graph) -> None:
    """Makes Neg of Abs, in graphsurgeon's idiom."""
    for node in [node for node in graph.nodes if node.op == "Abs"]:
        out = node.outputs[0]
        node.outputs.clear()
        (inner,) = graph.layer(op="Abs", inputs=[node.inputs[0]], outputs=["inner"])
        graph.nodes.append(gs.Node("Neg", "negated", inputs=[inner], outputs=[out]))
    graph.cleanup().toposort()


def test_a_decorated_function_in_graphsurgeons_idiom() -> None:
    model = load(onnx.parser.parse_model(TEXT))
    session = PassSession(double_negation(), model)
    session.current.apply(session)
    made = session.view.to_model()
    assert [node.op_type for node in made.proto.graph.node] == ["Neg", "Abs", "Neg"]
    assert [item.key for item in made.proto.graph.node[-1].metadata_props] == ["rewright.pass", "rewright.replaces"]
    (site,) = session.sites
    assert (site.ops_removed, site.ops_added) == (("Abs",), ("Abs", "Neg"))
    np.testing.assert_array_equal(run(made), [-1, -2, -3])
