"""The ``attention`` pass."""

from __future__ import annotations

from pydantic import Field

from rewright.passes.attention.emission import Mask, packed
from rewright.passes.attention.fusing import AttentionPass
from rewright.passes.attention.writing import Writer
from rewright.pattern.values import Value


class Attention(AttentionPass):
    """softmax(scale * Q K^T + bias) V with Q, K, V projected from one value -> com.microsoft.Attention with packed weights."""

    name = "attention"
    exactness = "reassociating"
    emits = ("com.microsoft.Attention",)
    after = ("constant-folding", "common-subexpression", "rotary-embedding")

    mask: Mask = Field(default="auto", description="How a padding mask is given.")

    def write(self, writer: Writer) -> Value:
        return packed(writer, self.mask)
