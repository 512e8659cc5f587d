"""What quantizing each node alone costs."""

from __future__ import annotations

import json

import joblib
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from rewright.tuning.request import QuantizationRequest
from rewright.tuning.sensitivity import sensitivity

GRAPH = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] y) {
    [first] a = MatMul(x, easy)
    [second] b = MatMul(a, hard)
    [third] c = MatMul(b, plain)
    s = Mul(c, a)
    y = Add(c, s)
}"""


def model() -> onnx.ModelProto:
    """Three products with weights, of which the second has one entry so large that 8 bits for all of it leave little else."""
    rng = np.random.default_rng(0)
    made = parser.parse_model(GRAPH)
    for name in ("easy", "hard", "plain"):
        weight = rng.standard_normal((64, 64), dtype=np.float32) / 8
        if name == "hard":
            weight[0, :] = 40.0
        made.graph.initializer.append(numpy_helper.from_array(weight, name))
    return made


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((16, 64), dtype=np.float32)
    return {"x": x}


REQUEST = QuantizationRequest(level="O0", preset="arm64")


def test_the_node_that_costs_most_is_first(feeds) -> None:
    found = sensitivity(model(), request=REQUEST, inputs=feeds, jobs=1)
    assert found.nodes[0].node == "second"
    assert {entry.node for entry in found.nodes} == {"first", "second", "third"}
    costs = [entry.sqnr_db for entry in found.nodes]
    assert costs == sorted(costs)
    assert costs[0] < costs[1] - 3
    assert all(entry.bytes_after < 0.3 * entry.bytes_before for entry in found.nodes)
    assert (found.inputs, found.chain) == ("given", "O0, quantize-dynamic")


def test_other_processes_measure_the_same(feeds) -> None:
    alone = sensitivity(model(), request=REQUEST, inputs=feeds, jobs=1)
    told: list[tuple[str, int, int]] = []
    together = sensitivity(
        model(), request=REQUEST, inputs=feeds, jobs=2, progress=lambda what, done, total: told.append((what, done, total))
    )
    assert together.nodes == alone.nodes
    assert told[-1] == ("measuring nodes", 3, 3)


def test_joblib_decides_where_it_runs(feeds) -> None:
    alone = sensitivity(model(), request=REQUEST, inputs=feeds, jobs=1)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert sensitivity(model(), request=REQUEST, inputs=feeds).nodes == alone.nodes


def test_what_is_chosen_and_what_is_missed(feeds) -> None:
    found = sensitivity(
        model(), request=QuantizationRequest(level="O0", preset="arm64", exclude=["second"]), inputs=feeds, jobs=1
    )
    assert {entry.node for entry in found.nodes} == {"first", "third"}
    assert found.missed == {"second": "excluded by 'second'"}


def test_the_command(command_line, tmp_path, feeds) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **feeds)
    command = ("sensitivity", tmp_path / "m.onnx", "--inputs", tmp_path / "x.npz", "--jobs", "1", "--preset", "arm64", "-O", "0")
    outcome = command_line(*command, "--top", "1", "-o", tmp_path / "ranking.json")
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[1].split()[:2] == ["second", "MatMul"]
    assert "and 2 more, which cost less" in outcome.out
    assert outcome.err == f"ranking: {tmp_path / 'ranking.json'}\n"
    ranking = json.loads(command_line(*command, "--json").out)
    assert ranking["nodes"] == json.loads((tmp_path / "ranking.json").read_text())["nodes"]
    assert ranking["schema_version"] == 1
    assert "made up" in command_line(*command[:2], "--jobs", "1", "-O", "0").err
    assert "fits no node" in command_line(*command, "--exclude", "/none/*").assert_one_error()
