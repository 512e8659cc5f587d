"""One pass on one model: what the pass sees while it works, and what it leaves behind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol

import onnx_graphsurgeon as gs

from rewright.model import facts, opsets
from rewright.model.carrier import Model
from rewright.model.edit import Editor
from rewright.model.names import Names
from rewright.model.tensors import spill
from rewright.model.view import MADE_UP_SYMBOL, View
from rewright.ops.lowering import lower
from rewright.ops.targets import typed_by, unsupported
from rewright.passes.bounds import BoundsFinder
from rewright.passes.contract import Pass, Rejection, Site, Target
from rewright.passes.coverage import Covered
from rewright.shapes.walk import shapes_of

_MADE_UP: Final = re.compile(rf"(?P<quote>['\"]?){MADE_UP_SYMBOL}(?:\w+|(?P<nested>\())")


class Isolation(Protocol):
    """Another process, which may die without taking this one along."""

    def call(self, function: str, payload: bytes, arguments: Mapping[str, Any]) -> Any:
        """What ``function``, "package.module:name", returns there for ``(payload, arguments)``; raises RewrightError."""


@dataclass
class PassSession:
    """The state of one application of one pass.

    Attributes:
        current: the pass.
        model: the model before the pass; a ModelPass replaces ``result``.
        target: where the model will run.
        sites, rejections: what the pass records.
        coverage: what a quantizing pass says of each node that it is for.
        notes: sentences for the report (what a backend could not do, and why).
        isolation: where work is done that may crash; None does it in this process.
        bounds: finds what numbers values hold, by proof and on the inputs of the run; None where nobody runs the model.
    """

    current: Pass
    model: Model
    target: Target = "cpu"
    opened: View | None = None
    result: Model | None = None
    sites: list[Site] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    coverage: list[Covered] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    isolation: Isolation | None = field(default=None, repr=False)
    bounds: BoundsFinder | None = field(default=None, repr=False)
    _obstacles: dict[int, str | None] = field(default_factory=dict, repr=False)

    @property
    def view(self) -> View:
        """The editing view, opened when it is first asked for and shared by consecutive passes."""
        if self.opened is None:
            self.opened = View(self.model)
        return self.opened

    @cached_property
    def editor(self) -> Editor:
        """Editing primitives; ``finish`` is called by whoever runs the pass."""
        return Editor(self.view)

    @cached_property
    def names(self) -> Names:
        """Names for new nodes and values."""
        return Names(self.view)

    def ensure_facts(self) -> bool:
        """Makes dtypes and shapes known: by the rules of ``rewright.shapes``, and where those leave something open, by onnx's
        inference, through fused ops by what their contracts say. What is known already is not inferred again.

        Returns:
            whether onnx was asked.
        """
        shapes = shapes_of(self.view)
        shapes.refresh()
        is_asked = self.view.facts_stale and shapes.lacks_something()
        if is_asked:
            facts.ensure(self.view, lambda model: lower(model, every=True))
            shapes.revisit()
            shapes.refresh()
        if self.view.facts_problem:
            note = f"shape inference failed, so that only the exporter's own shapes are known: {self.view.facts_problem}"
            if note not in self.notes:
                self.notes.append(note)
        return is_asked

    def opset_obstacle(self, version: int) -> str | None:
        """Why the model can not be raised to ``version`` of the standard domain, or None if it can; looked for once."""
        if version not in self._obstacles:
            self._obstacles[version] = opsets.obstacle(self.view, version)
        return self._obstacles[version]

    def reject(self, node: Any, reason: str) -> None:
        """Records that the pass did not fire at ``node``, and why; dimensions that nobody named are shown as "?"."""
        self.rejections.append(Rejection(label(node), _without_made_up_names(reason)))

    def record(self, graph: Any, removed: Sequence[Any], added: Sequence[Any]) -> Site:
        """Records a site and stamps the added nodes with the pass's name and what they replace.

        Large constants that the added nodes read are moved to the spill file, so that memory holds those of one site at most.
        """
        site = Site(
            id=f"{self.current.name}#{len(self.sites)}",
            graph=graph.name or "",
            removed=tuple(map(label, removed)),
            added=tuple(map(label, added)),
            ops_removed=tuple(map(op_key, removed)),
            ops_added=tuple(map(op_key, added)),
            values=tuple(tensor.name for node in (*removed, *added) for tensor in node.outputs if tensor.name),
        )
        for node in added:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant):
                    spill(tensor, self.view.model.files)
            node.metadata = {"rewright.pass": self.current.name, "rewright.replaces": ", ".join(site.removed)}
        self.sites.append(site)
        return site

    def refusal(self, node: Any) -> str | None:
        """Why the target cannot run the new node, or None if it can (or if the op has no contract)."""
        index = typed_by(node.domain or "", node.op)
        dtype = facts.dtype_of(node.inputs[index]) if index < len(node.inputs) else None
        return unsupported(node.domain or "", node.op, dtype, self.target)


def _without_made_up_names(text: str) -> str:
    """The text with "?" for each dimension that inference named, and for each that is computed from such."""
    while (found := _MADE_UP.search(text)) is not None:
        end = found.end()
        depth = 1 if found["nested"] else 0
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if found["quote"] and text[end : end + 1] == found["quote"]:
            end += 1
        text = f"{text[: found.start()]}?{text[end:]}"
    return text


def label(node: Any) -> str:
    """The node's name, or its first output's where it has none."""
    return str(node.name or next((tensor.name for tensor in node.outputs if tensor.name), node.op))


def op_key(node: Any) -> str:
    """ "MatMul", or "com.microsoft::Gelu" outside the standard domain."""
    return f"{node.domain}::{node.op}" if node.domain else str(node.op)
