"""The ``attention`` pass."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rewright.passes.attention.axes import Unproven
from rewright.passes.attention.emission import MASK_FORMATS, Mask, packed
from rewright.passes.attention.fusing import AttentionPass
from rewright.passes.attention.writing import Writer
from rewright.passes.deferral import Deferral
from rewright.pattern.values import Value


class Attention(AttentionPass):
    """softmax(scale * Q K^T + bias) V, with Q, K and V projected from one value -> com.microsoft.Attention.

    1. Found by roles, whatever the spelling: any sequence of Reshape and Transpose that the shapes prove to be the split into
       heads, MatMul or Einsum, scales on scores, Q or K, terms added to the scores and selections in them, in any order.
    2. The weights (D, 3 * N * H) and biases of the three projections are packed; one MatMul that gives all three keeps its weight
       where its columns are in order. A missing bias is zeros. A scale is always written out.
    3. A mask stays the value that is added, as ``attention_bias``, unless it is proven to be a (batch, keys) mask; then that is
       given with ``mask_filter_value``. A mask that is used as a number, ``(1 - mask) * c``, is taken to hold zeros and ones, and
       the report says so. A score that is replaced by a constant above -1e9 is refused, for scores may be below it.
    4. Where the model turns rows of NaN, masked as a whole, into zeros, so does the result, by a Where.
    5. Refused: factors that are not constant or not positive, probabilities or scores that are used elsewhere, shapes that prove
       no layout, a soft cap.

    Source: Vaswani et al., "Attention is all you need"; ONNX Runtime contrib operator Attention, version 1.
    """

    name = "attention"
    exactness = "reassociating"
    emits = ("com.microsoft.Attention",)
    after = ("constant-folding", "common-subexpression", "rotary-embedding")
    ort = Deferral(
        optimizers=("AttentionFusion",),
        classes=("FusionAttention", "FusionBartAttention", "FusionGptAttentionNoPast", "FusionAttentionClip"),
        makes=("com.microsoft::Attention",),
        anchors=("Softmax",),
        weights="read",
    )

    mask: Mask = Field(
        default="auto", description="How a padding mask is given; index and none declare something, which parity checks."
    )
    multi_head: bool = Field(default=False, description="Leave all to the pass multi-head-attention.")

    @property
    def is_deferred(self) -> bool:
        return super().is_deferred and not self.multi_head

    def ort_options(self) -> dict[str, Any]:
        return {**super().ort_options(), "mask_format": MASK_FORMATS[self.mask], "use_multi_head_attention": False}

    def write(self, writer: Writer) -> Value:
        if self.multi_head:
            raise Unproven("the option multi_head leaves this to the pass multi-head-attention")
        return packed(writer, self.mask)
