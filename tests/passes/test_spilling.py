"""Large constants that passes make do not wait in memory for the next export."""

from __future__ import annotations

import numpy as np
from onnx import parser

from rewright.model.elements import WeightRef, make_constant, make_node, make_variable
from rewright.model.load import load
from rewright.passes.cleanup.dead_code import DeadCode
from rewright.passes.session import PassSession

MODEL = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 1024] x) => (float[N, 1024] y) { y = Relu(x) }'


def test_a_large_constant_of_a_site_waits_in_the_spill_file() -> None:
    session = PassSession(DeadCode(), load(parser.parse_model(MODEL)))
    graph = session.view.graph
    (relu,) = graph.nodes
    large, small = (make_constant(name, np.full(shape, 0.5, np.float32)) for name, shape in (("w", (1024, 1024)), ("b", (1024,))))
    product = make_node("Gemm", "gemm", "", [graph.inputs[0], large, small], [make_variable("gemm_output")])
    session.editor.insert([product], relu)
    relu.inputs[0] = product.outputs[0]
    session.record(graph, [], [product])
    session.editor.finish()
    assert isinstance(large._values, WeightRef)
    assert isinstance(small._values, np.ndarray)
    model = session.view.to_model()
    values = {tensor.name: model.tensor(tensor) for tensor in model.proto.graph.initializer}
    assert {name: array.shape for name, array in values.items()} == {"w": (1024, 1024), "b": (1024,)}
    assert all((array == 0.5).all() for array in values.values())
