"""What is asked of a quantization, as a chain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Final

from rewright.api import Chain
from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.passes.contract import Backend, Pass, Target
from rewright.quant.presets import AUTO, MODES, PASSES, Detected, Mode, preset_of
from rewright.registry.catalog import Catalog, default_catalog, did_you_mean
from rewright.registry.options import configure, with_options

_BITS: Final[Mapping[str, tuple[int, ...]]] = {"dynamic": (8,), "static": (8,), "weight-only": (4, 8)}
_LEVEL: Final = re.compile(r"[oO]?\d")
_DATA: Final = frozenset({"calibration", "ranges"})
_RANGES: Final = frozenset({"ranges", "use_run_inputs"})
"""Options of the static pass that stand for calibration data."""


@dataclass(frozen=True)
class QuantizationRequest:
    """How a model is to be quantized.

    Attributes:
        mode: "dynamic", "static" or "weight-only".
        preset: a name of ``rewright.quant.presets.PRESETS``, or "auto" for that of this machine; None for no preset.
        level: what is done before, "O2"; also chain text.
        bits: of the weights; None leaves it to the pass.
        calibration: an .npz file or a folder of them, from which ranges are measured: for static, and for algorithms of
            weight-only that need activations. For static also a .json file of ranges.
        operators, nodes, exclude: see ``rewright.quant.selection.QuantizingPass``.
        backend: who carries the quantization out; the level is always carried out by rewright's own passes.
        options: further options of the pass; they outrank the preset's.
    """

    mode: Mode = "dynamic"
    preset: str | None = AUTO
    level: str = "O2"
    bits: int | None = None
    calibration: str | PathLike[str] | None = None
    operators: Sequence[str] = ()
    nodes: Sequence[str] = ()
    exclude: Sequence[str] = ()
    backend: Backend = "standalone"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            near = did_you_mean(self.mode, MODES)
            raise UsageError(f"mode is '{self.mode}'.", f"{near} It is one of {', '.join(MODES)}.".lstrip())
        allowed = _BITS[self.mode]
        if self.bits is not None and self.bits not in allowed:
            hint = f"The mode {self.mode} has {' or '.join(map(str, allowed))}; 4 bits are for the mode weight-only."
            raise UsageError(f"{self.bits} bits are not what the mode {self.mode} has.", hint)
        if self.calibration is not None and self.mode == "dynamic":
            raise UsageError(
                "the mode dynamic measures activations at run time and reads no calibration data.",
                "Leave --calibration out, or take --mode static.",
            )
        if self.calibration is None and self.mode == "static" and not _RANGES.intersection(self.options):
            raise UsageError("the mode static needs data to calibrate on.", "Give an .npz file or a folder by --calibration.")

    @property
    def detected(self) -> Detected | None:
        """The preset, and why it is this one; None for no preset."""
        return None if self.preset is None else preset_of(self.preset)

    @property
    def _of_preset(self) -> Mapping[str, Any]:
        return {} if self.detected is None else self.detected.preset.of(self.mode)

    def step(self, catalog: Catalog | None = None) -> Pass:
        """The quantizing pass with its options.

        Raises:
            UsageError: the preset or an option is wrong, or the catalog has no pass for the mode.
        """
        catalog = catalog if catalog is not None else default_catalog()
        name = PASSES[self.mode]
        if name not in catalog:
            there = [mode for mode in MODES if PASSES[mode] in catalog]
            raise UsageError(
                f"this version has no pass '{name}' for the mode {self.mode}.", f"It has {', '.join(there) or 'none'}."
            )
        pass_class = catalog.get(name)
        known = pass_class.option_fields()
        wanted = {name: value for name, value in self._of_preset.items() if name in known}
        if self.bits is not None and "bits" in known:
            wanted["bits"] = self.bits
        if self.calibration is not None:
            is_ranges = self.mode == "static" and str(self.calibration).endswith(".json")
            wanted["ranges" if is_ranges else "calibration"] = str(self.calibration)
        chosen = {"operators": self.operators, "nodes": self.nodes, "exclude": self.exclude}
        wanted |= {option: list(value) for option, value in chosen.items() if value}
        if self.backend != "standalone":
            wanted["backend"] = self.backend
        return configure(pass_class, wanted | dict(self.options))

    def unheard(self, catalog: Catalog | None = None) -> tuple[str, ...]:
        """What the preset asks for and the pass has no option for."""
        known = type(self.step(catalog)).option_fields()
        return tuple(name for name in self._of_preset if name not in known)

    def prepared(self, model: Model, catalog: Catalog | None = None, target: Target = "cpu") -> Model:
        """The model after the level, unverified: what the quantizing pass will find, by the same names."""
        return self.before(catalog).run(model, target=target, verify="off").model

    def before(self, catalog: Catalog | None = None) -> Chain:
        """The level alone.

        Raises:
            UsageError: there is no such level.
        """
        catalog = catalog if catalog is not None else default_catalog()
        return Chain.at_level(self.level, catalog=catalog) if _LEVEL.fullmatch(self.level) else Chain(self.level, catalog=catalog)

    def chain(self, catalog: Catalog | None = None) -> Chain:
        """The level and the quantizing pass.

        Raises:
            UsageError: see ``step``; or there is no such level.
        """
        catalog = catalog if catalog is not None else default_catalog()
        return Chain([*self.before(catalog).passes, self.step(catalog)], catalog=catalog)

    @property
    def level_name(self) -> str:
        """The level as "O2", or the chain text."""
        return f"O{self.level[-1]}" if _LEVEL.fullmatch(self.level) else self.level

    @property
    def usual_target(self) -> Target:
        """Where the result runs where nobody says: TensorRT knows none of ONNX Runtime's ops."""
        return "portable" if self.preset == "tensorrt" else "cpu"

    def text(self, catalog: Catalog | None = None, *, with_data: bool = True) -> str:
        """The chain as it would be written, the level not spelled out: "O2, quantize-dynamic{weight=uint8}".

        ``with_data`` names the calibration data too.
        """
        step, level = self.step(catalog), self.level_name
        if not with_data and self.calibration is not None:
            step = with_options(step, dict.fromkeys(_DATA.intersection(type(step).option_fields())))
        alone = Chain([step], catalog=catalog) if catalog is not None else Chain([step])
        return f"{level}, {alone.text}" if level.strip() else alone.text
