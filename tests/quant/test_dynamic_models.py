"""``quantize-dynamic`` on exported models, plain and fused: coverage, the default budget, a second run, memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from integer_models import ZOO, covered, proto_of, quantize, reasons
from onnx import TensorProto, helper

import rewright

MODELS = [
    "bert.ts17.sdpa", "gpt2.ts17.eager", "gpt2.dyn18.sdpa", "llama.ts17.eager", "t5_enc.ts17.eager", "vit.dyn23.sdpa",
    "distilbert.ts17.eager",
]  # fmt: skip
EXPECTED = ("a table of", "no operand is constant", "the weight is the left operand")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("level", ["", "O2"])
def test_each_product_by_a_weight_becomes_integers(name, level):
    result = quantize(ZOO / f"{name}.onnx", chain=level)
    assert result.report.verdict == "passed"
    assert all(reason.startswith(EXPECTED) for reason in reasons(result).values())
    coverage = result.report.quantization.coverage
    assert sum(counts.quantized for op, counts in coverage.items() if op != "Gather") >= 5
    assert result.report.quantization.bytes_after < 0.4 * result.report.quantization.bytes_before
    assert all(output.sqnr_db > 20 for output in result.report.parity.outputs if output.sqnr_db is not None)
    proto = proto_of(result)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    again = rewright.Chain("quantize-dynamic").run(proto, verify="structure")
    assert again.report.passes[0].status == "unchanged"
    assert {entry.outcome for entry in covered(again).values()} <= {"missed"}


MEASURED = """
import sys, rewright
from rewright.model.memory import rss_peak
rewright.Chain("quantize-dynamic").run(rewright.load(sys.argv[1]), verify="off").save(sys.argv[2])
print(rss_peak())
"""


def test_memory_holds_one_weight_at_a_time(tmp_path):
    count, width = 24, 2048  # 16 MiB each, 384 MiB in all
    data = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32).tobytes()
    with (tmp_path / "weights.bin").open("wb") as file:
        for _ in range(count):
            file.write(data)
    tensors = []
    for place in range(count):
        tensor = TensorProto(name=f"w{place}", data_type=1, dims=(width, width), data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "weights.bin"), ("offset", place * len(data)), ("length", len(data))):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    nodes = [helper.make_node("MatMul", [f"x{place}", f"w{place}"], [f"x{place + 1}"]) for place in range(count)]
    ends = [helper.make_tensor_value_info(name, 1, ["N", width]) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    (tmp_path / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "model.onnx"), str(tmp_path / "out.onnx")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < 1.3 * count * len(data) + 150e6  # the input stays mapped, and those pages count
    made = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert {node.op_type for node in made.graph.node} == {"DynamicQuantizeMatMul"}
    assert sum(path.stat().st_size for path in tmp_path.glob("out.onnx*")) < 0.26 * count * len(data)
