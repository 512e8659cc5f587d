"""The ``quantize-dynamic`` pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from rewright.passes.session import PassSession, op_key
from rewright.quant.affine import IntegerType, Levels
from rewright.quant.conversion import Conversion
from rewright.quant.integer_activations import convert_activations, multiplies_activations
from rewright.quant.integer_attention import convert_attention, projection_of
from rewright.quant.integer_lookups import convert_lookup, lookup_of, table_of
from rewright.quant.integer_products import convert_product, product_of
from rewright.quant.integer_recurrence import convert_lstm
from rewright.quant.integer_weights import IntegerWeights, MissedError, Use
from rewright.quant.selection import Candidate, QuantizingPass

_PRODUCTS: Final = ("MatMul", "Gemm", "com.microsoft::FusedMatMul")


class QuantizeDynamic(QuantizingPass):
    """8-bit weights; activations become integers at run time, by the range that they have then.

    y = (q(x) - x_zero) @ (q(w) - w_zero) * x_scale * w_scale + bias, x uint8 with one scale for the tensor, as
    DynamicQuantizeLinear gives it; w int8 or uint8 with a scale for each column.

    1. MatMul, FusedMatMul and Gemm whose right operand is constant, also behind Transpose, Identity, Reshape, Cast and the like,
       become com.microsoft.DynamicQuantizeMatMul; for a portable model DynamicQuantizeLinear and MatMulInteger. A bias after
       it, also that of BiasGelu, FastGelu and SkipLayerNormalization, becomes the op's; alpha goes into the scales, beta into
       the bias. Activations are multiplied by activations in integers only with ``activations``. For the CPU that
       SkipLayerNormalization becomes a sum and LayerNormalization, which ONNX Runtime 1.32 computes eight times as fast.
    2. com.microsoft.Attention becomes QAttention. That op has no attention_bias: with one, the packed projection becomes three
       products in front of MultiHeadAttention.
    3. Gather on a table of embeddings picks rows of integers, each with its own scale. LSTM becomes DynamicQuantizeLSTM.
    4. What several operands share is quantized once and stored once: embeddings that are tied to the last projection too, which
       then reads them through a Transpose that ONNX Runtime folds when it loads the model. A matrix that is used as it is
       *and* transposed, as the right operand of products, has other columns each time, and is stored for each.
    5. Missed, with the reason: weights that are not constant, not float32, vectors, the left operand, or not finite; tables that
       are small. EmbedLayerNormalization: its integer kernel has one scale for a table and rounds gamma and beta too; run this
       pass before ``embed-layer-norm``.
    6. On x86 without VNNI, products of uint8 and int8 are added up in pairs of 16 bits. A note counts the columns in which
       that can saturate, from the weights alone; ``reduce_range`` or ``weight=uint8`` avoids it.

    The backend "ort" is onnxruntime.quantization's dynamic quantizer, in another process, given weights as initializers and Gemm
    as MatMul and Add (it transposes shared weights in place), without the Attention whose attention_bias it drops, and with
    products of activations left alone. It loads the weights; the other backend maps them.

    Source: ONNX operators DynamicQuantizeLinear and MatMulInteger; ONNX Runtime contrib operators DynamicQuantizeMatMul,
    QAttention, DynamicQuantizeLSTM.
    """

    name = "quantize-dynamic"
    quantizes: ClassVar[tuple[str, ...]] = (
        *_PRODUCTS,
        "Gather",
        "LSTM",
        "com.microsoft::Attention",
        "com.microsoft::EmbedLayerNormalization",
    )
    emits = (
        "com.microsoft.DynamicQuantizeMatMul",
        "com.microsoft.MatMulIntegerToFloat",
        "com.microsoft.QAttention",
        "com.microsoft.MultiHeadAttention",
        "com.microsoft.DynamicQuantizeLSTM",
        "com.microsoft.Gelu",
        "com.microsoft.FastGelu",
        "com.microsoft.SkipLayerNormalization",
    )
    backends = ("standalone", "ort", "auto")
    carrier = "onnxruntime.quantization.onnx_quantizer"

    per_channel: bool = Field(default=True, description="A scale for each column of a weight (row of a table), or one for all.")
    weight: IntegerType = Field(default="int8", description="Integers of the weights: int8 or uint8.")
    symmetric: bool = Field(default=True, description="Zero in the middle of the levels; else where the weights' range puts it.")
    reduce_range: bool = Field(default=False, description="7 bits for weights: for x86 without VNNI, where 8 can saturate.")

    activations: bool = Field(default=False, description="Products of two activations too; attention that is fused has none.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.backend == "ort" and self.activations:
            raise ValueError("the backend ort leaves products of activations alone: leave out activations, or the backend")
        return self

    def parts(self) -> tuple[Self, ...]:
        """As of any pass; ONNX Runtime is never asked to multiply activations."""
        parts = super().parts()
        return tuple(part.model_copy(update={"activations": self.activations and part.backend != "ort"}) for part in parts)

    @property
    def edits_view(self) -> bool:  # type: ignore[override]
        """Not where ONNX Runtime makes another model of it."""
        return self.backend != "ort"

    def apply(self, session: PassSession) -> None:
        if self.backend == "ort":
            from rewright.quant.handing_over import hand_over

            hand_over(self, session)
        else:
            super().apply(session)

    def quantize(self, session: PassSession, candidates: Sequence[Candidate]) -> None:
        levels = Levels(self.weight, self.symmetric, self.reduce_range)
        work = Conversion(session, IntegerWeights(session, levels, self.per_channel))
        for candidate in candidates:
            for use in _uses(candidate.node):
                work.weights.expect(use)
        for candidate in candidates:
            kind = op_key(candidate.node)
            if kind == "Gather" and table_of(candidate.node) is None:
                continue  # a dimension or the like: no weight
            try:
                convert = _CONVERSIONS[kind]
                if self.activations and multiplies_activations(candidate.node):
                    convert = convert_activations
                convert(work, candidate)
            except MissedError as missed:
                work.missed(candidate.node, missed.reason)
        work.weights.drop_unused()
        note = _risk(work.weights.at_risk)
        if note:
            session.notes.append(note)


def _uses(node: Any) -> list[Use]:
    """The matrices that will be asked for, as far as they can be shared."""
    try:
        kind = op_key(node)
        if kind in _PRODUCTS:
            found = product_of(node).use
            return [] if found is None else [found]
        if kind == "Gather":
            return [] if table_of(node) is None else [lookup_of(node)]
        return [projection_of(node)] if kind == "com.microsoft::Attention" else []
    except MissedError:
        return []


def _refuse_embedding(work: Conversion, candidate: Candidate) -> None:
    raise MissedError(
        "its integer kernel has one scale for each table and rounds gamma and beta too: run quantize-dynamic before"
        " embed-layer-norm"
    )


_CONVERSIONS: Final[dict[str, Callable[[Conversion, Candidate], None]]] = {
    **dict.fromkeys(_PRODUCTS, convert_product),
    "Gather": convert_lookup,
    "LSTM": convert_lstm,
    "com.microsoft::Attention": convert_attention,
    "com.microsoft::EmbedLayerNormalization": _refuse_embedding,
}


def _risk(at_risk: Sequence[tuple[str, int, int]]) -> str:
    """What 16-bit sums can lose, or nothing."""
    risky = [(name, count, columns) for name, count, columns in at_risk if count]
    if not risky:
        return ""
    name, count, columns = max(risky, key=lambda each: each[1] / each[2])
    return (
        f"on x86 without VNNI, pairs of uint8 x int8 products can leave 16 bits and are cut off in {len(risky)} of {len(at_risk)}"
        f" weights (the worst is '{name}', {count} of {columns} columns): reduce_range=true, or weight=uint8, avoids it there"
    )
