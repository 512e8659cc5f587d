"""The ``multi-head-attention`` pass."""

from __future__ import annotations

from pydantic import Field

from rewright.passes.attention.emission import Mask, multi_head
from rewright.passes.attention.fusing import AttentionPass
from rewright.passes.attention.writing import Writer
from rewright.pattern.values import Value


class MultiHeadAttention(AttentionPass):
    """softmax(scale * Q K^T + bias) V over heads -> com.microsoft.MultiHeadAttention."""

    name = "multi-head-attention"
    exactness = "reassociating"
    emits = ("com.microsoft.MultiHeadAttention",)
    after = ("attention", "rotary-embedding")

    mask: Mask = Field(default="auto", description="How a padding mask is given.")

    def write(self, writer: Writer) -> Value:
        return multi_head(writer, self.mask)
