"""The ``group-query-attention`` pass."""

from __future__ import annotations

from pydantic import Field

from rewright.passes.attention.axes import Unproven
from rewright.passes.attention.fusing import AttentionPass
from rewright.passes.attention.grouped import group_query
from rewright.passes.attention.standard import obstacle, refuse_slow_softcap
from rewright.passes.attention.writing import Writer
from rewright.passes.deferral import Deferral
from rewright.pattern.values import Value


class GroupQueryAttention(AttentionPass):
    """softmax(cap(scale * Q K^T) + bias) V, heads sharing keys and values -> com.microsoft.GroupQueryAttention.

    Q is (B, S, N*H), K and V are (B, S, G*H), and head n of the queries uses head n // (N / G) of K and V, however the model
    repeats them. cap(x) is x, or softcap * tanh(x / softcap).

    Taken where it is the fastest legal op, as measured on the CPU:

    1. G < N, or a mask that is proven to be causal (``causal=1``, with a window ``local_window_size``), or a soft cap. Any other
       mask is the additive ``attention_bias`` of ``causal=0``.
    2. As many keys as queries, by the shapes; keys and values of one head size, a multiple of 8. Only for a soft cap, which no
       other op has, heads are filled up with zeros.
    3. Not where the opset of the model has ai.onnx Attention and it may be used: ``multi-head-attention`` emits that, which is
       faster.
    4. Target cpu. The kernel ends the process for an empty batch. It computes a soft cap one score at a time, which takes four to
       seven times as long as the separate nodes from 128 positions on: ``softcap`` is off unless you ask for it.

    Source: ONNX Runtime contrib operator GroupQueryAttention, version 1.
    """

    name = "group-query-attention"
    exactness = "reassociating"
    emits = ("com.microsoft.GroupQueryAttention",)
    after = ("attention", "rotary-embedding")
    before = ("multi-head-attention",)
    ort = Deferral(
        declines=(
            "ONNX Runtime's GroupQueryAttentionFusion takes rotary embeddings into a GroupQueryAttention that is there already"
        ),
    )

    softcap: bool = Field(default=False, description="Take scores with a soft cap too, although the CPU kernel is slower then.")

    def write(self, writer: Writer) -> Value:
        if not self.softcap:
            refuse_slow_softcap(writer)
        if obstacle(writer) is None:
            raise Unproven("ai.onnx Attention, which multi-head-attention emits at this opset, is faster")
        return group_query(writer)
