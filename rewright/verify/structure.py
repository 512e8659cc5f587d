"""The structure gate: what has to hold for a graph to be a graph, before anything is computed with it.

A pass answers only for problems that were not there before it. Everything is linear in the number of nodes, and the only
recursion is over nested bodies, whose depth protobuf itself limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final, Literal

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model, all_graphs, bodies, node_lists, stubs
from rewright.ops.contract import CONTRACTS

_REPORTED: Final = 20
"""Problems that evidence lists; one wrong rename can make thousands."""

_CHECKER: Final = "onnx.checker: "
_NAMELESS: Final = " has no name"
_RUNTIME_DOMAIN: Final = "ai.onnxruntime.standard"
_RUNTIME_OPS: Final = {
    "Affine",
    "Crop",
    "DynamicSlice",
    "GivenTensorFill",
    "ImageScaler",
    "LayerNormalization",
    "ParametricSoftplus",
    "Scale",
    "ScaledTanh",
}
"""Ops that ONNX Runtime implements in the standard domain although the standard, at some opset or at all, lacks them; beside
these, those that a contract says so of."""


class StructureEvidence(BaseModel):
    """What the structure gate found: the problems that `after` has and `before` had not."""

    model_config = ConfigDict(extra="forbid")

    gate: Literal["structure"] = "structure"
    status: Literal["passed", "failed"]
    problems: list[str] = Field(default_factory=list)

    @property
    def reason(self) -> str:
        """The first problem, or the empty string."""
        return self.problems[0] if self.problems else ""


def check_structure(before: Model, after: Model) -> StructureEvidence:
    """Check `after`, and hold against it only what was not already wrong in `before`.

    Checked: onnx's own checker (ops of other domains are tolerated, weights are not read), each value assigned once,
    nodes in topological order with what their bodies capture, no value without a producer, outputs produced, every
    domain imported, node names present and unique.
    """
    found = _problems(after)
    if found:
        known = set(_problems(before))
        if any(problem.startswith(_CHECKER) for problem in found):
            known.update(_run_checker(before.proto))  # not run by _problems where something else was wrong
        # The checker stops at its first error, so that a broken original hides all that comes after it.
        checker_was_silenced = any(problem.startswith(_CHECKER) for problem in known)
        found = tuple(
            problem for problem in found if problem not in known and not (checker_was_silenced and problem.startswith(_CHECKER))
        )
        if any(problem.endswith(_NAMELESS) for problem in known):
            # Such a node is known by what it makes, which a pass may rename, or move out of a body.
            found = tuple(problem for problem in found if not problem.endswith(_NAMELESS))
    return StructureEvidence(status="failed" if found else "passed", problems=_abridged(found))


def _abridged(problems: Sequence[str]) -> list[str]:
    listed = list(problems[:_REPORTED])
    if len(problems) > _REPORTED:
        listed.append(f"and {len(problems) - _REPORTED} more problems")
    return listed


@lru_cache(maxsize=2)
def _problems(model: Model) -> tuple[str, ...]:
    """Every problem of a model, in words that do not depend on anything but the problem itself.

    Cached by identity, since the model after one pass is the model before the next.
    """
    proto = model.proto
    found = _check_domains(proto) + _check_values(proto) + _check_names(proto)
    if not found:  # the checker's words for the same problem would be vaguer
        found = _run_checker(proto)
    return tuple(dict.fromkeys(found))


def _check_values(proto: ModelProto) -> list[str]:
    """Single assignment, order, dangling values and outputs, in the graph, its bodies and the functions."""
    problems: list[str] = []
    main = _Scopes(proto, problems)
    main.walk(proto.graph, "graph", _given(proto.graph))
    for function in proto.functions:
        scopes = _Scopes(proto, problems)
        scopes.walk(function, f"function {function.domain}::{function.name}", list(function.input))
    return problems


@dataclass
class _Scopes:
    """The values that can be seen at one point of a graph and of the bodies nested in it."""

    proto: ModelProto
    problems: list[str]
    visible: set[str] = field(default_factory=set)

    def walk(self, graph: GraphProto | FunctionProto, where: str, given: Iterable[str]) -> None:
        """Check a graph's nodes in order, then its outputs, and leave what was visible before it."""
        added: list[str] = []
        own = set(given)
        for name in given:
            self._define(name, f"an input or initializer of {where}", added)
        for node in graph.node:
            for name in node.input:
                if name and name not in self.visible:
                    self._report_unseen(name, node)
            for body in bodies(node) if node.attribute else ():
                self.walk(body, f"a body of {_label(node)}", _given(body))
            for name in node.output:
                if name:
                    own.add(name)
                    self._define(name, _label(node), added)
        for output in graph.output:
            name = output if isinstance(output, str) else output.name
            if name not in own:
                self.problems.append(f"output '{name}' of {where} is not produced in it")
        # One set for all scopes: a copy for every body would be quadratic in models with many bodies.
        self.visible.difference_update(added)

    def _define(self, name: str, by: str, added: list[str]) -> None:
        if name in self.visible:
            self.problems.append(f"value '{name}' is assigned a second time, by {by}")
        else:
            self.visible.add(name)
            added.append(name)

    def _report_unseen(self, name: str, node: NodeProto) -> None:
        what = "before it is produced, or out of its scope" if name in self._produced else "that nothing produces"
        self.problems.append(f"{_label(node)} reads value '{name}' {what}")

    @cached_property
    def _produced(self) -> set[str]:
        produced = {name for _, nodes in node_lists(self.proto) for node in nodes for name in node.output}
        produced.update(name for graph in all_graphs(self.proto) for name in _given(graph))
        return produced


def _given(graph: GraphProto) -> list[str]:
    """Inputs and initializers; an initializer that gives an input its default is the same value."""
    names = [value.name for value in graph.input]
    inputs = set(names)
    names += [tensor.name for tensor in graph.initializer if tensor.name not in inputs]
    return names + [tensor.values.name for tensor in graph.sparse_initializer if tensor.values.name not in inputs]


def _check_domains(proto: ModelProto) -> list[str]:
    """Every domain in use has to be imported, by the model and, for their nodes, by its functions."""
    problems = []
    imported = {_normal(entry.domain) for entry in proto.opset_import}
    used: dict[str, NodeProto] = {}
    for graph in all_graphs(proto):
        for node in graph.node:
            used.setdefault(_normal(node.domain), node)
    for function in proto.functions:
        own = {_normal(entry.domain) for entry in function.opset_import} | imported
        for node in function.node:
            if _normal(node.domain) not in own:
                used.setdefault(_normal(node.domain), node)
    for domain, node in used.items():
        if domain not in imported:
            problems.append(f"{_label(node)} is of domain '{domain or 'ai.onnx'}', which the model does not import")
    return problems


def _check_names(proto: ModelProto) -> list[str]:
    problems = []
    owners: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
    for owner in owners:
        seen: set[str] = set()
        pending = [owner]
        while pending:
            for node in pending.pop().node:
                if not node.name:
                    problems.append(f"{_label(node)}{_NAMELESS}")
                elif node.name in seen:
                    problems.append(f"node name '{node.name}' is used more than once")
                seen.add(node.name)
                if node.attribute:
                    pending.extend(bodies(node))
    return problems


def _run_checker(proto: ModelProto) -> list[str]:
    """onnx's checker, on a copy without weights."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    for tensor in stubs(copy):
        # A stub's file is relative to no folder that the checker knows; an empty tensor needs no data.
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.ClearField("dims")
        tensor.dims.append(0)
    _set_runtime_ops_aside(copy)
    try:
        onnx.checker.check_model(copy)
    except (onnx.checker.ValidationError, ValueError) as error:
        return [_CHECKER + " ".join(str(error).split())]
    return []


def _set_runtime_ops_aside(proto: ModelProto) -> None:
    """Move the ops that ONNX Runtime defines in the standard domain to one that the checker does not look into."""
    version = next((entry.version for entry in proto.opset_import if not _normal(entry.domain)), 0)
    moved = False
    for _, nodes in node_lists(proto):
        for node in nodes:
            known = node.op_type in _RUNTIME_OPS or f"::{node.op_type}" in CONTRACTS
            is_candidate = known and not _normal(node.domain)
            if is_candidate and not onnx.defs.has(node.op_type, version):
                node.domain = _RUNTIME_DOMAIN
                moved = True
    if moved:
        proto.opset_import.append(onnx.helper.make_opsetid(_RUNTIME_DOMAIN, 1))


def _normal(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _label(node: NodeProto) -> str:
    if node.name:
        return f"{node.op_type} node '{node.name}'"
    made = next((name for name in node.output if name), "")
    return f"the {node.op_type} node that makes '{made}'"
