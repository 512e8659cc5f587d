"""Reproducers of wrong rewrites: as small as the mistake, failing in the same way, and passing once the pass is mended."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import wrong_attention_passes
import wrong_graph_passes
import wrong_passes
from mistakes import NOTHING_ELSE, Mistake

import rewright
from rewright import Match, PatternPass

MISTAKES = {
    mistake.name: mistake for mistake in wrong_passes.MISTAKES + wrong_attention_passes.MISTAKES + wrong_graph_passes.MISTAKES
}
NODES = {
    "long-epsilon": 2,
    "any-power": 1,
    "wide-clip": 2,
    "any-scale": 12,
    "power-in-branch": 1,
    "attribute-blind": 2,
    "no-dropped-columns": 2,
    "half-weights": 1,
}
"""How many nodes it takes to show the mistake."""


def left_by(mistake: Mistake, folder: Path, verify: Any = "sites") -> Path:
    (record,) = mistake.run(verify=verify, reproducers=folder).report.passes
    assert record.notes == []
    return Path(record.reproducer)


@pytest.mark.parametrize("name", NODES)
def test_as_many_nodes_as_the_mistake_takes_and_one_input_set(name: str, tmp_path: Path):
    mistake = MISTAKES[name]
    folder = left_by(mistake, tmp_path)
    model = onnx.load(folder / "before.onnx")
    assert len(model.graph.node) == NODES[name]
    assert len(list((folder / "inputs").iterdir())) == 1
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["verify"] == "sites"
    assert failure["reduction"]["nodes_before"] == len(mistake.proto.graph.node)
    assert failure["reduction"]["nodes_after"] == NODES[name]
    _, result = rewright.reproduce(folder, catalog=NOTHING_ELSE.extended(type(mistake.step)))
    (again,) = result.report.passes
    assert again.status == "rolled-back"
    assert "wrong0" in again.reason


def test_inputs_are_the_values_that_occurred_at_the_edge(tmp_path: Path):
    mistake = MISTAKES["scaled-weight"]
    folder = left_by(mistake, tmp_path)
    (inputs,) = (folder / "inputs").iterdir()
    with np.load(inputs) as arrays:
        assert arrays.files == ["x"]
        assert arrays["x"].shape[-1] == 8
    (given,) = onnx.load(folder / "before.onnx").graph.input
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["B", "S", 8]


def test_it_passes_once_the_pass_reads_what_it_took_for_granted(tmp_path: Path):
    class Mended(PatternPass):
        """Reads the epsilon."""

        name = "long-epsilon"
        exactness = "reassociating"

        def pattern(self, op: Any, a: Any, b: Any, gamma: Any, beta: Any) -> Any:
            return op.LayerNormalization(a + b, gamma, beta, axis=-1)

        def rewrite(self, op: Any, match: Match, a: Any, b: Any, gamma: Any, beta: Any) -> Any:
            epsilon = match.root.attribute("epsilon", 1e-5)
            return op.SkipLayerNormalization(a, b, gamma, beta, domain="com.microsoft", epsilon=epsilon)

    folder = left_by(MISTAKES["long-epsilon"], tmp_path)
    _, result = rewright.reproduce(folder, catalog=NOTHING_ELSE.extended(Mended))
    (record,) = result.report.passes
    assert (record.status, record.undone) == ("applied", [])
    assert record.parity is not None
    assert record.parity.status == "passed"


def test_a_failure_of_whole_models_is_reduced_at_the_same_mode(tmp_path: Path):
    mistake = MISTAKES["swallowed-cast"]
    folder = left_by(mistake, tmp_path, verify="model")
    assert [node.op_type for node in onnx.load(folder / "before.onnx").graph.node] == ["Cast", "Cast"]
    assert json.loads((folder / "failure.json").read_text())["verify"] == "model"
    _, result = rewright.reproduce(folder, catalog=NOTHING_ELSE.extended(type(mistake.step)))
    assert result.report.passes[0].status == "rolled-back"


def test_a_model_that_no_part_stands_for_is_left_whole(tmp_path: Path):
    class Counting(PatternPass):
        """Crashes on models that have both of two ops."""

        name = "counting"

        def pattern(self, op: Any, x: Any) -> Any:
            return op.Relu(x)

        def check(self, match: Match, x: Any) -> None:
            match.require(x.producer is not None, "nothing before it", x)
            if x.producer.op == "Neg" and x.producer.inputs[0].producer.op == "Abs":
                raise ArithmeticError("three in a row")

        def rewrite(self, op: Any, x: Any) -> Any:
            return op.Relu(x)

    text = '<ir_version: 10, opset_import: ["": 17]> g (float[B, 4] x) => (float[B, 4] y) { a = Abs(x)  b = Neg(a)  y = Relu(b) }'
    result = rewright.Chain([Counting()], catalog=NOTHING_ELSE).run(onnx.parser.parse_model(text), reproducers=tmp_path)
    (record,) = result.report.passes
    assert record.status == "failed"
    assert record.reproducer is not None
    assert len(onnx.load(Path(record.reproducer) / "before.onnx").graph.node) == 3
