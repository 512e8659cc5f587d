"""What a pass is: a frozen, validated options model with class-level facts, and one method that does the work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from rewright.model.errors import PassError
from rewright.passes.deferral import Deferral

if TYPE_CHECKING:
    from rewright.passes.session import PassSession

Exactness = Literal["exact", "reassociating", "approximate", "quantizing"]
"""What a pass promises about the numbers; it selects the tolerance, from bit-equal to a metric budget."""

Backend = Literal["standalone", "ort", "auto"]
Target = Literal["cpu", "cuda", "dml", "portable"]
FailurePolicy = Literal["rollback", "skip", "raise"]
"""After a pass that fails a gate: undo the sites that are wrong, undo the whole pass, or end the run."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Site:
    """One place where a pass fired.

    Attributes:
        id: unique within the pass's run, made of the pass's name and a number.
        graph: the graph, body or function.
        removed: names of the removed nodes (their first output where they have no name).
        added: names of the added nodes.
        ops_removed, ops_added: their ops, as "MatMul" or "com.microsoft::Gelu".
        values: names of values that they make, as far as known: nodes need have no name, or one of their own.
    """

    id: str
    graph: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    ops_removed: tuple[str, ...] = ()
    ops_added: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejection:
    """A place where a pass nearly fired: the node, and the first thing that stood in the way."""

    node: str
    reason: str


class Pass(BaseModel):
    """Base of every pass. The subclass's pydantic fields are its options; an instance is a configured pass.

    Class facts:
        name: lower-case words joined by hyphens, unique in the catalog.
        exactness: what the pass promises about the numbers.
        emits: the non-standard ops that it may add, as "com.microsoft.BiasGelu".
        after, before: names of passes that it should follow or precede when both are in a level.
        requires: names of passes that must have run before.
        backends: who can carry it out.
        ort: how ONNX Runtime carries it out, or why it does not; where it does, the pass has all backends.
        carrier: what of ONNX Runtime the backend "ort" runs for a pass that hands itself over, without ``ort``.
        changes_interface: whether inputs or outputs of the model may change.
        retypes: whether values that stay change their element types, so that no part of the change makes sense without the
            others: it is judged as a whole.
        edits_view: whether the pass reads and edits ``session.view`` alone and records each site. ``session.model`` may then be
            older than the view, in a run that checks nothing.

    Options of every pass:
        backend: who carries it out.
        on_failure: what happens when it fails a gate; None leaves that to the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, ser_json_inf_nan="constants")

    name: ClassVar[str] = ""
    exactness: ClassVar[Exactness] = "exact"
    emits: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    backends: ClassVar[tuple[Backend, ...]] = ("standalone",)
    ort: ClassVar[Deferral | None] = None
    carrier: ClassVar[str] = ""
    changes_interface: ClassVar[bool] = False
    retypes: ClassVar[bool] = False
    edits_view: ClassVar[bool] = False

    backend: Backend = "standalone"
    on_failure: FailurePolicy | None = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.name and not _NAME.fullmatch(cls.name):
            raise PassError(
                f"the pass class {cls.__name__} has the name '{cls.name}'.",
                "Pass developer: use lower-case words joined by hyphens.",
            )
        if cls.ort is not None and "ort" in cls.__dict__ and "backends" not in cls.__dict__:
            cls.backends = ("standalone",) if cls.ort.declines else ("standalone", "ort", "auto")

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        lines = (cls.__doc__ or "").strip().splitlines()
        return lines[0].strip() if lines else ""

    @classmethod
    def option_fields(cls) -> dict[str, FieldInfo]:
        """The options by name, those that every pass has last."""
        fields = dict(cls.model_fields)
        for common in ("backend", "on_failure"):
            fields[common] = fields.pop(common)
        return fields

    @property
    def alters_interface(self) -> bool:
        """Whether inputs or outputs of the model may change with these options."""
        return self.changes_interface

    @property
    def is_deferred(self) -> bool:
        """Whether ONNX Runtime carries it out, as ``ort`` says, instead of ``apply``."""
        return self.backend == "ort" and self.ort is not None and not self.ort.declines

    def parts(self) -> tuple[Self, ...]:
        """The steps that it stands for: with the backend "auto" its own rewrite, then ONNX Runtime's for what is left."""
        by_ort = self.ort is not None and not self.ort.declines
        if self.backend != "auto" or not (by_ort or self.carrier):
            return (self,)
        return self.model_copy(update={"backend": "standalone"}), self.model_copy(update={"backend": "ort"})

    def ort_options(self) -> dict[str, Any]:
        """What the classes of ``onnxruntime.transformers`` are told where the pass is deferred; see ``passes.ort.classes``."""
        return {}

    def apply(self, session: PassSession) -> None:
        """Carries the pass out on the session's model. Subclass PatternPass, GraphPass or ModelPass instead of this."""
        raise PassError(
            f"the pass '{self.name or type(self).__name__}' does nothing.",
            "Pass developer: derive from PatternPass, GraphPass or ModelPass.",
        )
