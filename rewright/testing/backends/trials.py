"""What each fusion pass does with a model that it is for: on every target, in every float type, at every opset that matters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
from rewright.run.applying import apply_pass
from rewright.testing import variants
from rewright.testing.backends.examples import EXAMPLES
from rewright.testing.mutants.subjects import FUSIONS, Subject, subject_for
from rewright.verify.process import SessionWorker

QUANTIZERS: Final = ("quantize-dynamic", "quantize-weights")
"""The passes that quantize without having seen what values are like."""

OPSETS: Final = (17, 20, 23)
"""Where the ops that passes put in became standard: LayerNormalization; Gelu; RMSNormalization, RotaryEmbedding, Attention."""

DEFERRED_AT: Final = 20
"""The opset at which ONNX Runtime's part is tried: it has no op of its own at a later one."""

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
    return tuple(name for name in (*FUSIONS, *QUANTIZERS) if name in EXAMPLES)


@cache
def tried(name: str, target: Target, dtype: str) -> tuple[Trial, ...]:
    """One trial for each of OPSETS at which the example is a model that ONNX's checker accepts in that type.

    Raises:
        KeyError: there is no example for the pass.
    """
    return tuple(trial for opset in OPSETS if (trial := _tried(name, target, dtype, opset)) is not None)


def _tried(name: str, target: Target, dtype: str, opset: int) -> Trial | None:
    subject = _subject(name, target, dtype, opset)
    if subject is None:
        return None
    session = PassSession(subject.step, subject.before, target)
    subject.step.apply(session)
    ops = dict.fromkeys(op.replace("::", ".") for site in session.sites for op in site.ops_added if _tells(op))
    if ops:
        return Trial(opset, tuple(ops))
    reasons = [item.reason for item in session.rejections] + [item.reason for item in session.coverage if item.reason]
    return Trial(opset, reason=_telling([_PLACE.sub("", reason) for reason in reasons]) or _nothing_left(name))


@cache
def deferred(name: str, target: Target, dtype: str) -> tuple[str, ...]:
    """The ops that ONNX Runtime puts into the example for the pass, at DEFERRED_AT and before the checks.

    Raises:
        KeyError: there is no example for the pass.
    """
    subject = _subject(name, target, dtype, DEFERRED_AT)
    if subject is None or subject.step.ort is None:
        return ()
    step = subject.step.model_copy(update={"backend": "ort"})
    session = PassSession(step, subject.before, target, isolation=_worker())
    apply_pass(step, session)
    added = (op for site in session.sites for op in site.ops_added if op in subject.step.ort.makes)
    return tuple(dict.fromkeys(op.replace("::", ".") for op in added))


@cache
def _worker() -> SessionWorker:
    """A process in which ONNX Runtime may die."""
    return SessionWorker()


def _tells(op: str) -> bool:
    """Whether an op is what a pass is for, and not what leads to it."""
    return op in CONTRACTS or f"::{op}" in CONTRACTS or op in STANDARD_SINCE or op == "MatMulInteger"


def _telling(reasons: Sequence[str]) -> str:
    """The first reason that is of the example as a whole; one for a node that no pattern begins with says little."""
    kernels = [reason for reason in reasons if _KERNEL in reason]
    others = [reason for reason in reasons if UNSPECIFIC not in reason]
    return next(iter((*kernels, *others, *reasons)), "")


def _nothing_left(name: str) -> str:
    earlier = [step for step in default_catalog().get(name).after if step in EXAMPLES]
    return f"what it follows ({', '.join(earlier)}) has put in nothing that it takes" if earlier else "it finds nothing"


@cache
def _subject(name: str, target: Target, dtype: str, opset: int) -> Subject | None:
    """The pass and its example, as what it follows leaves it; None where ONNX has no such model."""
    example = _example(name, dtype, opset)
    return None if example is None else subject_for(name, example, name, target=target)


@cache
def _example(name: str, dtype: str, opset: int) -> Model | None:
    """The model for the pass, or None where ONNX does not have one of its ops in that type."""
    model = _tidied(EXAMPLES[name], opset)
    if dtype != "float32":
        model = variants.in_dtype(model, dtype)
    try:
        onnx.shape_inference.infer_shapes(model.proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return None
    return model


@cache
def _tidied(build: Callable[[int], ModelProto], opset: int) -> Model:
    """Cleaned up in float32, since constants cannot be computed in every type."""
    return Chain("O1").run(load(build(opset)), verify="off").model
