"""What quantization costs models that were really trained: `examples/quantized_accuracy.py`, held to bounds."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

COST = {"float32": 0.0, "int8": 0.01, "int4": 0.02, "float16": 0.001, "bfloat16": 0.01}
"""How much accuracy each kind may cost."""

SQNR = {"float32": 100.0, "int8": 30.0, "int4": 25.0, "float16": 60.0, "bfloat16": 40.0}
"""Of the logits, in dB, at least: far below what is seen, far above what passes unnoticed in the accuracy."""

SHARE = {"int8": 0.75, "int4": 0.75, "float16": 0.6, "bfloat16": 0.65}
"""How large the file may be after O2, as a share of the float32 model's after O2. These models are small: a graph weighs much."""


@pytest.fixture(scope="module")
def example() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        import quantized_accuracy
    finally:
        sys.path.remove(str(EXAMPLES))
    return quantized_accuracy


@pytest.mark.parametrize(
    ("task", "exporter", "levels"), [("digits", "torchscript", ("O0", "O2")), ("letters", "dynamo", ("O2",))]
)
def test_what_each_way_to_quantize_costs(
    example: ModuleType, tmp_path: Path, task: str, exporter: str, levels: tuple[str, ...]
) -> None:
    made, path, data = example.prepare(task, exporter, tmp_path)
    rows = list(example.measure(path, made, data, levels))
    assert len(rows) == len(levels) * len(example.ways())
    floats = {row.chain: row for row in rows if row.way.kind == "float32"}
    for row in rows:
        kind, before = row.way.kind, floats[row.chain[:2]]
        assert before.accuracy > 0.95
        assert row.verdict == "passed", row
        assert before.accuracy - row.accuracy <= COST[kind], row
        assert row.sqnr >= SQNR[kind], row
        if kind != "float32":
            assert row.quantized > 0, row
        if kind in SHARE and row.chain.startswith("O2"):
            assert row.bytes < SHARE[kind] * before.bytes, row
