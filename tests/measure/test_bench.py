"""Measuring models side by side: the figures, their spread, and models that cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from rewright.measure.bench import bench
from rewright.measure.record import ModelTiming, speedup, summarize
from rewright.model.errors import UsageError

TOKENS = """<ir_version: 8, opset_import: ["" : 17]> g (int64[batch, sequence] ids) => (float[batch, sequence, 4] y) {
    y = Gather(table, ids)
}"""


def chain_of(count: int, width: int = 128) -> onnx.ModelProto:
    """``count`` products of a square matrix, one after the other."""
    body = "\n".join(f"x{number + 1} = MatMul(x{number}, w)" for number in range(count))
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, {width}] x0) => (float[N, {width}] x{count}) {{
        {body} }}"""
    model = parser.parse_model(text)
    weight = np.eye(width, dtype=np.float32) + 0.01
    model.graph.initializer.append(numpy_helper.from_array(weight / width, "w"))
    return model


def test_what_takes_longer_is_measured_to_take_longer() -> None:
    feeds = {"x0": np.ones((256, 128), np.float32)}
    report = bench([chain_of(2), chain_of(40), chain_of(2)], inputs=feeds, rounds=5, warmup=1, threads=1)
    first, longer, same = report.models
    assert [len(model.rounds) for model in report.models] == [5, 5, 5]
    assert longer.speedup.high < 0.5
    assert longer.low <= longer.median <= longer.high
    assert 0.2 < same.speedup.estimate < 5
    assert first.speedup is None
    assert (report.inputs, report.threads, report.is_complete) == ("given", 1, True)
    assert all(model.rss_peak > 1e7 and model.load_seconds > 0 for model in report.models)


def test_a_speedup_comes_with_the_range_that_chance_leaves_open() -> None:
    rng = np.random.default_rng(0)
    slow = (2.0 + 0.1 * rng.standard_normal(40)).tolist()
    fast = (1.0 + 0.05 * rng.standard_normal(40)).tolist()
    found = speedup(slow, fast)
    assert found.low < 2.0 < found.high
    assert 1.9 < found.estimate < 2.1
    few = speedup(slow[:5], fast[:5])
    assert few.high - few.low > found.high - found.low
    drifting = [time * factor for time, factor in zip(slow, np.linspace(1, 3, 40), strict=True)]
    assert speedup(drifting, drifting).low == speedup(drifting, drifting).high == 1  # what slows both down is no difference


def test_medians_and_quartiles() -> None:
    timing = ModelTiming(name="a", rounds=[5.0, 1.0, 2.0, 3.0, 4.0])
    summarize([timing])
    assert (timing.low, timing.median, timing.high) == (2.0, 3.0, 4.0)


def test_a_model_that_does_not_run_does_not_end_the_others() -> None:
    broken = chain_of(2)
    broken.graph.node[0].domain = "no.such.domain"
    broken.opset_import.append(onnx.helper.make_opsetid("no.such.domain", 1))
    report = bench([chain_of(1), broken, chain_of(1)], inputs={"x0": np.ones((1, 128), np.float32)}, rounds=2, warmup=0)
    assert [bool(model.error) for model in report.models] == [False, True, False]
    assert "no.such.domain" in report.models[1].error
    assert not report.is_complete
    assert report.models[2].speedup is not None


def test_made_inputs_have_the_sizes_that_are_asked_for() -> None:
    model = parser.parse_model(TOKENS)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((40, 4), np.float32), "table"))
    report = bench([model], rounds=1, warmup=0, sizes={"batch": 3})
    assert report.input_sets == ["made (batch=3, sequence=128)"]
    assert report.inputs == "made"
    with pytest.raises(UsageError, match="no dimension 'rows'"):
        bench([model], sizes={"rows": 3})


def test_a_model_with_few_positions_gets_shorter_inputs() -> None:
    bert = Path(__file__).parents[1] / "zoo" / "bert.ts17.sdpa.onnx"
    report = bench([bert], rounds=1, warmup=0)
    assert report.models[0].median is not None
    assert "sequence=128" not in report.input_sets[0]


def test_the_command(command_line, tmp_path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    onnx.save(chain_of(1), first)
    onnx.save(chain_of(4), second)
    quick = ("--rounds", "2", "--warmup", "0", "--size", "N=4")
    outcome = command_line("bench", first, second, *quick)
    assert (outcome.status, outcome.err) == (0, "")
    assert {"first.onnx", "second.onnx"} <= set(outcome.out.split())
    assert "inputs made: made (N=4" in outcome.out
    found = json.loads(command_line("bench", first, second, *quick, "--json").out)
    assert [model["name"] for model in found["models"]] == ["first.onnx", "second.onnx"]
    assert found["models"][1]["speedup"].keys() == {"estimate", "low", "high"}


def test_the_command_tells_what_could_not_be_measured(command_line, tmp_path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    onnx.save(chain_of(1), first)
    onnx.save(chain_of(1, width=64), second)
    outcome = command_line("bench", first, second, "--rounds", "1", "--warmup", "0", "--quiet")
    assert "second.onnx could not be measured" in outcome.assert_one_error(status=1)
    assert "--size is 'N'" in command_line("bench", first, "--size", "N").assert_one_error()
    assert "these sizes do not go together" in command_line("bench", first, "--size", "N=0").assert_one_error()
    assert "absent.onnx does not exist" in command_line("bench", "absent.onnx").assert_one_error()


def test_a_model_that_ends_its_process_does_not_end_the_others() -> None:
    header = '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>'
    sound = parser.parse_model(f"{header} g (float[B, S, 16] x) => (float[B, S, 16] y) {{ y = Relu(x) }}")
    # an attention without any batch
    deadly = parser.parse_model(f"""{header} g (float[B, S, 16] x) => (float[B, S, 16] y)
        <int64[2] starts = {{0, 0}}, int64[2] ends = {{0, 1}}, int64[2] axes = {{0, 1}}, int32[1] total = {{1}}> {{
            e = Slice(x, starts, ends, axes)
            lengths = ConstantOfShape<value = int32[1] {{0}}>(none)
            a = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2>(e, e, e, , , lengths, total)
            s = ReduceSum<keepdims = 0>(a)
            y = Add(x, s)
    }}""")
    deadly.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "none"))
    report = bench([sound, deadly, sound], inputs={"x": np.ones((1, 2, 16), np.float32)}, rounds=1, warmup=0)
    assert [bool(model.rounds) for model in report.models] == [True, False, True]
    assert "ONNX Runtime's process died of" in report.models[1].error
