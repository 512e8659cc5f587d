"""What quantizes well where: the options for each instruction set."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from rewright.model.errors import UsageError

Mode = Literal["dynamic", "static", "weight-only"]

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
PASSES: Final[Mapping[Mode, str]] = MappingProxyType(
    {"dynamic": "quantize-dynamic", "static": "quantize-static", "weight-only": "quantize-weights"}
)
"""The pass that carries a mode out."""

AUTO: Final = "auto"

_SIGNED: Final = {"weight": "int8", "symmetric": True, "per_channel": True, "reduce_range": False}
_UNSIGNED: Final = {**_SIGNED, "weight": "uint8"}
_UINT8_ACTIVATIONS: Final = {"activation": "uint8", "activation_symmetric": False}
_BLOCKS: Final = {"accuracy_level": 4}


@dataclass(frozen=True)
class Preset:
    """The options of the quantizing passes for one kind of processor.

    The values are those of Optimum's AutoQuantizationConfig of the same names, so that what was chosen there is what runs here.

    Attributes:
        name: "avx512-vnni".
        about: for whom it is, in a phrase.
        options: of the pass for each mode that there is; a mode that makes no sense there is missing.
    """

    name: str
    about: str
    options: Mapping[Mode, Mapping[str, Any]]

    def of(self, mode: Mode) -> Mapping[str, Any]:
        """The options for a mode.

        Raises:
            UsageError: the preset has no such mode.
        """
        if mode not in self.options:
            raise UsageError(f"the preset {self.name} has no mode '{mode}'.", f"It has {', '.join(self.options)}; {self.about}.")
        return self.options[mode]


def _of_cpu(name: str, about: str, weights: Mapping[str, Any]) -> Preset:
    return Preset(name, about, {"dynamic": weights, "static": {**_UINT8_ACTIVATIONS, **weights}, "weight-only": _BLOCKS})


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            _of_cpu("arm64", "ARM with 64 bits", _SIGNED),
            # uint8 times int8 is summed in pairs of 16 bits there, which saturate; uint8 times uint8 is not
            _of_cpu("avx2", "x86 with AVX2 and without VNNI", _UNSIGNED),
            _of_cpu("avx512", "x86 with AVX-512 and without VNNI; reduce_range=true keeps sums from saturating", _SIGNED),
            _of_cpu("avx512-vnni", "x86 with AVX-512 VNNI", _SIGNED),
            _of_cpu("ppc64le", "POWER, little endian", _SIGNED),
            Preset(
                "tensorrt",
                "TensorRT: QuantizeLinear and DequantizeLinear in pairs, zero points of 0, biases in floats; target=portable",
                {
                    "static": {
                        "activation": "int8",
                        "activation_symmetric": True,
                        **_SIGNED,
                        "quantize_bias": False,  # it refuses a DequantizeLinear of int32
                        "weight_pairs": True,
                        "dedicated_pairs": True,
                    }
                },
            ),
        )
    }
)
"""Presets by name."""


@dataclass(frozen=True)
class Detected:
    """The preset that fits a machine, and what of the machine says so."""

    preset: Preset
    reason: str


def detect(machine: str | None = None, features: frozenset[str] | None = None) -> Detected:
    """The preset for this machine, or for one with these features.

    Args:
        machine: as ``platform.machine()`` has it.
        features: the processor's flags as Linux names them: "avx2", "avx512f", "avx512_vnni".

    Raises:
        UsageError: there is no preset for such a machine.
    """
    machine = (platform.machine() if machine is None else machine).lower()
    if machine in ("arm64", "aarch64", "ppc64le"):
        name = "ppc64le" if machine == "ppc64le" else "arm64"
        return Detected(PRESETS[name], f"this machine is {machine}")
    if machine not in ("x86_64", "amd64"):
        raise UsageError(f"there is no preset for {machine or 'this machine'}.", f"Name one: {', '.join(PRESETS)}.")
    features = _features() if features is None else features
    if features is None:  # its values are right on every x86
        return Detected(PRESETS["avx2"], "what this processor can do could not be found out")
    if "avx512f" in features:
        has_vnni = "avx512_vnni" in features
        reason = "this processor has " + ("avx512_vnni" if has_vnni else "avx512f and no VNNI")
        return Detected(PRESETS["avx512-vnni" if has_vnni else "avx512"], reason)
    # also right without AVX2: ONNX Runtime's older kernels sum up pairs of 16 bits as well
    reason = "this processor has avx2 and no AVX-512" if "avx2" in features else "this processor has neither AVX2 nor AVX-512"
    return Detected(PRESETS["avx2"], reason)


def preset_of(name: str) -> Detected:
    """The preset of a name; "auto" takes that of this machine. "avx512_vnni", as Optimum writes it, is "avx512-vnni".

    Raises:
        UsageError: there is none of that name, or none for this machine.
    """
    if name == AUTO:
        return detect()
    known = name.replace("_", "-").lower()
    if known not in PRESETS:
        raise UsageError(f"there is no preset '{name}'.", f"It is {AUTO} or one of {', '.join(PRESETS)}.")
    return Detected(PRESETS[known], "it was asked for")


def _features() -> frozenset[str] | None:
    """The flags of this processor, None where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return None
