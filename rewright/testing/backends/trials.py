"""What each fusion pass does with a model that it is for: on every target, in every float type, at every opset that matters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Final, get_args

import onnx
from onnx import ModelProto

from rewright.api import Chain
from rewright.model.carrier import Model
from rewright.model.load import load
from rewright.ops.contract import CONTRACTS
from rewright.passes.contract import Target
from rewright.passes.session import PassSession
from rewright.registry.catalog import default_catalog
from rewright.report.wording import UNSPECIFIC
from rewright.testing import variants
from rewright.testing.mutants import models
from rewright.testing.mutants.subjects import FUSIONS, subject_for

OPSETS: Final = (17, 20, 23)
"""Where the ops that passes put in became standard: LayerNormalization; Gelu; RMSNormalization, RotaryEmbedding, Attention."""

TARGETS: Final[tuple[Target, ...]] = get_args(Target)
STANDARD_SINCE: Final[Mapping[str, int]] = {
    "LayerNormalization": 17,
    "Gelu": 20,
    "RMSNormalization": 23,
    "RotaryEmbedding": 23,
    "Attention": 23,
}
"""The standard ops that stand for several nodes, and the opset that they came with."""

_PLACE: Final = re.compile(r"( \('[^']*'\))?( at \w+ '[^']*')?$")
"""What a reason says of the value and the node."""

_KERNEL: Final = "no kernel for"


@dataclass(frozen=True)
class Trial:
    """What a pass did with its example: the ops that it put in, as "Gelu" or "com.microsoft.Gelu", or why it did not."""

    opset: int
    ops: tuple[str, ...] = ()
    reason: str = ""


def tried_passes() -> tuple[str, ...]:
    """The passes that there are examples for."""
    return tuple(name for name in FUSIONS if name in _EXAMPLES)


@cache
def tried(name: str, target: Target, dtype: str) -> tuple[Trial, ...]:
    """One trial for each of OPSETS at which the example is a model that ONNX's checker accepts in that type.

    Raises:
        KeyError: there is no example for the pass.
    """
    return tuple(trial for opset in OPSETS if (trial := _tried(name, target, dtype, opset)) is not None)


def _tried(name: str, target: Target, dtype: str, opset: int) -> Trial | None:
    example = _example(name, dtype, opset)
    if example is None:
        return None
    subject = subject_for(name, example, name, target=target)
    session = PassSession(subject.step, subject.before, target)
    subject.step.apply(session)
    ops = dict.fromkeys(op.replace("::", ".") for site in session.sites for op in site.ops_added if _tells(op))
    if ops:
        return Trial(opset, tuple(ops))
    return Trial(opset, reason=_telling([_PLACE.sub("", item.reason) for item in session.rejections]) or _nothing_left(name))


def _tells(op: str) -> bool:
    """Whether an op is what a pass is for, and not what leads to it."""
    return op in CONTRACTS or f"::{op}" in CONTRACTS or op in STANDARD_SINCE


def _telling(reasons: Sequence[str]) -> str:
    """The first reason that is of the example as a whole; one for a node that no pattern begins with says little."""
    kernels = [reason for reason in reasons if _KERNEL in reason]
    others = [reason for reason in reasons if UNSPECIFIC not in reason]
    return next(iter((*kernels, *others, *reasons)), "")


def _nothing_left(name: str) -> str:
    earlier = [step for step in default_catalog().get(name).after if step in _EXAMPLES]
    return f"what it follows ({', '.join(earlier)}) has put in nothing that it takes" if earlier else "it finds nothing"


@cache
def _example(name: str, dtype: str, opset: int) -> Model | None:
    """The model for the pass, or None where ONNX does not have one of its ops in that type."""
    model = load(_EXAMPLES[name](opset))
    if dtype != "float32":
        # Constants are computed first: not every type has kernels for that.
        model = variants.in_dtype(Chain("constant-folding").run(model, verify="off").model, dtype)
    try:
        onnx.shape_inference.infer_shapes(model.proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return None
    return model


def _norms(opset: int) -> ModelProto:
    return models.norms(opset, 1e-5)


def _activations(function: Callable[..., object], opset: int) -> ModelProto:
    return models.activations(opset, function, biased=True)  # type: ignore[arg-type]


def _attention(opset: int) -> ModelProto:
    return models.AttentionLayers(opset=opset, mask="added")()


_gelu: Final = partial(_activations, models.gelu)
_tanh_gelu: Final = partial(_activations, models.tanh_gelu)
_EXAMPLES: Final[Mapping[str, Callable[[int], ModelProto]]] = {
    "layer-norm": _norms,
    "skip-layer-norm": _norms,
    "bias-skip-layer-norm": _norms,
    "rms-norm": models.rms_norms,
    "skip-rms-norm": models.rms_norms,
    "embed-layer-norm": partial(models.embeddings, True, "counted"),
    "rotary-embedding": partial(models.rotary, "halves", 8, False),
    "gelu": _gelu,
    "fast-gelu": _tanh_gelu,
    "quick-gelu": partial(_activations, models.quick_gelu(1.702)),
    "gelu-approximation": _gelu,
    "bias-gelu": _gelu,
    "gemm-fast-gelu": _tanh_gelu,
    "attention": _attention,
    "multi-head-attention": _attention,
    "group-query-attention": lambda opset: models.AttentionLayers(opset=opset, groups=2, size=8, mask="causal")(),
}
