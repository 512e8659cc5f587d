"""The ``multi-head-attention`` pass."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rewright.passes.attention.axes import Unproven
from rewright.passes.attention.emission import MASK_FORMATS, Mask, multi_head
from rewright.passes.attention.fusing import AttentionPass
from rewright.passes.attention.merged import merge_heads
from rewright.passes.attention.repair import repair
from rewright.passes.attention.standard import obstacle, refuse_slow_softcap, standard
from rewright.passes.attention.writing import Writer
from rewright.passes.deferral import Deferral
from rewright.passes.session import PassSession
from rewright.pattern.values import Value


class MultiHeadAttention(AttentionPass):
    """softmax(scale * Q K^T + bias) V over heads -> com.microsoft.MultiHeadAttention, or ai.onnx Attention from opset 23 on.

    1. ai.onnx Attention is what the target portable gets, and the target cpu too, where its kernel was measured to be faster. It
       takes soft caps, keys and values that heads share, and ``is_causal`` where the mask is proven to be that.
    2. It is not used where a row might be masked as a whole and come out otherwise than from Softmax: such masks keep
       MultiHeadAttention, or the nodes they had.
    3. For MultiHeadAttention, shared keys and values are repeated; a soft cap is refused.
    4. An ai.onnx Attention that is there already keeps its meaning. Where its operands and result only pass through Reshapes and
       Transposes between (batch, sequence, width) and heads, those go, and the op is told the numbers of heads. A mask that its
       kernel would not repeat along queries or keys is repeated before it.

    Sources: ONNX operator Attention, versions 23 and 24; ONNX Runtime contrib operator MultiHeadAttention, version 1.
    """

    name = "multi-head-attention"
    exactness = "reassociating"
    emits = ("com.microsoft.MultiHeadAttention",)
    after = ("attention", "rotary-embedding")
    ort = Deferral(
        classes=(
            "FusionAttention",
            "FusionBartAttention",
            "FusionRotaryAttention",
            "FusionMultiHeadAttentionMMDit",
            "FusionMultiHeadAttentionDiT",
        ),
        makes=("com.microsoft::MultiHeadAttention",),
        anchors=("Softmax",),
        weights="read",
    )

    mask: Mask = Field(
        default="auto", description="How a padding mask is given; index and none declare something, which parity checks."
    )

    softcap: bool = Field(default=False, description="Take scores with a soft cap too, although the CPU kernel is slower then.")

    def run(self, session: PassSession) -> None:
        super().run(session)
        session.editor.finish()
        merge_heads(session)
        session.editor.finish()
        if session.target != "portable":
            repair(session)

    def ort_options(self) -> dict[str, Any]:
        return {**super().ort_options(), "mask_format": MASK_FORMATS[self.mask], "use_multi_head_attention": True}

    def write(self, writer: Writer) -> Value:
        if not self.softcap:
            refuse_slow_softcap(writer)
        if writer.target in ("cpu", "portable"):
            against = obstacle(writer)
            if against is None:
                return standard(writer)
            if writer.target == "portable":
                raise Unproven(against, writer.attention.softmax)
        return multi_head(writer, self.mask)
