"""An exported directory before and after rewright, and what was fused in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from local_models import RECIPES

from rewright.integrations.huggingface import DirectoryResult

TOLERANCE = 1e-4
"""Of scores that are probabilities."""

ATTENTIONS = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}


@dataclass(frozen=True)
class Optimized:
    """The folder that Optimum's exporter wrote, the one that rewright made of it, and its report."""

    name: str
    chain: str
    before: Path
    after: Path
    result: DirectoryResult

    def attentions(self) -> dict[str, int]:
        """Fused attention nodes in each ONNX file that was written."""
        return {path.name: count_attention(path) for path in sorted(self.after.rglob("*.onnx"))}

    def assert_fused(self) -> None:
        """Every file passed, and every attention layer of every file that was written is one node."""
        verdicts = {name: one.report.verdict for name, one in self.result.files.items()}
        assert verdicts == dict.fromkeys(verdicts, "passed")
        assert self.attentions() == RECIPES[self.name].attentions


def count_attention(path: Path) -> int:
    """Fused attention nodes of a file, those in bodies of ``If`` included."""
    return sum(node.op_type in ATTENTIONS and node.domain == "com.microsoft" for node in _nodes(onnx.load(path).graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
