"""From Optimum's options for quantization to a chain of passes and a target, and what neither of them shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Final

from rewright.api import Chain
from rewright.integrations.optimum import wording
from rewright.integrations.optimum.calibration import CalibrationConfig
from rewright.integrations.optimum.compiling import compile
from rewright.integrations.optimum.messages import Message
from rewright.integrations.optimum.quantization import CHANNEL_AXES, QuantizationConfig
from rewright.model.errors import UsageError
from rewright.passes.contract import Backend, Pass, Target
from rewright.passes.selection import QuantizingPass
from rewright.quant.calibration.histogram import BINS
from rewright.quant.presets import PASSES, PRESETS, Mode
from rewright.registry.catalog import Catalog, default_catalog
from rewright.registry.options import chosen_options, configure, with_options
from rewright.tuning.request import QuantizationRequest

TYPES: Final[Mapping[str, str]] = {
    "QInt8": "int8", "QUInt8": "uint8", "QInt16": "int16", "QUInt16": "uint16", "QInt4": "int4", "QUInt4": "uint4",
}  # fmt: skip
"""What the passes call the members of onnxruntime.quantization.QuantType that they have."""

METHODS: Final[Mapping[str, str]] = {
    "MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile", "Distribution": "distribution",
}  # fmt: skip

_OF_METHOD: Final[Mapping[str, tuple[tuple[str, ...], str | None]]] = {
    "moving_average": (("MinMax",), "moving_average"),
    "averaging_constant": (("MinMax",), "averaging"),
    "percentile": (("Percentile",), "percentile"),
    "num_quantized_bins": (("Entropy",), "quantized_bins"),
    "num_bins": (("Entropy", "Percentile"), None),
}
"""The methods that an attribute is for, and the option of the pass that it sets."""

_SAME_PRODUCT: Final[Mapping[str, tuple[str, ...]]] = {"dynamic": ("FusedMatMul", "Gemm"), "static": ("FusedMatMul",)}
"""What is a MatMul too: with transposes and a factor in it; and where ONNX Runtime makes a MatMul and an Add of each Gemm."""

_DATASET: Final = tuple(name for name in CalibrationConfig.model_fields if name.startswith("dataset_"))


@dataclass(frozen=True)
class CompiledQuantization:
    """What the options became.

    Attributes:
        chain: the level and the quantizing pass; ``str(compiled.chain)`` is their text. Where ranges are measured before, the
            pass lacks the data, unless that was given.
        target: where the result will run.
        messages: what the chain and the target do not show, for every option that is not at its default.
        config: the options.
        calibration: those for calibration.
        level: what is done before, as a level or as chain text.
        step: the quantizing pass.
    """

    chain: Chain
    target: Target
    messages: tuple[Message, ...]
    config: QuantizationConfig
    calibration: CalibrationConfig
    level: str
    step: Pass

    def __str__(self) -> str:
        return self.chain.text

    @property
    def mode(self) -> Mode:
        """What the quantizing pass is called for."""
        return "static" if self.config.is_static else "dynamic"

    def with_options(self, options: Mapping[str, Any]) -> CompiledQuantization:
        """The same with options of the pass set anew; ``config`` says then what Optimum's attributes can say of it.

        Raises:
            UsageError: the pass has no such option, or not that value.
        """
        step = with_options(self.step, options)
        config = config_of(step) or self.config
        config._remarks, config._external_data = self.config.remarks, self.config.external_data
        config._optimization = self.config.optimization
        chain = Chain([*self.chain.passes[:-1], step], catalog=self.chain.catalog)
        return replace(self, chain=chain, config=config, step=step)

    def request(self, calibration: str | PathLike[str] | None = None) -> QuantizationRequest:
        """What ``rewright.quantize`` and the searches of ``rewright.tuning`` take.

        Args:
            calibration: input sets to measure ranges on, or a file of ranges; where they were given to ``compile_quantization``,
                these are taken.

        Raises:
            UsageError: ranges are to be measured, and there is no data.
        """
        options: dict[str, Any] = dict(chosen_options(self.step))
        given = options.pop("calibration", None) or options.pop("ranges", None)
        return QuantizationRequest(
            self.mode,
            None,
            self.level,
            None,
            calibration if calibration is not None else given,
            options.pop("operators", ()),
            options.pop("nodes", ()),
            options.pop("exclude", ()),
            options.pop("backend", "standalone"),
            options,
        )


def compile_quantization(
    config: QuantizationConfig | object,
    calibration_config: CalibrationConfig | object | None = None,
    *,
    calibration: str | PathLike[str] | None = None,
    level: str | None = None,
    backend: Backend = "standalone",
    catalog: Catalog | None = None,
) -> CompiledQuantization:
    """The chain and the target that stand for Optimum's options for quantization.

    Each attribute that is not at its default changes the chain or the target, or a message says why it does not.

    Args:
        config: the options, of this library or of Optimum (see ``QuantizationConfig.from_optimum``). Of an ORTConfig that asks
            for optimization too, that is what is done before.
        calibration_config: the options for calibration, of this library or of Optimum; extremes by default.
        calibration: an .npz file with inputs, a folder of them, or a file of ranges, where the chain is to hold it.
        level: what is done before, "O2" by default; also chain text. "O0" quantizes the model as it is, as Optimum does.
        backend: who quantizes.
        catalog: where the passes are looked up.

    Raises:
        UsageError: attributes contradict each other, ask for what no pass does, or ``config`` holds no options.
    """
    if not isinstance(config, QuantizationConfig):
        config = QuantizationConfig.from_optimum(config)
    config.check_consistent()
    if calibration_config is None:
        how = CalibrationConfig()
    elif isinstance(calibration_config, CalibrationConfig):
        how = calibration_config
    else:
        how = CalibrationConfig.from_optimum(calibration_config)
    made = _Compilation(config, how, catalog if catalog is not None else default_catalog())
    made.choose_types()
    made.choose_nodes()
    made.choose_pairs()
    made.choose_calibration(is_given=calibration_config is not None, data=calibration)
    return made.finished(level, backend, calibration)


def config_of(step: Pass) -> QuantizationConfig | None:
    """Optimum's options that say the same as a quantizing pass; None for a pass that these have no words for."""
    if step.name not in (PASSES["dynamic"], PASSES["static"]):
        return None
    names: dict[str, Any] = {known: short for short, known in TYPES.items()}
    known: dict[str, Any] = step.model_dump()
    is_static = step.name == PASSES["static"]
    is_qdq = is_static and known["format"] == "qdq"
    return QuantizationConfig(
        is_static=is_static,
        format="QDQ" if is_qdq else "QOperator",
        mode="QLinearOps" if is_static else "IntegerOps",
        activations_dtype=names[known.get("activation", "uint8")],
        activations_symmetric=known.get("activation_symmetric", False),
        weights_dtype=names[known["weight"]],
        weights_symmetric=known["symmetric"],
        per_channel=known["per_channel"],
        reduce_range=known["reduce_range"],
        nodes_to_quantize=list(known["nodes"]),
        nodes_to_exclude=list(known["exclude"]),
        operators_to_quantize=[op.rpartition("::")[2] for op in known["operators"]],
        qdq_add_pair_to_weight=known.get("weight_pairs", False),
        qdq_dedicated_pair=known.get("dedicated_pairs", False),
    )


@dataclass
class _Compilation:
    config: QuantizationConfig
    calibration: CalibrationConfig
    catalog: Catalog
    options: dict[str, Any] = field(default_factory=dict)
    target: Target = "cpu"
    messages: list[Message] = field(default_factory=list)

    @property
    def mode(self) -> Mode:
        return "static" if self.config.is_static else "dynamic"

    @property
    def pass_class(self) -> type[Pass]:
        return self.catalog.get(PASSES[self.mode])

    def say(self, option: str, text: str, *, is_note: bool = False) -> None:
        value = getattr(self.config if option in QuantizationConfig.model_fields else self.calibration, option)
        self.messages.append(Message(option, value, text, "note" if is_note else "warning"))

    def choose_types(self) -> None:
        """The integers, and the form of the result."""
        config, is_static = self.config, self.config.is_static
        self.options |= {
            "weight": self._type("weights_dtype"),
            "symmetric": config.weights_symmetric,
            "per_channel": config.per_channel,
            "reduce_range": config.reduce_range,
        }
        if is_static:
            self.options |= {
                "format": config.format.lower(),
                "activation": self._type("activations_dtype"),
                "activation_symmetric": config.activations_symmetric,
            }
            if config.mode == "IntegerOps":
                self.say("mode", wording.INTEGER_OPS_OF_STATIC)
            return
        if config.format == "QDQ":
            self.say("format", wording.QDQ_OF_DYNAMIC)
        if config.activations_dtype != "QUInt8":
            self.say("activations_dtype", wording.TYPE_AT_RUN_TIME)
        if config.activations_symmetric:
            self.say("activations_symmetric", wording.RANGE_AT_RUN_TIME)

    def _type(self, option: str) -> str:
        """What the pass calls a type.

        Raises:
            UsageError: it has no such type.
        """
        given = getattr(self.config, option)
        name = "weight" if option == "weights_dtype" else "activation"
        annotation = self.pass_class.model_fields[name].annotation
        allowed = {short: known for short, known in TYPES.items() if known in getattr(annotation, "__args__", ())}
        if given not in allowed:
            hint = f"It takes {', '.join(allowed)}."
            if "Int4" in given:
                hint += " Weights of 4 bits without quantized activations: `rewright quantize --mode weight-only`."
            raise UsageError(f"{option} is '{given}', which {self.pass_class.name} does not have.", hint)
        return allowed[given]

    def choose_nodes(self) -> None:
        """Which nodes are quantized."""
        config = self.config
        if config.nodes_to_quantize:
            self.options["nodes"] = list(config.nodes_to_quantize)
        if config.nodes_to_exclude:
            self.options["exclude"] = list(config.nodes_to_exclude)
        if config.names_the_default_operators:
            return
        quantizes: dict[str, str] = {}
        if issubclass(self.pass_class, QuantizingPass):
            quantizes = {op.rpartition("::")[2]: op for op in self.pass_class.quantizes}
        known = [op for op in config.operators_to_quantize if op in quantizes]
        others = [op for op in config.operators_to_quantize if op not in quantizes]
        if not known:
            raise UsageError(
                f"operators_to_quantize names only {', '.join(others)}, which {self.pass_class.name} does not quantize.",
                f"It quantizes {', '.join(quantizes)}.",
            )
        if "MatMul" in known:
            known += [op for op in _SAME_PRODUCT[self.mode] if op in quantizes]
        self.options["operators"] = list(dict.fromkeys(known))
        if others:
            self.say("operators_to_quantize", wording.other_operators(", ".join(others), self.pass_class.name))

    def choose_pairs(self) -> None:
        """Where QuantizeLinear and DequantizeLinear stand, and along which axis there are scales."""
        config, is_pairs = self.config, self.config.is_static and self.config.format == "QDQ"
        for option, name in (("qdq_add_pair_to_weight", "weight_pairs"), ("qdq_dedicated_pair", "dedicated_pairs")):
            if not getattr(config, option):
                continue
            if is_pairs:
                self.options[name] = True
            else:
                self.say(option, wording.NO_PAIRS)
        if is_pairs and config.qdq_add_pair_to_weight and config.qdq_dedicated_pair:
            # TensorRT asks for both: it knows none of ONNX Runtime's ops, and what else it wants no attribute says
            self.target = "portable"
            self.options = {**PRESETS["tensorrt"].of("static"), **self.options}
        axes = config.qdq_op_type_per_channel_support_to_axis
        if axes != CHANNEL_AXES:
            self.say("qdq_op_type_per_channel_support_to_axis", wording.CHANNEL_AXES)

    def choose_calibration(self, *, is_given: bool, data: object) -> None:
        """How ranges are found."""
        if not self.config.is_static:
            if is_given or data is not None:
                raise UsageError(
                    "the config is for dynamic quantization, which measures activations at run time.",
                    "Leave the calibration out, or set is_static=True.",
                )
            return
        if data is None:
            self.say("is_static", wording.NEEDS_DATA, is_note=True)
        how = self.calibration
        self.options["method"] = METHODS[how.method]
        for option, (methods, name) in _OF_METHOD.items():
            value = getattr(how, option)
            if value is None:
                continue
            if how.method not in methods:
                if value is not False:
                    self.say(option, wording.of_another_method(" and ".join(methods)))
            elif option == "averaging_constant" and not how.moving_average:
                self.say(option, wording.NO_AVERAGE)
            elif name is None:
                self.say(option, wording.own_bins(BINS), is_note=True)
            else:
                self.options[name] = value
        named = {name: getattr(how, name) for name in _DATASET if getattr(how, name) is not None}
        if named:
            told = ", ".join(str(value) for value in named.values())
            self.messages.append(Message(", ".join(named), told, wording.DATASET_BY_NAME, "note"))

    def finished(self, level: str | None, backend: Backend, data: str | PathLike[str] | None) -> CompiledQuantization:
        before = self._before(level)
        if data is not None:
            self.options["ranges" if str(data).endswith(".json") else "calibration"] = str(data)
        if backend != "standalone":
            self.options["backend"] = backend
        step = configure(self.pass_class, self.options)
        chain = Chain([*_chain_of(before, self.catalog), step], catalog=self.catalog)
        operators = getattr(step, "operators", ())
        if "MatMul" in operators and "Attention" not in operators and any(each.name == "attention" for each in chain):
            self.say("operators_to_quantize", wording.PACKED_PROJECTIONS, is_note=True)
        if before != "O0":
            for option in ("nodes_to_quantize", "nodes_to_exclude"):
                if getattr(self.config, option):
                    self.say(option, wording.names_after(before if len(before) < 20 else "the optimization"), is_note=True)
        messages = (*self.config.remarks, *self.messages)
        return CompiledQuantization(chain, self.target, messages, self.config, self.calibration, before, step)

    def _before(self, level: str | None) -> str:
        """What is done before: what is asked for, else what the options for optimization ask for, else O2."""
        asked = self.config.optimization
        if asked is None:
            return level if level is not None else "O2"
        if level is not None:
            raise UsageError(
                f"the level {level} and the options for optimization each say what is done before.", "Give one of them."
            )
        if asked.fp16:
            raise UsageError(
                "the options for optimization ask for float16, and the ones for quantization for 8 bits.",
                "Set fp16=False: what is float16 has no integer kernels.",
            )
        made = compile(asked, catalog=self.catalog)
        self.messages.extend(made.messages)
        if made.target != "cpu" and self.target == "cpu":
            self.target = made.target
        same = (name for name in self.catalog.levels if Chain(name, catalog=self.catalog) == made.chain)
        return next(same, made.chain.text)


def _chain_of(level: str, catalog: Catalog) -> tuple[Pass, ...]:
    request = QuantizationRequest(preset=None, level=level)
    return tuple(request.before(catalog).passes)
