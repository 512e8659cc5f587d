"""What quantizing passes did, put together: nodes that share a name are counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

import rewright

GRAPH = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x, bool c) => (float[N, 64] y) {
    y = If (c) <
        then_branch = yes () => (float[N, 64] a) { [product] a = MatMul(x, first) },
        else_branch = no () => (float[N, 64] b) { [product] b = MatMul(x, second) }
    >
}"""


def model(second: str = "float32") -> ModelProto:
    """Two products of one name, one in each branch; the weight of the second may have to be computed."""
    made = parser.parse_model(GRAPH)
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        weight = rng.standard_normal((64, 64), dtype=np.float32) / 8
        made.graph.initializer.append(numpy_helper.from_array(weight, name))
    if second == "given":
        del made.graph.initializer[1]
        made.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [64, 64]))
    return made


@pytest.mark.parametrize(("second", "quantized"), [("float32", 2), ("given", 1)])
def test_nodes_of_one_name_in_two_branches_are_two(second: str, quantized: int) -> None:
    report = rewright.optimize(model(second), chain="quantize-dynamic").report
    found = report.quantization.coverage["MatMul"]
    assert (found.quantized, found.total) == (quantized, 2)
    assert len(report.quantization.missed) == 2 - quantized


def test_what_a_later_pass_quantizes_is_no_longer_missed() -> None:
    report = rewright.optimize(model(), chain="quantize-dynamic{exclude=[product]}, quantize-weights{bits=8}").report
    found = report.quantization.coverage["MatMul"]
    assert (found.quantized, found.total) == (2, 2)
    assert report.quantization.missed == []
