"""What a pass says about handing its step to ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Deferral:
    """How ONNX Runtime carries a pass out, or why it does not.

    Attributes:
        optimizers: names of ONNX Runtime's session optimizers, which run with all others disabled; see
            ``rewright.passes.ort.optimizers``.
        classes: names of fusion classes of ``onnxruntime.transformers``, each of which runs alone on what is left then; see
            ``rewright.passes.ort.classes``.
        makes: the ops, as "Gelu" or "com.microsoft::Gelu", of which a change has to put in at least one to be what was asked for.
            Empty for a cleanup, whose changes put in no op that they do not take away.
        adds: other ops that a cleanup may put in all the same.
        anchors: ops of which a change has to take away one, or to change it where that is among ``makes``. Where the model has
            none of them, ONNX Runtime is not asked; those that stay are reported.
        weights: which large weights it looks at: none ("ignored"), those that an op with nothing but constant operands reads
            ("folded"), or all ("read"). The others are not handed over.
        entries: session configuration entries that the optimizers need, as (key, value).
        declines: why ONNX Runtime cannot, or must not, carry the pass out; the pass then has no backend but its own.
    """

    optimizers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    weights: Literal["ignored", "folded", "read"] = "ignored"
    entries: tuple[tuple[str, str], ...] = ()
    declines: str = ""
