"""The ``multi-head-attention`` pass."""

from __future__ import annotations

from typing import Any

from rewright.passes.attention.emission import multi_head
from rewright.passes.attention.fusing import AttentionPass
from rewright.passes.attention.writing import Writer
from rewright.pattern.values import Value


class MultiHeadAttention(AttentionPass):
    """softmax(scale * Q K^T + bias) V over heads -> com.microsoft.MultiHeadAttention."""

    name = "multi-head-attention"
    exactness = "reassociating"
    emits = ("com.microsoft.MultiHeadAttention",)
    after = ("attention", "rotary-embedding")

    def write(self, writer: Writer) -> Value:
        return multi_head(writer)


__all__ = ["Any", "MultiHeadAttention"]
