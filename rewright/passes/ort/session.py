"""The ``ort-session`` pass."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import field_validator

from rewright.model.carrier import Model
from rewright.model.errors import PassError, UsageError
from rewright.passes.contract import Backend, Pass
from rewright.passes.ort.carrying import take
from rewright.passes.ort.exchange import OPTIMIZE, NotCarriedOut, call, exchanged
from rewright.passes.ort.optimizers import all_but
from rewright.passes.session import PassSession

Level = Literal["none", "basic", "extended", "all"]

_LEVELS: Final[dict[Level, str]] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_NUMBERS: Final[dict[str, Level]] = {"0": "none", "1": "basic", "2": "extended", "99": "all"}
_MOST_ROUNDS: Final = 4
_NEVER_PERSISTENT: Final = ("GeluApproximation",)


class OrtSession(Pass):
    """Hands the model to ONNX Runtime's own session optimizer and takes what it returns.

    1. ``level`` is "none", "basic", "extended" or "all", or ONNX Runtime's number for it: 0, 1, 2, 99. "none" still inlines
       functions and turns Constant nodes into initializers, as every session does.
    2. ``only`` restricts it to the named optimizers ("GeluFusionL2", "SkipLayerNormFusion", ...); an unknown name is an error.
    3. Each connected change is a site of its own, so that a wrong one costs no other.
    4. Weights that come back unchanged are those of the source again; names, doc strings and metadata of what it left alone
       are restored, so are the model's own fields, inputs and outputs.
    5. Functions are inlined by ONNX Runtime on the way. Level "all" adds layout changes that suit this machine's processor: a
       result made so belongs on machines like it.
    6. It runs until nothing changes any more, at most four times.
    7. A model that ONNX Runtime cannot load is left as it is, with the reason.

    The approximation of Gelu is not among what it does: that is ``gelu-approximation{backend=ort}``.
    Source: ONNX Runtime, graph optimizations; session option ``optimized_model_filepath``.
    """

    name: ClassVar[str] = "ort-session"
    exactness = "reassociating"
    backends: ClassVar[tuple[Backend, ...]] = ("ort",)

    backend: Backend = "ort"
    level: Level = "extended"
    only: tuple[str, ...] = ()

    @field_validator("level", mode="before")
    @classmethod
    def _number_or_name(cls, level: object) -> object:
        return _NUMBERS.get(str(level), level)

    @field_validator("only")
    @classmethod
    def _only_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names:
            try:
                all_but(names)
            except UsageError as error:  # pydantic reports ValueErrors only
                raise ValueError(str(error)) from error
        return names

    def apply(self, session: PassSession) -> None:
        result = session.model
        for _ in range(_MOST_ROUNDS):  # its own output can give ONNX Runtime something to do
            before = result
            try:
                made = exchanged(before, partial(self._optimize, session))
            except NotCarriedOut as error:
                session.notes.append(f"ONNX Runtime cannot load the model: {error}")
                break
            if made is None:
                raise PassError("ONNX Runtime wrote no optimized model.", "Check the free space of the temporary folder.")
            result = made
            if result.fingerprint() == before.fingerprint():
                break
        if result is session.model:
            return
        take(session, result)
        if self.level == "all" and session.sites:
            session.notes.append("level all: layouts may suit this machine's processor only")

    def _optimize(self, session: PassSession, model: bytes, folder: Path) -> str:
        arguments = {
            "root": Model.SESSION_FOLDER,
            "folder": str(folder),
            "level": _LEVELS[self.level],
            "disabled": all_but(self.only) if self.only else list(_NEVER_PERSISTENT),
            "entries": [],
        }
        return str(call(session, OPTIMIZE, model, arguments))
