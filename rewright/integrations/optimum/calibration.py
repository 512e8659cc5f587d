"""Optimum's options for calibration, with its names, defaults and presets."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from pydantic import Field, field_validator

from rewright.integrations.optimum.attributes import Attributes

MethodName = Literal["MinMax", "Entropy", "Percentile", "Distribution"]


class CalibrationConfig(Attributes):
    """How ranges of activations are measured, in the attributes of Optimum's class of this name.

    It goes with a ``QuantizationConfig`` into ``compile_quantization``. The data set is only named in it, as in Optimum; the
    data itself is given where the model is quantized. None leaves a value to the method.

    Source: optimum-onnx 0.1, optimum.onnxruntime.configuration.
    """

    what_values_are = 'method is "MinMax", "Entropy", "Percentile" or "Distribution"; the rest are names, numbers, True or False.'
    section = ""
    told_by = "dataset_num_samples"

    dataset_name: str | None = Field(default=None, description="The data set.")
    dataset_config_name: str | None = Field(default=None, description="Its configuration.")
    dataset_split: str | None = Field(default=None, description="The part of it.")
    dataset_num_samples: int | None = Field(default=None, description="How many samples there are.")
    method: MethodName = Field(default="MinMax", description="How ranges are found.")
    num_bins: int | None = Field(default=None, ge=1, description="Entropy, Percentile: bins of the histogram.")
    num_quantized_bins: int | None = Field(
        default=None, ge=2, le=1024, description="Entropy: levels that magnitudes are put in; at most 1024 here."
    )
    percentile: float | None = Field(default=None, gt=0, le=100, description="Percentile: how much of all numbers is kept.")
    moving_average: bool | None = Field(default=None, description="MinMax: the moving average of the extremes.")
    averaging_constant: float | None = Field(
        default=None, gt=0, le=1, description="How much of a moving average the newest sample is."
    )

    @field_validator("method", mode="before")
    @classmethod
    def _as_name(cls, value: object) -> object:
        return value.name if isinstance(value, Enum) else value

    @field_validator("dataset_name", "dataset_config_name", "dataset_split", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return value if value is None else str(value)


class AutoCalibrationConfig:
    """Optimum's presets, and one for ``Distribution``. ``dataset`` is asked for no more than its name and its size."""

    @staticmethod
    def minmax(dataset: Any = None, moving_average: bool = False, averaging_constant: float = 0.01) -> CalibrationConfig:
        """The extremes, or the moving averages of each sample's extremes."""
        averaging = averaging_constant if moving_average else None
        return CalibrationConfig(**_named(dataset), method="MinMax", moving_average=moving_average, averaging_constant=averaging)

    @staticmethod
    def entropy(dataset: Any = None, num_bins: int = 128, num_quantized_bins: int = 128) -> CalibrationConfig:
        """The magnitude at which cutting off changes the distribution the least."""
        return CalibrationConfig(**_named(dataset), method="Entropy", num_bins=num_bins, num_quantized_bins=num_quantized_bins)

    @staticmethod
    def percentiles(dataset: Any = None, num_bins: int = 2048, percentile: float = 99.999) -> CalibrationConfig:
        """The middle ``percentile`` percent of all numbers."""
        return CalibrationConfig(**_named(dataset), method="Percentile", num_bins=num_bins, percentile=float(percentile))

    @staticmethod
    def distributions(dataset: Any = None) -> CalibrationConfig:
        """As many standard deviations on either side of the mean as the pass takes. Optimum has no preset for this method."""
        return CalibrationConfig(**_named(dataset), method="Distribution")


def _named(dataset: Any) -> dict[str, Any]:
    """What a data set of Hugging Face calls itself; of any other iterable nothing."""
    info = getattr(dataset, "info", None)
    split, samples = getattr(dataset, "split", None), getattr(dataset, "num_rows", None)
    return {
        "dataset_name": getattr(info, "builder_name", None),
        "dataset_config_name": getattr(info, "config_name", None),
        "dataset_split": None if split is None else str(split),
        "dataset_num_samples": samples if isinstance(samples, int) else None,
    }
