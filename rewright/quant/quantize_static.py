"""The ``quantize-static`` pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from rewright.model.errors import UsageError
from rewright.model.facts import dtype_of, producer
from rewright.ops.microsoft import DOMAIN
from rewright.passes.coverage import Covered
from rewright.passes.session import PassSession, label, op_key
from rewright.quant.activations import CalibrationError, CalibrationPath, calibration_sets
from rewright.quant.affine import Levels, StoredType
from rewright.quant.calibration.measuring import ranges_of
from rewright.quant.calibration.ranges import Ranges
from rewright.quant.calibration.thresholds import CalibrationMethod, Method
from rewright.quant.integer_attention import convert_attention, projection_of
from rewright.quant.integer_products import product_of
from rewright.quant.integer_weights import IntegerWeights, MissedError, Use
from rewright.quant.selection import Candidate, QuantizingPass
from rewright.quant.static_conversion import StaticConversion
from rewright.quant.static_layers import convert_convolution, convert_sum, result_of
from rewright.quant.static_products import convert_between_linear, convert_to_integers
from rewright.quant.weights import weight_of

ActivationType = Literal["uint8", "int8", "uint16", "int16"]

_PRODUCTS: Final = ("MatMul", "Gemm", "com.microsoft::FusedMatMul")
_SUMS: Final = ("Add", "Mul")
_ATTENTION: Final = "com.microsoft::Attention"
_QUANTIZED: Final = "it is quantized already"


class QuantizeStatic(QuantizingPass):
    """Weights and activations in integers, activations by ranges that were found on calibration data.

    x is rounded to (q(x) - x_zero) * x_scale, with x_scale and x_zero from the range of x; w has a scale for each column.

    1. Ranges come from ``calibration``, an .npz file or a folder of them, each with one input set, by ``method``; or from
       ``ranges``, a file that ``rewright.calibration.calibrate(model, data).save(path)`` has written. Without either the run
       ends, unless ``use_run_inputs`` is set: then the extremes on the inputs that the run verifies with are taken.
    2. ``format=qdq``: operands of MatMul, Gemm and Conv go through QuantizeLinear and DequantizeLinear, so that ONNX Runtime
       makes MatMulIntegerToFloat, QGemm and QLinearConv of them when it loads the model. ``format=qoperator`` writes
       MatMulIntegerToFloat and QLinearConv (for a portable model MatMulInteger). com.microsoft.Attention becomes QAttention
       in both.
    3. A value is quantized once for all its readers. Products give floats, which what follows reads: nothing is rounded that no
       integer kernel reads. What Conv gives, after its Relu, is rounded, because its kernel gives integers.
    4. Biases become int32 by the product of the scales of the operands, where they fit.
    5. Left in floats: Softmax, normalisations, activations such as Gelu, products of two activations. Add and Mul too, unless
       ``operators`` names them.
    6. uint8 activations with int8 weights are what the kernels for MatMul take; int8 activations are for other runtimes. 16-bit
       activations and 4-bit weights run in floats on the CPU. Before opset 21 they use com.microsoft's ops.
    7. For runtimes that want QuantizeLinear and DequantizeLinear in pairs, such as TensorRT: ``weight_pairs`` keeps weights in
       floats and rounds them in the graph, ``dedicated_pairs`` gives every reader of a value a pair of its own.
    8. Missed, with the reason: nodes in bodies, whose values calibration does not see; weights that are not constant; values that
       are not float32, or that have no range.

    The backend "ort" is onnxruntime.quantization's QDQ quantizer, in another process, with the ranges found here. It does MatMul,
    Gemm and Conv, and Add and Mul where they are asked for. What reads an operand beside the chosen nodes goes on reading what it
    did; a Gemm whose beta it would lose is left alone. It loads the weights; the other backend maps them.

    Source: ONNX operators QuantizeLinear, DequantizeLinear, QLinearConv, MatMulInteger; ONNX Runtime contrib operators
    MatMulIntegerToFloat and QAttention; S. Migacz, 8-bit inference with TensorRT, 2017, for ``entropy``.
    """

    name = "quantize-static"
    quantizes: ClassVar[tuple[str, ...]] = (*_PRODUCTS, "Conv", _ATTENTION, *_SUMS)
    emits = tuple(f"com.microsoft.{op}" for op in ("QuantizeLinear", "DequantizeLinear", "MatMulIntegerToFloat", "QAttention"))
    backends = ("standalone", "ort", "auto")
    carrier = "onnxruntime.quantization.qdq_quantizer"

    calibration: CalibrationPath = Field(default=None, description="Inputs to calibrate on: an .npz file, or a folder of them.")
    ranges: str | None = Field(default=None, description="A file with ranges, instead of calibration.")
    use_run_inputs: bool = Field(default=False, description="Calibrate on what the run verifies with, which may be made up.")
    method: Method = Field(default="minmax", description="How ranges are found: minmax, entropy, percentile, distribution.")
    moving_average: bool = Field(default=False, description="minmax: the moving average of each input set's extremes.")
    averaging: float = Field(default=0.01, gt=0, le=1, description="How much of a moving average the newest set is.")
    percentile: float = Field(default=99.999, gt=0, le=100, description="percentile: how much of all numbers is kept.")
    deviations: float = Field(default=8.0, gt=0, description="distribution: standard deviations on either side of the mean.")
    quantized_bins: int = Field(default=128, ge=2, le=1024, description="entropy: levels that magnitudes are put in.")
    format: Literal["qdq", "qoperator"] = Field(default="qdq", description="How quantization is written.")
    activation: ActivationType = Field(default="uint8", description="Integers of activations.")
    activation_symmetric: bool = Field(default=False, description="Zero in the middle of the activations' levels.")
    weight: StoredType = Field(default="int8", description="Integers of weights.")
    symmetric: bool = Field(default=True, description="Zero in the middle of the weights' levels.")
    per_channel: bool = Field(default=True, description="A scale for each column of a weight, or one for all.")
    reduce_range: bool = Field(default=False, description="7 bits for weights: for x86 without VNNI, where 8 can saturate.")
    quantize_bias: bool = Field(default=True, description="Biases of Gemm and Conv as int32.")
    weight_pairs: bool = Field(
        default=False, description="Weights as floats, rounded by QuantizeLinear when the model is loaded."
    )
    dedicated_pairs: bool = Field(default=False, description="QuantizeLinear and DequantizeLinear for each reader of a value.")

    @field_validator("ranges")
    @classmethod
    def _ranges_there(cls, place: str | None) -> str | None:
        if place is not None:
            try:
                Ranges.load(place)
            except UsageError as error:
                raise ValueError(str(error)) from error
        return place

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [name for name in ("calibration", "ranges", "use_run_inputs") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude one another: each says where ranges come from")
        if self.use_run_inputs and (self.method != "minmax" or self.moving_average):
            raise ValueError("use_run_inputs gives extremes only: method is minmax then, without moving_average")
        if self.format == "qoperator" and self.backend != "standalone":
            raise ValueError("ONNX Runtime's quantizer is asked for format=qdq only: use backend=standalone for qoperator")
        if self.format == "qoperator" and (self.weight_pairs or self.dedicated_pairs):
            raise ValueError("weight_pairs and dedicated_pairs are about QuantizeLinear and DequantizeLinear: use format=qdq")
        if self.format == "qoperator" and ("8" not in self.activation or "8" not in self.weight):
            raise ValueError("format=qoperator has kernels for 8 bits only: use format=qdq")
        if self.format == "qoperator" and (self.activation, self.weight) == ("int8", "uint8"):
            raise ValueError("no kernel multiplies int8 activations by uint8 weights")
        return self

    @property
    def edits_view(self) -> bool:  # type: ignore[override]
        """Not where ONNX Runtime makes another model of it."""
        return self.backend != "ort"

    def apply(self, session: PassSession) -> None:
        if self.backend == "ort":
            from rewright.quant.handing_over_static import hand_over

            hand_over(self, session)
        else:
            super().apply(session)

    @property
    def calibration_method(self) -> CalibrationMethod:
        """How ranges are found."""
        return CalibrationMethod(
            self.method, self.moving_average, self.averaging, self.percentile, self.quantized_bins, self.deviations
        )

    def chosen(self, session: PassSession) -> list[Candidate]:
        """As for every pass that quantizes; Add and Mul where they are asked for; without what is quantized already."""
        found = super().chosen(session)
        if not self.operators:
            session.coverage[:] = [entry for entry in session.coverage if entry.op not in _SUMS]
            found = [each for each in found if op_key(each.node) not in _SUMS]
        before = [each for each in found if _is_quantized(session, each.node)]
        session.coverage += [Covered(label(each.node), op_key(each.node), "missed", _QUANTIZED) for each in before]
        return [each for each in found if each not in before]

    def values_to_calibrate(self, session: PassSession, candidates: Sequence[Candidate]) -> list[str]:
        """The names of the values that will be quantized, each once."""
        found: dict[str, None] = {}
        for candidate in candidates:
            if candidate.graph is session.view.graph:
                values = _quantized_values(session, candidate.node)
                found |= dict.fromkeys(tensor.name for tensor in values if dtype_of(tensor) == np.float32)
        return list(found)

    def quantize(self, session: PassSession, candidates: Sequence[Candidate]) -> None:
        work = self.conversion(session, candidates)
        for candidate in candidates:
            for use in _uses(candidate.node):
                work.weights.expect(use)
        for candidate in candidates:
            try:
                if not getattr(candidate.node, "alive", True):
                    raise MissedError("it is the bias of the product before it now")
                if candidate.graph is not session.view.graph:
                    raise MissedError("it is in a body or a function, whose values calibration does not see")
                self._convert(work, candidate)
            except MissedError as missed:
                work.missed(candidate.node, missed.reason)
        work.weights.drop_unused()
        if self.weight_pairs or self.dedicated_pairs:
            _warn_of_other_domains(session)

    def conversion(self, session: PassSession, candidates: Sequence[Candidate]) -> StaticConversion:
        """The state of a run: ranges are found, nothing is converted yet.

        Raises:
            CalibrationError: there is nothing to find ranges on, or the data does not fit the model.
        """
        names = self.values_to_calibrate(session, candidates)
        work = StaticConversion(
            session,
            IntegerWeights(session, Levels(self.weight, self.symmetric, self.reduce_range), self.per_channel, self.weight_pairs),
            self._ranges(session, names) if names else Ranges({}),
            Levels(self.activation, self.activation_symmetric),
            self.quantize_bias,
            self.dedicated_pairs,
        )
        if work.ranges.values:
            work.allow_opset()
        return work

    def _convert(self, work: StaticConversion, candidate: Candidate) -> None:
        kind, is_qdq = op_key(candidate.node), self.format == "qdq"
        if kind in _PRODUCTS:
            (convert_between_linear if is_qdq else convert_to_integers)(work, candidate)
        elif kind == "Conv":
            convert_convolution(work, candidate, between_linear=is_qdq)
        elif kind in _SUMS:
            if not is_qdq:
                raise MissedError("ONNX Runtime makes QLinearAdd and QLinearMul of format=qdq")
            convert_sum(work, candidate)
        else:
            if "8" not in self.activation or "8" not in self.weight or (self.activation, self.weight) == ("int8", "uint8"):
                raise MissedError(f"QAttention does not multiply {self.activation} by {self.weight}")
            if self.weight_pairs:
                raise MissedError("QAttention holds integers, and weight_pairs asks for floats")
            work.require(candidate.node.inputs[0])
            convert_attention(work, candidate)

    def _ranges(self, session: PassSession, names: Sequence[str]) -> Ranges:
        """
        Raises:
            CalibrationError: there is nothing to find them on, or the data does not fit the model.
        """
        if self.ranges is not None:
            return Ranges.load(self.ranges)
        if self.calibration is not None:
            found = ranges_of(
                session, session.view.to_model(), calibration_sets(self.calibration), names, self.calibration_method
            )
            session.notes.append(f"{len(found.values)} ranges by {found.method} on {found.samples} input sets")
            return found
        if not self.use_run_inputs or session.bounds is None:
            raise CalibrationError(
                "quantize-static needs calibration data.",
                "Give calibration=PATH (.npz files with inputs as they come) or ranges=PATH; use_run_inputs=true takes the inputs"
                " of the run, which are made up where none are given.",
            )
        bounds = session.bounds(session.view.to_model())
        measured = {name: bounds.values[name].measured for name in names if name in bounds.values}
        session.notes.append(
            f"calibrated on the inputs of the run ({', '.join(bounds.input_sets) or 'none could be run'}), which are made up"
            " where none are given: what such ranges cost on real data is not known"
        )
        return Ranges({name: ends for name, ends in measured.items() if ends is not None}, "minmax", len(bounds.input_sets), True)


def _quantized_values(session: PassSession, node: Any) -> list[Any]:
    kind = op_key(node)
    if kind in _SUMS:
        return [] if any(weight_of(tensor) is not None for tensor in node.inputs) else [*node.inputs, *node.outputs]
    if kind == "Conv":
        return [node.inputs[0], node.outputs[0], result_of(session.editor, node)[0]]
    try:
        (projection_of if kind == _ATTENTION else product_of)(node)
    except MissedError:
        return []
    return [node.inputs[0]]


def _warn_of_other_domains(session: PassSession) -> None:
    foreign = Counter(op_key(node) for graph in session.view.graphs() for node in graph.nodes if node.domain == DOMAIN)
    if foreign:
        ops = ", ".join(f"{count} {op.rpartition('::')[2]}" for op, count in foreign.most_common(3))
        session.notes.append(f"{ops} of {DOMAIN}: runtimes that want pairs may not have them; target=portable puts in none")


def _is_quantized(session: PassSession, node: Any) -> bool:
    """Whether the weight of a product or convolution, or what is added or multiplied and its result, goes through integers."""
    if op_key(node) == _ATTENTION:
        return False
    makers = [producer(tensor) for tensor in (node.inputs if op_key(node) in _SUMS else node.inputs[1:2])]
    if not all(maker is not None and maker.op == "DequantizeLinear" for maker in makers):
        return False
    output = node.outputs[0]
    readers = session.editor.consumers(output)
    is_rounded = not session.editor.is_graph_output(output) and {reader.op for reader in readers} == {"QuantizeLinear"}
    return is_rounded or op_key(node) not in _SUMS


def _uses(node: Any) -> list[Use]:
    """The matrices that will be asked for, as far as they can be shared."""
    find = {**dict.fromkeys(_PRODUCTS, lambda each: product_of(each).use), _ATTENTION: projection_of}.get(op_key(node))
    try:
        use = None if find is None else find(node)
    except MissedError:
        return []
    return [] if use is None else [use]
