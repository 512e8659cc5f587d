"""Runs the O2 level on a model and holds the result against the original on ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from blocks import Block
from onnx import GraphProto, ModelProto

import rewright
from rewright.model.carrier import Model
from rewright.model.load import load
from rewright.run import RunResult

SHAPES = [(batch, sequence) for batch in (1, 3) for sequence in (1, 5)]
PADDINGS = ("right", "left", "holes", "row")
ATTENTION = ("com.microsoft::Attention", "com.microsoft::MultiHeadAttention", "com.microsoft::GroupQueryAttention")


def optimized(model: ModelProto, chain: str = "O2", target: str = "cpu") -> RunResult:
    """The level's result, which no gate had to mend; the parity gate is not run."""
    before = model.SerializeToString(deterministic=True)
    result = rewright.optimize(model, chain=chain, target=target, verify="structure", on_failure="raise")
    assert model.SerializeToString(deterministic=True) == before
    after = result.model.proto
    assert list(after.graph.input) == list(model.graph.input)
    assert list(after.graph.output) == list(model.graph.output)
    assert_sorted(after.graph)
    return result


def assert_settled(result: RunResult) -> None:
    """The chain again changes nothing."""
    again = rewright.optimize(result.model, chain=result.report.chain, verify="off")
    fired = {name: count for name, count in again.report.counts().items() if count}
    assert not fired, fired
    assert again.model.fingerprint() == result.model.fingerprint()


@cache
def fused_block(block: Block) -> RunResult:
    """``optimized`` for a block; the tests of one process share it."""
    return optimized(block.model)


def assert_block_equal(block: Block) -> None:
    """The optimized block computes what the block does, for batches 1 and 3, sequences 1 and 5, and every kind of padding."""
    masked = any(value.name in ("mask", "additive") for value in block.model.graph.input)
    paddings = PADDINGS if masked else PADDINGS[:1]
    sets = [block.feeds(*shape, padding) for shape in SHAPES for padding in paddings]
    assert_equal(block.model, fused_block(block).model, sets)


def assert_fused(block: Block, expected: int | str) -> None:
    """``expected``: how many attention ops there have to be, or what the reason for there being none says."""
    result = fused_block(block)
    if isinstance(expected, int):
        assert fused(result) == expected, reasons(result)
        return
    assert fused(result) == 0
    assert any(re.search(expected, reason) for reason in reasons(result)), reasons(result)


def assert_sorted(graph: GraphProto, outer: frozenset[str] = frozenset()) -> None:
    """Each value is made once, and before it is used, also where a body captures it."""
    known = set(outer) | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        assert set(node.input) <= known, node.name
        for attribute in node.attribute:
            if attribute.HasField("g"):
                assert_sorted(attribute.g, frozenset(known))
        assert not (set(node.output) - {""}) & known, node.name
        known.update(node.output)
    assert {value.name for value in graph.output} <= known


def session(model: ModelProto | Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    loaded = load(model)  # its weights are a file for as long as it lives
    return ort.InferenceSession(loaded.session_bytes(), options, providers=["CPUExecutionProvider"])


def assert_equal(
    before: ModelProto | Model, after: ModelProto | Model, sets: Iterable[dict[str, Any]], tolerance: float = 1e-5
) -> None:
    """Both give the same outputs, with the same NaNs, on every input set."""
    first, second = session(before), session(after)
    compared = 0
    for feeds in sets:
        for expected, actual in zip(first.run(None, feeds), second.run(None, feeds), strict=True):
            assert expected.dtype == actual.dtype
            assert expected.shape == actual.shape
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
            compared += expected.size
    assert compared > 0


def fused(result: RunResult) -> int:
    """How many attention ops the result has."""
    counts = result.report.model.ops_after
    return sum(counts.get(op, 0) for op in ATTENTION)


def reasons(result: RunResult) -> list[str]:
    """Why the attention passes did not fire, where they did not."""
    return [item.reason for record in result.report.passes if "attention" in record.name for item in record.rejections]


def row_tests(rows: dict[str, tuple[Block, int | str | None]]) -> tuple[Any, Any, Any]:
    """The tests of a table of blocks, each with what it becomes: parity, what it becomes, and that a second run is idle."""

    @pytest.mark.parametrize("name", rows)
    def test_parity(name):
        assert_block_equal(rows[name][0])

    @pytest.mark.parametrize("name", [name for name, (_, expected) in rows.items() if expected is not None])
    def test_fused(name):
        assert_fused(*rows[name])

    @pytest.mark.parametrize("name", rows)
    def test_a_second_run_changes_nothing(name):
        assert_settled(fused_block(rows[name][0]))

    return test_parity, test_fused, test_a_second_run_changes_nothing
