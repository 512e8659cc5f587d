"""The ``ort-transformers`` pass."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from rewright.model.carrier import Model
from rewright.passes.contract import Backend, Pass
from rewright.passes.ort.carrying import take, with_shapes
from rewright.passes.ort.exchange import NotCarriedOut, call, exchanged
from rewright.passes.ort.model_types import IMAGE_SWITCHES, ModelType, switches_of
from rewright.passes.session import PassSession

RUN_DRIVER: Final = "rewright.passes.ort.drivers:run"

Level = Literal["auto", "none", "basic", "extended", "all"]

_LEVELS: Final[dict[Level, int | None]] = {"auto": None, "none": 0, "basic": 1, "extended": 2, "all": 99}
_MOST_ROUNDS: Final = 4

# What these put in, packed projections included, has kernels for CUDA only.
_OFF_ON_CPU: Final = (*IMAGE_SWITCHES, "qordered_matmul")
_NAMES: Final[dict[str, Level]] = {str(number): name for name, number in _LEVELS.items() if number is not None}


class OrtTransformers(Pass):
    """Hands the model to the optimizer that ``onnxruntime.transformers`` has for a model type, and takes what it returns.

    1. ``model_type`` says which: "bert", "gpt2", "bart", "t5", "vit", "clip", "unet", ...; what it looks for is fixed by it.
    2. ``heads`` and ``hidden_size`` are taken from the shapes around the softmaxes of the model where they are 0.
    3. ``mask`` is what attention is given of a padding mask: "raw", the mask itself; "index", the length of each row, which is
       right for padding on the right only; "none". What does not hold for the model is found by the parity gate, and undone.
    4. ``without`` and ``also`` switch fusions off and on by the names that ONNX Runtime has for them, without "enable_".
    5. Fusions whose ops the target "cpu" has no kernel for are off there, unless ``also`` names them: ``nhwc_conv``,
       ``group_norm`` and others of the image models.
    6. ``level`` is what ONNX Runtime's own optimizer does first: "auto" as the model type wants it, "none", "basic",
       "extended" or "all", or the numbers 0, 1, 2, 99.
    7. Each connected change is a site of its own, so that a wrong one costs no other; one node at which a fusion raises is left
       out, and named.
    8. Neither torch nor sympy is needed.

    Source: ONNX Runtime, onnxruntime.transformers, ``optimize_model``.
    """

    name: ClassVar[str] = "ort-transformers"
    exactness = "reassociating"
    backends: ClassVar[tuple[Backend, ...]] = ("ort",)

    backend: Backend = "ort"
    model_type: ModelType = Field(default="bert", description="Whose patterns are looked for.")
    heads: int = Field(default=0, ge=0, description="Attention heads; 0 takes what the shapes say.")
    hidden_size: int = Field(default=0, ge=0, description="Width of the attention; goes with heads.")
    mask: Literal["raw", "index", "none"] = Field(default="raw", description="What attention is given of a padding mask.")
    level: Level = Field(default="auto", description="What ONNX Runtime's own optimizer does first.")
    without: tuple[str, ...] = Field(default=(), description="Fusions that are switched off.")
    also: tuple[str, ...] = Field(default=(), description="Fusions and choices that are switched on.")

    @field_validator("level", mode="before")
    @classmethod
    def _number_or_name(cls, level: object) -> object:
        return _NAMES.get(str(level), level)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.heads) != bool(self.hidden_size) or (self.heads and self.hidden_size % self.heads):
            sizes = f"heads is {self.heads} and hidden_size is {self.hidden_size}"
            raise ValueError(f"{sizes}; give both, hidden_size as a multiple of heads, or neither")
        known = switches_of(self.model_type)
        for switch in (*self.without, *self.also):
            if switch not in known:
                near = difflib.get_close_matches(switch, known, n=3, cutoff=0.4)
                hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}"
                raise ValueError(f"the model type {self.model_type} has no switch '{switch}' ({hint})")
        if "gelu_approximation" in self.also:
            raise ValueError("gelu_approximation is no exact rewrite; put the pass gelu-approximation after this one")
        if both := set(self.without) & set(self.also):
            raise ValueError(f"{', '.join(sorted(both))} is both in without and in also")
        return self

    def apply(self, session: PassSession) -> None:
        result = session.model
        notes: dict[str, None] = {}
        for _ in range(_MOST_ROUNDS):  # its own output can give it something to do
            before = result
            try:
                made = exchanged(before, partial(self._run, session, before, notes))
            except NotCarriedOut as error:
                notes[f"onnxruntime.transformers changed nothing: {error}"] = None
                break
            if made is None or made.fingerprint() == before.fingerprint():
                break
            result = made
        session.notes.extend(notes)
        if result is not session.model:
            take(session, result)

    def _run(self, session: PassSession, source: Model, notes: dict[str, None], model: bytes, folder: Path) -> str:
        given = with_shapes(session, model)
        reply = call(session, RUN_DRIVER, given, self._arguments(session, folder))
        notes.update(dict.fromkeys(_sentences(reply)))
        return str(reply["path"])

    def _arguments(self, session: PassSession, folder: Path) -> dict[str, Any]:
        known = switches_of(self.model_type)
        off = [name for name in _OFF_ON_CPU if name in known] if session.target == "cpu" else []
        return {
            "root": Model.SESSION_FOLDER,
            "folder": str(folder),
            "model_type": self.model_type,
            "num_heads": self.heads,
            "hidden_size": self.hidden_size,
            "opt_level": _LEVELS[self.level],
            "mask_format": self.mask,
            "options": {**dict.fromkeys((*off, *self.without), False), **dict.fromkeys(self.also, True)},
        }


def _sentences(reply: dict[str, Any]) -> Iterator[str]:
    counts = [f"{op} x{count}" for op, count in sorted(reply["fired"].items()) if "::" in op]
    if counts:
        yield f"onnxruntime.transformers put in {', '.join(counts)}"
    yield from reply["notes"]
