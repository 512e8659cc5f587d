"""The child's side of ``onnxruntime.transformers``: the whole optimizer of a model type; one model in, one file out.

Neither torch nor sympy is needed: shapes come from the model's ``value_info``, and ONNX Runtime's own optimizer, which most of
the model types want to run first, is run here as any session is.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from onnx import ModelProto

from rewright.model.carrier import all_nodes, stubs
from rewright.model.weights import external_entries, point_to
from rewright.passes.ort import native
from rewright.passes.ort.anchor_guard import described, guarded, quiet, told
from rewright.passes.ort.fusion_classes import MASK_FORMATS, ClassOptions
from rewright.passes.ort.fusion_finish import finished
from rewright.passes.ort.fusion_model import model_class, transformers_module
from rewright.passes.ort.head_sizes import head_sizes
from rewright.passes.ort.proto_weights import MOST_BYTES, ProtoWeights

LEVELS: Final[Mapping[int, str]] = MappingProxyType(
    {0: "", 1: "ORT_ENABLE_BASIC", 2: "ORT_ENABLE_EXTENDED", 99: "ORT_ENABLE_ALL"}
)
"""ONNX Runtime's numbers for what its own optimizer does first."""

# What would hide the patterns that the drivers look for, as ONNX Runtime's own ``optimize_model`` has it.
_DISABLED: Final = ("ConstantSharing",)
_DISABLED_ABOVE_BASIC: Final = (
    "MatMulScaleFusion",
    "MatMulAddFusion",
    "MatmulTransposeFusion",
    "GemmActivationFusion",
    "BiasSoftmaxFusion",
)


def model_types() -> dict[str, tuple[type[Any], str, int]]:
    """The model types of the installed onnxruntime: the driver's class, the exporter it expects, the level it wants first."""
    return dict(transformers_module("optimizer").MODEL_TYPES)


def switches(model_type: str) -> dict[str, bool]:
    """The switches that a model type has, by name without "enable_", and whether they are on."""
    return {
        name.removeprefix("enable_"): value
        for name, value in vars(_fusion_options(model_type)).items()
        if isinstance(value, bool) and name != "enable_shape_inference"
    }


def run(model: bytes, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the driver of a model type and writes the result.

    Args:
        model: a serialized skeleton. Its ``value_info`` is what the driver knows of shapes; dimensions of equal names are equal.
        arguments: "root", the folder that the skeleton's external data is relative to; "folder", an existing one to write to;
            "model_type"; "num_heads" and "hidden_size", where 0 takes what the shapes say; "opt_level", one of ``LEVELS``,
            or None for what the model type wants; "mask_format", or none for what the model type has; "options", which
            switches are on or off; "most_bytes", how much of the weights may be in memory.

    Returns:
        as ``classes.run``, where "fired" is how many nodes of an op there are more than before, and "opt_level" is what was run.

    Raises:
        ValueError: the model type, a switch, the level or the mask format is unknown.
        RuntimeError: the driver raises as a whole; the message says what, and where.
    """
    name = arguments["model_type"]
    known = model_types()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"the known ones are {', '.join(known)}"
        raise ValueError(f"onnxruntime.transformers has no model type '{name}'; {hint}")
    base, _, wanted_level = known[name]
    level = wanted_level if arguments.get("opt_level") is None else arguments["opt_level"]
    if level not in LEVELS:
        raise ValueError(f"the level {level} is none of {', '.join(map(str, LEVELS))}")
    sizes = ClassOptions(arguments.get("num_heads", 0), arguments.get("hidden_size", 0))
    if not sizes.num_heads:
        sizes = ClassOptions(*head_sizes(ModelProto.FromString(model)))
    options = _options(name, arguments)
    weights = ProtoWeights(arguments["root"], arguments["folder"], arguments.get("most_bytes") or MOST_BYTES)
    reply: dict[str, Any] = {"path": "", "fired": {}, "errors": {}, "left_out": {}, "notes": [], "opt_level": level}
    with quiet(reply["notes"]):
        skeleton = _optimized(model, LEVELS[level], arguments) if level else model
        owner = model_class(base, weights)

        def work() -> bytes:
            proto = weights.parse(skeleton)
            if name == "phi":  # it reads them past the model object
                weights.fill_all(proto)
            with finished(proto):
                driver = owner(proto, sizes.num_heads, sizes.hidden_size)
                driver.optimize(options)
                driver.prune_graph()
            return weights.skeleton(proto)

        try:
            changed, seen = guarded(work)
        except Exception as error:  # what the drivers raise has no base of its own
            raise RuntimeError(described(error)) from error
    reply["left_out"] = seen.left_out
    reply["notes"].extend(told(fusion, anchors) for fusion, anchors in seen.left_out.items())
    reply["fired"] = _more(model, changed)
    if changed != model:
        reply["path"] = str(weights.write(changed))
    return reply


def _fusion_options(model_type: str) -> Any:
    return transformers_module("fusion_options").FusionOptions(model_type)


def _options(model_type: str, arguments: Mapping[str, Any]) -> Any:
    options = _fusion_options(model_type)
    known = switches(model_type)
    for name, is_on in arguments.get("options", {}).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"the model type {model_type} has no switch '{name}'; {hint}")
        setattr(options, name if hasattr(options, name) else f"enable_{name}", bool(is_on))
    if model_type == "phi" and options.attention_op_type is None:  # its driver has no default of its own
        options.attention_op_type = transformers_module("fusion_options").AttentionOpType.MultiHeadAttention
    mask_format = arguments.get("mask_format")
    if mask_format:
        if mask_format not in MASK_FORMATS:
            raise ValueError(f"the mask format '{mask_format}' is none of {', '.join(MASK_FORMATS)}")
        formats = transformers_module("fusion_options").AttentionMaskFormat
        options.attention_mask_format = getattr(formats, MASK_FORMATS[mask_format])
    return options


def _optimized(model: bytes, level: str, arguments: Mapping[str, Any]) -> bytes:
    """The skeleton after ONNX Runtime's own optimizer; its weights lie in a file of their own."""
    folder = Path(arguments["folder"], "session")
    folder.mkdir()
    disabled = _DISABLED if level == LEVELS[1] else (*_DISABLED, *_DISABLED_ABOVE_BASIC)
    path = native.optimize(
        model,
        {"folder": str(folder), "root": arguments["root"], "level": level, "disabled": list(disabled), "entries": []},
    )
    if not path:
        raise OSError("ONNX Runtime wrote no optimized model; check the free space of the temporary folder")
    proto = ModelProto.FromString(Path(path).read_bytes())
    for tensor in stubs(proto):
        entries = external_entries(tensor)
        location = os.path.relpath(folder / entries["location"], arguments["root"])
        point_to(tensor, location, int(entries.get("offset", "0")), int(entries["length"]))
    return proto.SerializeToString(deterministic=True)


def _more(before: bytes, after: bytes) -> dict[str, int]:
    return dict(_ops(after) - _ops(before))


def _ops(model: bytes) -> Counter[str]:
    return Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in all_nodes(ModelProto.FromString(model))
    )
