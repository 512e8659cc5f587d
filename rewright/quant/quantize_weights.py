"""The ``quantize-weights`` pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from rewright.passes.contract import Backend
from rewright.passes.coverage import Covered
from rewright.passes.session import PassSession
from rewright.quant.activations import CalibrationPath, calibration_sets, check_sets
from rewright.quant.blocks import BlockFormat, half_quadratic, round_to_nearest
from rewright.quant.matrices import Method
from rewright.quant.ort_blocks import ort_method
from rewright.quant.selection import Candidate, QuantizingPass
from rewright.quant.weight_sites import WeightSite, find_site, missed
from rewright.quant.weight_writing import WeightWriter

_BLOCK_SIZES: Final = (16, 32, 64, 128, 256)


class QuantizeWeights(QuantizingPass):
    """Weights in 4 or 8 bits, block by block: MatMul and Gemm -> com.microsoft.MatMulNBits, Gather -> GatherBlockQuantized.

    A row of the weight (N, K) is cut into blocks along K; each has a scale, and without ``symmetric`` a zero point. Activations
    stay as they are.

    1. The weight is a constant matrix, reached through Transpose, Identity, Reshape, Squeeze, Unsqueeze, Flatten, Cast or a
       Constant node; dimensions of 1 may stand before it. Of a Gemm the bias is kept; alpha is 1 and transA 0.
    2. ``algorithm``: "rtn" rounds to nearest; "hqq" looks for scales and zero points that suit most weights of a block; "gptq"
       lets the weights to come make up for the rounding of those before, for the activations of the model in float on the sets
       of ``calibration``. In bodies and for Gather, where those are not seen, it is "rtn".
    3. ``form`` "qdq" puts DequantizeLinear before the op as it was, in the standard domain, from opset 21 on; the opset is raised
       where every node means the same.
    4. A weight that several nodes read is stored once; a table that is gathered from and multiplied with as well, where a row
       has whole blocks. What is stored twice is told in a note.
    5. ``accuracy_level`` is how the kernel may round the activations: 4, the fastest by far, to 8 bits in blocks; 0 to 3 not on
       CPU. With ``calibration`` the model is run both ways, and a note says what level 4 costs.
    6. With the backend "ort", ``onnxruntime.quantization`` rounds the weights, "rtn" or "hqq" (which needs torch), one at a time;
       all else is as without.
    7. The packed projections of com.microsoft.Attention become one product, and MultiHeadAttention attends: not with a past,
       since the other op has no place for one that is packed.
    8. Missed, with the reason: products of activations, constants on the left, batches of matrices, other types than float32 and
       float16, weights of less than ``min_elements``, those that would not shrink.

    Source: ONNX Runtime contrib operators MatMulNBits and GatherBlockQuantized, version 1; ONNX DequantizeLinear-21; for the
    algorithms see rewright.quant.blocks.
    """

    name = "quantize-weights"
    emits = ("com.microsoft.MatMulNBits", "com.microsoft.GatherBlockQuantized")
    quantizes = ("MatMul", "Gemm", "Gather", "com.microsoft::Attention")
    backends: ClassVar[tuple[Backend, ...]] = ("standalone", "ort", "auto")
    carrier = "onnxruntime.quantization.matmul_nbits_quantizer"

    bits: Literal[4, 8] = Field(default=4, description="Bits of a weight.")
    block_size: int = Field(default=32, description="Weights of a block, which share a scale: 16, 32, 64, 128 or 256.")
    symmetric: bool = Field(default=True, description="Zero in the middle of the codes; else a zero point for each block.")
    algorithm: Literal["rtn", "hqq", "gptq"] = Field(default="rtn", description="How weights are rounded.")
    accuracy_level: int = Field(default=4, ge=0, le=4, description="How the kernel may round activations: 4 to 8 bits, 0 not.")
    form: Literal["operator", "qdq"] = Field(
        default="operator", description="Fused ops, or DequantizeLinear and the op as it was."
    )
    gather: bool = Field(default=True, description="Quantize tables of embeddings too.")
    calibration: CalibrationPath = Field(default=None, description="An .npz file of inputs, or a folder of them; gptq needs it.")
    min_elements: int = Field(default=1024, ge=1, description="Weights with fewer elements stay as they are.")

    @property
    def usual_budget(self) -> str:
        """Noise of 4 bits is sixteen times that of 8, 24 dB; through several layers as many bits leave some 10 to 15 dB."""
        return "sqnr=10, cosine=0.95" if self.bits == 4 else ""

    @field_validator("block_size")
    @classmethod
    def _block_size_known(cls, size: int) -> int:
        if size not in _BLOCK_SIZES:
            raise ValueError(f"blocks have {', '.join(map(str, _BLOCK_SIZES[:-1]))} or {_BLOCK_SIZES[-1]} weights")
        return size

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.algorithm == "gptq" and self.calibration is None:
            raise ValueError("gptq needs activations: set calibration to an .npz file of inputs, or to a folder of them")
        if self.backend == "ort" and (self.algorithm == "gptq" or self.form == "qdq"):
            raise ValueError("the backend ort has rtn and hqq in the form operator; leave backend out for the others")
        return self

    def method(self, session: PassSession) -> Method:
        """How rows are quantized where nothing is known about activations."""
        if self.backend == "ort":
            return ort_method(session, self.algorithm)
        return half_quadratic if self.algorithm == "hqq" else round_to_nearest

    def block_format(self, site: WeightSite) -> BlockFormat:
        """The form of the blocks of a weight."""
        finds_points = self.backend == "ort" and self.algorithm == "hqq"  # it always does
        return BlockFormat(self.bits, self.block_size, self.symmetric and not finds_points, site.dtype)

    def quantize(self, session: PassSession, candidates: Sequence[Candidate]) -> None:
        covered: dict[int, Covered] = {}
        sites = []
        for candidate, found in self._sites(candidates):
            if isinstance(found, WeightSite):
                sites.append(found)
            else:
                covered[id(candidate.node)] = missed(candidate.node, found)
        if sites:
            if self.calibration is not None:
                check_sets(session.model, calibration_sets(self.calibration))
            covered |= WeightWriter(self, session).write(sites)
        session.coverage.extend(covered[id(each.node)] for each in candidates if id(each.node) in covered)

    def _sites(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, WeightSite | str]]:
        for candidate in candidates:
            is_gather = candidate.node.op == "Gather"
            if is_gather and not self.gather:
                continue
            found = find_site(candidate, any_form=self.form == "qdq")
            if isinstance(found, WeightSite):
                elements = found.shape[0] * found.shape[1]
                if elements < self.min_elements:
                    found = f"{elements} elements are fewer than min_elements={self.min_elements}"
                elif is_gather and self.form == "operator" and self.bits == 4 and found.shape[1] % 2:
                    found = f"a row has {found.shape[1]} elements, and two share a byte"
            if found is not None:
                yield candidate, found
