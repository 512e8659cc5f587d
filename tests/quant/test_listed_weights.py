"""Models that list their weights among the inputs: before IR 4 all do, after it those inputs have defaults."""

from __future__ import annotations

import pytest
from integer_models import proto_of, weights
from onnx import helper, numpy_helper

import rewright
from rewright.model.load import load
from rewright.verify.interface import check_interface

X = weights(3, 32)
CHAINS = ("quantize-dynamic", "quantize-weights", "quantize-static{use_run_inputs=true}", "float16", "O2, quantize-dynamic")


def model(ir_version: int):
    held = numpy_helper.from_array(weights(32, 64), "w")
    inputs = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", ["b", 32]), ("w", [32, 64]))]
    result = helper.make_tensor_value_info("y", 1, ["b", 64])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "g", inputs, [result], [held])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=ir_version)


@pytest.mark.parametrize("chain", CHAINS)
def test_before_ir_4_they_are_constants(chain):
    result = rewright.Chain(chain).run(model(3), inputs=[{"x": X}])
    assert result.report.verdict == "passed"
    assert result.report.passes[-1].status == "applied"
    written = proto_of(result)
    assert written.ir_version == 3
    listed = {value.name for value in written.graph.input}
    assert listed - {"x"} == {tensor.name for tensor in written.graph.initializer}
    assert not check_interface(load(model(3)), load(written)).problems


@pytest.mark.parametrize("step", ["quantize-dynamic{backend=ort}", "quantize-static{use_run_inputs=true, backend=ort}"])
def test_onnx_runtimes_quantizer_is_not_given_those(step):
    report = rewright.Chain(step).run(model(3), inputs=[{"x": X}]).report
    assert [entry.reason.partition(":")[0] for entry in report.quantization.missed] == [
        "ONNX Runtime's quantizer writes initializers, which a model of IR version 3 lists among its inputs"
    ]


@pytest.mark.parametrize("chain", CHAINS[:3])
def test_defaults_that_callers_may_replace_are_no_constants(chain):
    report = rewright.Chain(chain).run(model(8), inputs=[{"x": X, "w": weights(32, 64)}]).report
    assert report.passes[-1].status == "unchanged"
    assert "1 inputs have a default that callers may replace, such as 'w'" in " ".join(report.passes[-1].notes)
    assert len(report.quantization.missed) == 1
