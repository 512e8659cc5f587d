"""Optimum's options for quantization, with its names, defaults and presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import Field, PrivateAttr, field_validator

from rewright.integrations.optimum.attributes import Attributes
from rewright.integrations.optimum.options import OptimizationConfig
from rewright.integrations.optimum.ort_config import parts_of
from rewright.model.errors import UsageError
from rewright.quant.presets import PRESETS

Format = Literal["QDQ", "QOperator"]
OpsMode = Literal["QLinearOps", "IntegerOps"]
QuantTypeName = Literal["QInt8", "QUInt8", "QInt16", "QUInt16", "QInt4", "QUInt4", "QFLOAT8E4M3FN"]

CHANNEL_AXES: Final[Mapping[str, int]] = {"MatMul": 1}
"""Optimum's default of ``qdq_op_type_per_channel_support_to_axis``."""


class QuantizationConfig(Attributes):
    """How to quantize, in the attributes of Optimum's class of this name; ``compile_quantization`` makes a chain of it.

    The enumerations of ``onnxruntime.quantization`` are taken as they are, and kept as the names of their members. Every
    attribute can be set in the constructor or afterwards. One that does not exist, a value that it cannot have, or a
    combination that Optimum's class refuses, is a UsageError.

    Source: optimum-onnx 0.1, optimum.onnxruntime.configuration.
    """

    what_values_are = (
        'format is "QDQ" or "QOperator", mode "QLinearOps" or "IntegerOps", a dtype "QInt8", "QUInt8" or another name of'
        " onnxruntime.quantization.QuantType; the rest is True or False, or a list of names."
    )
    section = "quantization"
    told_by = "is_static"

    is_static: bool = Field(description="Ranges of activations are measured before, on calibration data, and not at run time.")
    format: Format = Field(description="How quantization is written: pairs around the ops as they were, or integer ops.")
    mode: OpsMode = Field(
        default="QLinearOps", description="Which integer ops: for ranges measured before, or for those of run time."
    )
    activations_dtype: QuantTypeName = Field(default="QUInt8", description="Integers of activations.")
    activations_symmetric: bool = Field(default=False, description="Zero in the middle of the activations' levels.")
    weights_dtype: QuantTypeName = Field(default="QInt8", description="Integers of weights.")
    weights_symmetric: bool = Field(default=True, description="Zero in the middle of the weights' levels.")
    per_channel: bool = Field(default=False, description="A scale for each column of a weight, instead of one for all.")
    reduce_range: bool = Field(default=False, description="7 bits for weights, where 8 can saturate.")
    nodes_to_quantize: list[str] = Field(default_factory=list, description="Only these nodes.")
    nodes_to_exclude: list[str] = Field(default_factory=list, description="Not these nodes.")
    operators_to_quantize: list[str] = Field(default_factory=list, description="Only these ops; those of the mode where empty.")
    qdq_add_pair_to_weight: bool = Field(
        default=False, description="Weights stay float32, with a pair of QuantizeLinear and DequantizeLinear behind each."
    )
    qdq_dedicated_pair: bool = Field(default=False, description="A pair of its own for each reader of a value.")
    qdq_op_type_per_channel_support_to_axis: dict[str, int] = Field(
        default_factory=lambda: dict(CHANNEL_AXES), description="The axis of a weight that has a scale for each of its places."
    )

    _optimization: OptimizationConfig | None = PrivateAttr(default=None)

    @field_validator("format", "mode", "activations_dtype", "weights_dtype", mode="before")
    @classmethod
    def _as_name(cls, value: object) -> object:
        return value.name if isinstance(value, Enum) else value

    @field_validator("nodes_to_quantize", "nodes_to_exclude", "operators_to_quantize", mode="before")
    @classmethod
    def _as_names(cls, value: object) -> object:
        if value is None:
            return []
        if isinstance(value, (list, tuple, set, frozenset)):
            names = [each.value if isinstance(each, Enum) else each for each in value]
            return sorted(names) if isinstance(value, (set, frozenset)) else names
        return value

    def model_post_init(self, context: Any, /) -> None:
        """As Optimum's class does it, contradictions are told where the object is made; and once more where it is used."""
        super().model_post_init(context)
        self.check_consistent()

    def check_consistent(self) -> None:
        """
        Raises:
            UsageError: two attributes contradict each other, where Optimum's class says so too.
        """
        if not self.is_static and self.mode == "QLinearOps":
            raise UsageError("is_static is False, and mode is 'QLinearOps'.", "Dynamic quantization has mode='IntegerOps'.")
        if not self.is_static and self.activations_dtype == "QInt8":
            raise UsageError(
                "is_static is False, and activations_dtype is 'QInt8'.",
                "Dynamic quantization has activations_dtype='QUInt8'.",
            )
        if self.is_static and (self.activations_dtype, self.weights_dtype) == ("QInt8", "QUInt8"):
            raise UsageError(
                "activations_dtype is 'QInt8', and weights_dtype is 'QUInt8'.",
                "No kernel multiplies these; weights_dtype='QInt8' goes with either.",
            )

    @property
    def use_symmetric_calibration(self) -> bool:
        """Whether both have zero in the middle; of Optimum's class, whose ``fit`` is given it as ``force_symmetric_range``."""
        return self.activations_symmetric and self.weights_symmetric

    @property
    def optimization(self) -> OptimizationConfig | None:
        """What the ORTConfig that these options are from asks for before; None where it asks for nothing."""
        return self._optimization

    @classmethod
    def from_optimum(cls, source: object) -> Self:
        """As ``Attributes.from_optimum``; of an ORTConfig, ``optimization`` is read too."""
        made = super().from_optimum(source)
        if isinstance(source, QuantizationConfig):
            made._optimization = source.optimization
        elif (parts_of(source) or {}).get("optimization"):
            made._optimization = OptimizationConfig.from_optimum(parts_of(source))
            made._optimization._remarks = tuple(
                each for each in made._optimization.remarks if each.option in OptimizationConfig.model_fields
            )  # what stands beside both parts is among the remarks of these options
        return made

    @property
    def names_the_default_operators(self) -> bool:
        """Whether ``operators_to_quantize`` says no more than an empty list, which Optimum's class fills in."""
        given = set(self.operators_to_quantize)
        return not given or given == set(default_operators(self.is_static, self.format, self.mode))

    def to_section(self) -> dict[str, Any]:
        """The attributes as ``ort_config.json`` holds them, the operators filled in as Optimum's class does it."""
        section = self.model_dump()
        if not self.operators_to_quantize:
            section["operators_to_quantize"] = default_operators(self.is_static, self.format, self.mode)
        return section

    def to_ort_config(self, *, use_external_data_format: bool = False, one_external_file: bool = True) -> dict[str, Any]:
        """The dictionary that Optimum's ORTConfig is made of, and that ``ort_config.json`` holds; JSON can say all of it."""
        return {
            "opset": None,
            "use_external_data_format": use_external_data_format,
            "one_external_file": one_external_file,
            "optimization": {},
            "quantization": self.to_section(),
        }


def default_operators(is_static: bool, format: Format, mode: OpsMode) -> list[str]:
    """The ops that Optimum means where none are named: those that the installed onnxruntime.quantization has an entry for."""
    from onnxruntime.quantization.registry import IntegerOpsRegistry, QDQRegistry, QLinearOpsRegistry

    if is_static and format == "QDQ":
        return list(QDQRegistry)
    return list(QLinearOpsRegistry if is_static and mode == "QLinearOps" else IntegerOpsRegistry)


class AutoQuantizationConfig:
    """Optimum's presets, with its arguments; the values are those of ``rewright.quant.presets``."""

    _TYPES: ClassVar[Mapping[str, QuantTypeName]] = {"int8": "QInt8", "uint8": "QUInt8"}

    @classmethod
    def arm64(
        cls,
        is_static: bool,
        use_symmetric_activations: bool = False,
        use_symmetric_weights: bool = True,
        per_channel: bool = True,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        operators_to_quantize: Sequence[Any] | None = None,
    ) -> QuantizationConfig:
        """For ARM with 64 bits: uint8 activations, int8 weights."""
        chosen = (nodes_to_quantize, nodes_to_exclude, operators_to_quantize)
        return cls._of_cpu("arm64", is_static, use_symmetric_activations, use_symmetric_weights, per_channel, False, *chosen)

    @classmethod
    def avx2(
        cls,
        is_static: bool,
        use_symmetric_activations: bool = False,
        use_symmetric_weights: bool = True,
        per_channel: bool = True,
        reduce_range: bool = False,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        operators_to_quantize: Sequence[Any] | None = None,
    ) -> QuantizationConfig:
        """For x86 with AVX2: uint8 activations and weights."""
        chosen = (nodes_to_quantize, nodes_to_exclude, operators_to_quantize)
        symmetric = (use_symmetric_activations, use_symmetric_weights)
        return cls._of_cpu("avx2", is_static, *symmetric, per_channel, reduce_range, *chosen)

    @classmethod
    def avx512(
        cls,
        is_static: bool,
        use_symmetric_activations: bool = False,
        use_symmetric_weights: bool = True,
        per_channel: bool = True,
        reduce_range: bool = False,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        operators_to_quantize: Sequence[Any] | None = None,
    ) -> QuantizationConfig:
        """For x86 with AVX-512 and without VNNI, where ``reduce_range`` keeps sums from saturating: uint8 and int8."""
        chosen = (nodes_to_quantize, nodes_to_exclude, operators_to_quantize)
        symmetric = (use_symmetric_activations, use_symmetric_weights)
        return cls._of_cpu("avx512", is_static, *symmetric, per_channel, reduce_range, *chosen)

    @classmethod
    def avx512_vnni(
        cls,
        is_static: bool,
        use_symmetric_activations: bool = False,
        use_symmetric_weights: bool = True,
        per_channel: bool = True,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        operators_to_quantize: Sequence[Any] | None = None,
    ) -> QuantizationConfig:
        """For x86 with AVX-512 VNNI: uint8 activations, int8 weights."""
        chosen = (nodes_to_quantize, nodes_to_exclude, operators_to_quantize)
        return cls._of_cpu(
            "avx512-vnni", is_static, use_symmetric_activations, use_symmetric_weights, per_channel, False, *chosen
        )

    @classmethod
    def ppc64le(
        cls,
        is_static: bool,
        use_symmetric_activations: bool = False,
        use_symmetric_weights: bool = True,
        per_channel: bool = True,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        operators_to_quantize: Sequence[Any] | None = None,
    ) -> QuantizationConfig:
        """For POWER, little endian: uint8 activations, int8 weights."""
        chosen = (nodes_to_quantize, nodes_to_exclude, operators_to_quantize)
        return cls._of_cpu("ppc64le", is_static, use_symmetric_activations, use_symmetric_weights, per_channel, False, *chosen)

    @classmethod
    def tensorrt(
        cls,
        per_channel: bool = True,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        operators_to_quantize: Sequence[Any] | None = None,
    ) -> QuantizationConfig:
        """For TensorRT, which takes symmetric int8 that was calibrated, in pairs of QuantizeLinear and DequantizeLinear."""
        values = PRESETS["tensorrt"].of("static")
        return QuantizationConfig(
            is_static=True,
            format="QDQ",
            activations_dtype=cls._TYPES[values["activation"]],
            activations_symmetric=values["activation_symmetric"],
            weights_dtype=cls._TYPES[values["weight"]],
            weights_symmetric=values["symmetric"],
            per_channel=per_channel,
            nodes_to_quantize=list(nodes_to_quantize or ()),
            nodes_to_exclude=list(nodes_to_exclude or ()),
            operators_to_quantize=list(operators_to_quantize or ()),
            qdq_add_pair_to_weight=True,
            qdq_dedicated_pair=True,
        )

    @classmethod
    def _of_cpu(
        cls,
        name: str,
        is_static: bool,
        use_symmetric_activations: bool,
        use_symmetric_weights: bool,
        per_channel: bool,
        reduce_range: bool,
        nodes_to_quantize: Sequence[str] | None,
        nodes_to_exclude: Sequence[str] | None,
        operators_to_quantize: Sequence[Any] | None,
    ) -> QuantizationConfig:
        values = PRESETS[name].of("static" if is_static else "dynamic")
        return QuantizationConfig(
            is_static=is_static,
            format="QDQ" if is_static else "QOperator",
            mode="QLinearOps" if is_static else "IntegerOps",
            activations_dtype="QUInt8",
            activations_symmetric=use_symmetric_activations,
            weights_dtype=cls._TYPES[values["weight"]],
            weights_symmetric=use_symmetric_weights,
            per_channel=per_channel,
            reduce_range=reduce_range,
            nodes_to_quantize=list(nodes_to_quantize or ()),
            nodes_to_exclude=list(nodes_to_exclude or ()),
            operators_to_quantize=list(operators_to_quantize or ()),
        )
