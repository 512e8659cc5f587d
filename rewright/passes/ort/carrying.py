"""Carrying a pass out by ONNX Runtime: what it changes is cut into regions, and only those that are what was asked for stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import ModelProto, NodeProto, helper

from rewright.model import facts
from rewright.model.carrier import Model, all_nodes, bodies
from rewright.model.elements import normal_domain
from rewright.model.mixture import mixture
from rewright.model.regions import GraphIndex, Region, is_constant_node, regions
from rewright.ops.targets import typed_by, unsupported
from rewright.passes.contract import Pass, Rejection, Site
from rewright.passes.deferral import Deferral
from rewright.passes.ort.cutting import parts_of
from rewright.passes.ort.exchange import OPTIMIZE, RUN_CLASSES, NotCarriedOut, call, exchanged
from rewright.passes.ort.optimizers import all_but
from rewright.passes.session import PassSession

_MOST_ROUNDS: Final = 4
_GIVES_NO_REASON: Final = "ONNX Runtime left it, and does not say why"


def carry_out(step: Pass, session: PassSession) -> None:
    """Lets ONNX Runtime carry out a pass, as ``step.ort`` says, and records sites, rejections and notes.

    The session optimizers run first, with all others disabled, until nothing changes any more; then each class of
    ``onnxruntime.transformers``. What one of them does beside what the pass declares is undone, with a note. An optimizer that
    refuses the model, raises, or takes its process down changes nothing, and is named.
    """
    deferral = step.ort
    if deferral is None:
        return
    source = session.model
    if deferral.anchors and not _anchors(source.proto, deferral):
        return
    carrier = _Carrier(step, deferral, session, source)
    if deferral.optimizers:
        carrier.optimize()
    if deferral.classes:
        carrier.run_classes()
    result = carrier.result
    session.rejections.extend(
        Rejection(_label(node), f"{_GIVES_NO_REASON} ({', '.join((*deferral.optimizers, *deferral.classes))})")
        for node in _left(source, result, deferral)
    )
    if result is not source:
        take(session, result)


def take(session: PassSession, result: Model) -> None:
    """Makes ``result`` the model after the pass, with a site for each part of the change; new nodes tell what they replace."""
    source = session.model
    found = regions(GraphIndex(source), GraphIndex(result))
    if not found:
        return
    proto = ModelProto()
    proto.CopyFrom(result.proto)
    at = {id(node): place for place, node in enumerate(result.proto.graph.node)}
    for removed, added in (part for region in found for part in parts_of(region)):
        site = _site(session, proto.graph.name, removed, added)
        session.sites.append(site)
        for node in added:
            fresh = proto.graph.node[at[id(node)]]
            if not any(entry.key == "rewright.pass" for entry in fresh.metadata_props):
                fresh.metadata_props.add(key="rewright.pass", value=session.current.name)
                fresh.metadata_props.add(key="rewright.replaces", value=", ".join(site.removed))
    session.result, session.opened = source.with_proto(proto), None


def _site(session: PassSession, graph: str, removed: Sequence[NodeProto], added: Sequence[NodeProto]) -> Site:
    return Site(
        id=f"{session.current.name}#{len(session.sites)}",
        graph=graph,
        removed=tuple(map(_label, removed)),
        added=tuple(map(_label, added)),
        ops_removed=tuple(_ops(removed)),
        ops_added=tuple(_ops(added)),
        values=tuple(name for node in (*removed, *added) for name in node.output if name),
    )


@dataclass
class _Carrier:
    """One deferred pass on its way: ``result`` is what has come of the model so far."""

    step: Pass
    deferral: Deferral
    session: PassSession
    result: Model

    def optimize(self) -> None:
        names = self.deferral.optimizers
        try:
            self._optimize(names)
        except NotCarriedOut as error:
            problems = {", ".join(names): str(error)} if len(names) == 1 else self._optimize_one_by_one(names)
            if len(set(problems.values())) == 1:
                problems = {", ".join(problems): next(iter(problems.values()))}
            for name, problem in problems.items():
                self._note(f"{name} changed nothing: {problem}")

    def _optimize_one_by_one(self, names: tuple[str, ...]) -> dict[str, str]:
        """What the optimizers can do alone, and the problems of those that cannot."""
        problems = {}
        for name in names:
            try:
                self._optimize((name,))
            except NotCarriedOut as error:
                problems[name] = str(error)
        return problems

    def _optimize(self, names: tuple[str, ...]) -> None:
        changes = 0
        for _ in range(_MOST_ROUNDS):  # its own output can give ONNX Runtime something to do
            before = self.result
            work = partial(optimized, self.session, names, self.deferral.entries)
            after = exchanged(before, work, weights=self.deferral.weights)
            made = self._keep_what_was_asked_for(after)
            changes += made
            if not made:
                break
        if changes:
            self._note(f"{changes} by ONNX Runtime's {', '.join(names)}")

    def run_classes(self) -> None:
        found: dict[str, Any] = {}

        def work(model: bytes, folder: Path) -> str:
            arguments = {
                "root": Model.SESSION_FOLDER,
                "folder": str(folder),
                "classes": list(self.deferral.classes),
                "options": self.step.ort_options(),
            }
            given = with_shapes(self.session, model)
            found.update(call(self.session, RUN_CLASSES, given, arguments))
            return str(found["path"]) if any(found["fired"].values()) else ""

        try:
            after = exchanged(self.result, work, weights=self.deferral.weights)
        except NotCarriedOut as error:
            self._note(f"{', '.join(self.deferral.classes)} changed nothing: {error}")
            return
        for name, problem in found["errors"].items():
            self._note(f"{name} changed nothing: {problem}")
        for note in found["notes"]:
            self._note(note)
        made = self._keep_what_was_asked_for(after)
        if made:
            self._note(
                f"{made} by onnxruntime.transformers' {', '.join(name for name, count in found['fired'].items() if count)}"
            )

    def _note(self, text: str) -> None:
        if text not in self.session.notes:
            self.session.notes.append(text)

    def _keep_what_was_asked_for(self, after: Model | None) -> int:
        """Goes on to the model after, without what was not asked for; returns how many changes stay."""
        if after is None:
            return 0
        old, new = GraphIndex(self.result), GraphIndex(after)
        found = regions(old, new)
        undone = []
        for region in found:
            reason = self._refusal(region)
            if reason is None:
                continue
            undone.append(region)
            if reason:
                node = (*region.removed, *region.added)[0]
                self.session.rejections.append(Rejection(_label(node), f"what ONNX Runtime did was left out: it {reason}"))
        if len(undone) == len(found):
            return 0
        kept = mixture(old, new, undone) if undone else after
        if kept is None:
            self._note("what ONNX Runtime did was left out: what was asked for cannot be told from what was not")
            return 0
        self.result = kept
        return len(found) - len(undone)

    def _refusal(self, region: Region) -> str | None:
        """Why a change is not what was asked for; empty where it is not worth a word; None where it is."""
        if not region.added and all(map(is_constant_node, region.removed)):
            return ""
        added, removed = _ops(region.added), _ops(region.removed)
        fresh = Counter(added) - Counter(removed)
        makes, adds, anchors = self.deferral.makes, self.deferral.adds, self.deferral.anchors
        if makes:
            is_wanted = any(op in makes and (op in fresh or op in anchors) for op in added)
            foreign = [op for op in fresh if op not in makes and op not in adds and "::" in op]
        else:
            is_wanted = not anchors or any(op in anchors for op in Counter(removed) - Counter(added))
            foreign = [op for op in fresh if op not in adds]
        if not is_wanted:
            return f"made {_listed(added)} of {_listed(removed)}"
        if foreign:
            return f"put in {_listed(foreign)}"
        taken = Counter(removed) - Counter(added)
        if makes and anchors and not any(op in taken or op in makes for op in anchors):
            return f"put in {_listed(op for op in added if op in makes)} beside what it stands for"
        return next(filter(None, map(self._kernel_refusal, region.added)), None)

    def _kernel_refusal(self, node: NodeProto) -> str | None:
        domain, index = normal_domain(node.domain), typed_by(normal_domain(node.domain), node.op_type)
        name = node.input[index] if index < len(node.input) else ""
        dtype = self._dtypes.get(name)
        if dtype is None and self.session.target == "cpu":
            return None  # the gates load it
        reason = unsupported(domain, node.op_type, dtype, self.session.target)
        return f"put in {node.op_type}, but {reason}" if reason else None

    @cached_property
    def _dtypes(self) -> dict[str, np.dtype[Any]]:
        self.session.ensure_facts()
        found: dict[str, np.dtype[Any]] = {}
        for graph in self.session.view.graphs():
            for node in graph.nodes:
                for tensor in (*node.inputs, *node.outputs):
                    dtype = facts.dtype_of(tensor)
                    if dtype is not None:
                        found[tensor.name] = dtype
        return found


def optimized(session: PassSession, names: Iterable[str], entries: Iterable[tuple[str, str]], model: bytes, folder: Path) -> str:
    """Runs the named session optimizers alone; see ``native.optimize``."""
    arguments = {
        "root": Model.SESSION_FOLDER,
        "folder": str(folder),
        "level": "ORT_ENABLE_ALL",
        "disabled": all_but(names),
        "entries": [list(entry) for entry in entries],
    }
    return str(call(session, OPTIMIZE, with_shapes(session, model), arguments))


def with_shapes(session: PassSession, given: bytes) -> bytes:
    """The serialized model with all that is known about its values written beside them."""
    session.ensure_facts()
    proto = ModelProto()
    proto.ParseFromString(given)
    made = {name for node in proto.graph.node for name in node.output}
    described = {value.name for value in proto.graph.value_info}
    graph = next(iter(session.view.graphs()))
    for node in graph.nodes:
        for tensor in node.outputs:
            dtype, shape = facts.dtype_of(tensor), facts.shape_of(tensor)
            if dtype is None or shape is None or tensor.name not in made or tensor.name in described:
                continue
            dims = [dim if isinstance(dim, int) or dim is None else str(dim) for dim in shape]
            elem = helper.np_dtype_to_tensor_dtype(dtype)
            proto.graph.value_info.append(helper.make_tensor_value_info(tensor.name, elem, dims))
    return proto.SerializeToString()


def _anchors(proto: ModelProto, deferral: Deferral) -> list[NodeProto]:
    wanted = set(deferral.anchors)
    return [node for node in all_nodes(proto) if _op(node) in wanted] if wanted else []


def _left(source: Model, result: Model, deferral: Deferral) -> list[NodeProto]:
    """The anchors that stay as they were."""
    made = {tuple(node.output): tuple(node.input) for node in all_nodes(source.proto)}
    return [node for node in _anchors(result.proto, deferral) if made.get(tuple(node.output)) == tuple(node.input)]


def _ops(nodes: Iterable[NodeProto]) -> list[str]:
    return [_op(node) for node in _with_inner(nodes)]


def _with_inner(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those in their bodies."""
    pending = list(nodes)[::-1]
    while pending:
        node = pending.pop()
        yield node
        for body in bodies(node) if node.attribute else ():
            pending.extend(reversed(body.node))


def _op(node: NodeProto) -> str:
    domain = normal_domain(node.domain)
    return f"{domain}::{node.op_type}" if domain else node.op_type


def _label(node: NodeProto) -> str:
    return node.name or next(filter(None, node.output), node.op_type)


def _listed(ops: Iterable[str]) -> str:
    counts = Counter(ops)
    return ", ".join(op if count == 1 else f"{op} x{count}" for op, count in counts.items()) or "nothing"
