"""What memory float16 takes: weights are converted one by one, and its result runs without all of them in float32 at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx.parser import parse_model

COUNT, WIDTH = 20, 2048
BYTES = COUNT * WIDTH * WIDTH * 4
MEASURED = """
import resource, sys, rewright
from rewright.model.memory import rss_peak
result = rewright.Chain("float16").run(rewright.load(sys.argv[1]))
result.save(sys.argv[2])
assert result.report.verdict == "passed", result.report.reason
print(rss_peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def test_memory_holds_one_weight_at_a_time_and_so_does_the_comparison(tmp_path: Path) -> None:
    data = (np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32).tobytes()
    steps = "".join(f"h{place + 1} = MatMul(h{place}, w{place}) " for place in range(COUNT))
    text = f"g (float[N, {WIDTH}] h0) => (float[N, {WIDTH}] h{COUNT}) {{ {steps} }}"
    proto = parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    with (tmp_path / "weights.bin").open("wb") as file:
        for place in range(COUNT):
            file.write(data)
            tensor = TensorProto(name=f"w{place}", data_type=1, dims=(WIDTH, WIDTH), data_location=TensorProto.EXTERNAL)
            for key, value in (("location", "weights.bin"), ("offset", place * len(data)), ("length", len(data))):
                tensor.external_data.add(key=key, value=str(value))
            proto.graph.initializer.append(tensor)
    source, target = tmp_path / "model.onnx", tmp_path / "half.onnx"
    source.write_bytes(proto.SerializeToString())
    command = [sys.executable, "-c", MEASURED, str(source), str(target)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    own, child = map(int, run.stdout.split())
    # the weights themselves are mapped; all of them in float16, or in float32 again, would be half as much or as much more
    assert own < BYTES + 200 * 2**20
    assert child < BYTES * 1.5 + 150 * 2**20
    assert {tensor.data_type for tensor in onnx.load(target, load_external_data=False).graph.initializer} == {TensorProto.FLOAT16}
