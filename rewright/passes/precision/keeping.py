"""Which nodes stay in float32, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np

from rewright.model.elements import normal_domain
from rewright.model.facts import attribute, dtype_of, is_constant, producer
from rewright.model.graph import state_of
from rewright.model.order import node_has_bodies
from rewright.ops.contract import CONTRACTS
from rewright.passes.bounds import ValueBounds
from rewright.passes.precision.operands import Role, Roles, is_single, roles_of
from rewright.passes.precision.reach import Reach
from rewright.passes.precision.structures import MOST_RADIANS, always_wide, indices, is_angle, moved_batches, terms_of, variances

_DIVIDED_BY: Final = {("Div", 1), ("Reciprocal", 0), ("Log", 0), ("Sqrt", 0), ("Pow", 0), ("Add", 0), ("Add", 1), ("Clip", 1)}
"""Operands that must not become zero: what is divided by, and what keeps a divisor from being zero."""
_FLOAT32_INSIDE: Final = {"LayerNormalization", "RMSNormalization", "GroupNormalization"}
"""Normalisations that compute in float32 where ``stash_type`` does not say otherwise."""


@dataclass(frozen=True)
class Limits:
    """What the narrow type holds, and what the user wants of it.

    Attributes:
        dtype: the narrow type.
        target: where the model will run.
        margin: how many times what was measured has to fit.
        min_normal: whether numbers below the smallest normal one count as lost.
        clip_weights: whether weights that are too large are cut off.
    """

    dtype: np.dtype[Any]
    target: str
    margin: float
    min_normal: bool
    clip_weights: bool

    @property
    def largest(self) -> float:
        """The largest number of the type."""
        return float(_finfo(self.dtype).max)

    @property
    def floor(self) -> float:
        """What smaller numbers than this are, is lost."""
        held = _finfo(self.dtype)
        return float(held.tiny) if self.min_normal else float(held.smallest_subnormal) / 2

    @property
    def most_exact(self) -> float:
        """Up to here each integer is one of the type's numbers."""
        return 2.0 / float(_finfo(self.dtype).eps)


def _finfo(dtype: np.dtype[Any]) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


@dataclass
class Keeping:
    """What was found out about a model.

    Attributes:
        roles: of each node, by identity.
        reasons: why a node stays in float32, by identity.
        clipped: constants that are cut off, by identity, each with how many numbers of it.
        cut_off: masks of float32 that are read with their lowest numbers cut off, by identity.
        narrow_inputs, narrow_results: inputs and outputs of the model that become narrow, by identity.
    """

    limits: Limits
    reach: Reach
    has_masks: bool = True
    roles: dict[int, Roles] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    clipped: dict[int, tuple[Any, int]] = field(default_factory=dict)
    cut_off: set[int] = field(default_factory=set)
    narrow_inputs: set[int] = field(default_factory=set)
    narrow_results: set[int] = field(default_factory=set)
    _unfit: dict[int, str] = field(default_factory=dict)

    def narrow_interface(self, main: Any) -> None:
        """Lets the inputs and outputs of the model be narrow that can be; an input with a default stays as it is."""
        defaults = state_of(main).input_defaults
        self.narrow_inputs.update(
            id(tensor)
            for tensor in main.inputs
            if is_single(tensor) and tensor.name not in defaults and id(tensor) not in self._unfit
        )
        self.narrow_results.update(
            id(tensor)
            for tensor in main.outputs
            if is_single(tensor)
            and not is_constant(tensor)
            and id(tensor) not in self._unfit
            and (producer(tensor) is not None or id(tensor) in self.narrow_inputs)
        )

    def is_narrow(self, node: Any) -> bool:
        """Whether the node is going to compute in the narrow type."""
        roles = self.roles.get(id(node))
        return roles is not None and roles.is_choice and id(node) not in self.reasons

    def keep(self, node: Any, reason: str) -> None:
        """Lets a node stay in float32; the first reason counts."""
        self.reasons.setdefault(id(node), reason)

    def look(self, tops: list[Any], opset: int, graphs: list[Any]) -> None:
        """Decides about every node of the main graph and its bodies."""
        nodes = [node for graph in tops for node in in_order(graph)]
        for graph in graphs:
            for tensor in graph.inputs:
                self._judge_value(tensor)
        for node in nodes:
            roles = self.roles[id(node)] = roles_of(node, opset, self.limits.dtype, self.limits.target)
            for tensor in node.outputs:
                self._judge_value(tensor)
            if roles.obstacle:
                self.keep(node, roles.obstacle)
        for found in (variances(nodes), indices(nodes), moved_batches(nodes)):
            for node, reason in found:
                self.keep(node, reason)
        for node in nodes:
            if self.roles[id(node)].is_choice and id(node) not in self.reasons and (reason := self._reason(node)):
                self.keep(node, reason)

    def _judge_value(self, tensor: Any) -> None:
        if not tensor.name or not is_single(tensor) or is_constant(tensor):
            return
        reason = self._reason_of_value(tensor)
        if reason:
            self._unfit[id(tensor)] = f"'{tensor.name}' {reason}"

    def _reason_of_value(self, tensor: Any) -> str:
        ends, seen, limits = self.reach.of(tensor), self.reach.measured(tensor), self.limits
        if ends is None:
            return "is neither bounded by proof nor measured"
        size, measured = max(abs(ends[0]), abs(ends[1])), max(map(abs, seen)) if seen is not None else 0.0
        if not size <= limits.largest:
            if measured > limits.largest:
                return f"reaches {measured:.4g}, and {limits.dtype.name} ends at {limits.largest:.6g}"
            if seen is not None:
                return f"reaches {measured:.4g}: {limits.margin:g} times that is more than {limits.dtype.name} holds"
            return f"may reach {size:.4g}, and {limits.dtype.name} ends at {limits.largest:.6g}"
        if 0.0 < measured < limits.floor:
            return f"is {measured:.3g} at most, which is too small for {limits.dtype.name}"
        if is_angle(tensor) and size > MOST_RADIANS:
            return f"is an angle of up to {size:.4g}, whose digits behind the point {limits.dtype.name} loses"
        if size > limits.most_exact and _was_integer(tensor):
            return f"holds integers up to {size:.6g}, and {limits.dtype.name} rounds those above {limits.most_exact:.0f}"
        return ""

    def _reason(self, node: Any) -> str:
        roles = self.roles[id(node)]
        for tensors, chosen in ((node.outputs, roles.outputs), (node.inputs, roles.inputs)):
            for tensor, role in zip(tensors, chosen, strict=True):
                if role is Role.NARROW and id(tensor) in self._unfit:
                    if tensors is node.outputs or not self.has_masks or not self.reach.is_cut_off(node, tensor):
                        return self._unfit[id(tensor)]
                    self.cut_off.add(id(tensor))
        for index, (tensor, role) in enumerate(zip(node.inputs, roles.inputs, strict=True)):
            if role is Role.NARROW and is_constant(tensor) and (reason := self._reason_of_constant(node, index, tensor)):
                return reason
        return always_wide(node) or self._reason_of_sum(node) or self._reason_of_epsilon(node) or self._reason_of_attribute(node)

    def _reason_of_constant(self, node: Any, index: int, tensor: Any) -> str:
        array, limits = self.reach.array(tensor), self.limits
        if array is None or not array.size or id(tensor) in self.reach.fillers:
            return ""
        ends = self.reach.of(tensor) or (0.0, 0.0)
        size = max(abs(ends[0]), abs(ends[1]))
        if size > limits.largest:
            if not limits.clip_weights or array.ndim == 0 or array.size == 1:
                return f"the constant '{tensor.name}' holds {_farthest(ends):.4g}, which {limits.dtype.name} does not"
            if id(tensor) not in self.clipped:
                beyond = int(np.count_nonzero(np.abs(array[np.isfinite(array)]) > limits.largest))
                self.clipped[id(tensor)] = tensor, beyond
        if 0.0 < size < limits.floor:
            return f"the constant '{tensor.name}' is {size:.3g} at most, which is too small for {limits.dtype.name}"
        if (node.op, index) in _DIVIDED_BY and not normal_domain(node.domain) and array.size <= _MOST_LOOKED_AT:
            lost = (array != 0) & (np.abs(array) < limits.floor)
            if np.any(lost) and node.op != "Add":
                return f"the constant '{tensor.name}' holds {float(np.abs(array[lost]).max()):.3g}, which would become zero"
        return ""

    def _reason_of_sum(self, node: Any) -> str:
        terms = terms_of(node)
        if terms == 1:
            return ""
        if terms is None:
            return "how many numbers it adds up is not known, and their sum may overflow"
        ends = self.reach.of(node.inputs[0])
        total = math.inf if ends is None else terms * max(abs(ends[0]), abs(ends[1]))
        if total > self.limits.largest:
            return f"the sum of {terms} terms may reach {total:.4g} on the way"
        if terms > self.limits.most_exact / 8:
            return f"it adds up {terms} terms, of which {self.limits.dtype.name} loses the last"
        return ""

    def _reason_of_epsilon(self, node: Any) -> str:
        if f"{normal_domain(node.domain)}::{node.op}" in CONTRACTS or not node.op.endswith("Normalization"):
            return ""  # kernels of ops with a contract compute in float32
        if node.op in _FLOAT32_INSIDE:
            return "" if attribute(node, "stash_type", 1) == 1 else f"{node.op} has a stash_type that is not float32"
        epsilon = attribute(node, "epsilon", 1e-5)
        least = float(_finfo(self.limits.dtype).smallest_subnormal)
        return f"epsilon is {epsilon:.3g}, which is zero in {self.limits.dtype.name}" if epsilon < least / 2 else ""

    def _reason_of_attribute(self, node: Any) -> str:
        value = attribute(node, "value") if node.op == "ConstantOfShape" and not normal_domain(node.domain) else None
        if value is None or not hasattr(value, "dtype"):
            return ""
        array = np.asarray(getattr(value, "values", value)).reshape(-1)
        size = float(np.abs(array).max(initial=0.0))
        return f"it is filled with {float(array[0]):.4g}" if size > self.limits.largest or 0.0 < size < self.limits.floor else ""


_MOST_LOOKED_AT: Final = 1 << 16
_BROADCASTING_MAX: Final = 8
"""From this opset on Max broadcasts."""


def _was_integer(tensor: Any) -> bool:
    node = producer(tensor)
    source = dtype_of(node.inputs[0]) if node is not None and node.op == "Cast" and not normal_domain(node.domain) else None
    return source is not None and source.kind in "iu"


def _farthest(ends: tuple[float, float]) -> float:
    return ends[0] if abs(ends[0]) > abs(ends[1]) else ends[1]


def in_order(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, each after those of its bodies."""
    pending: list[tuple[Any, bool]] = [(node, False) for node in reversed(graph.nodes)]
    while pending:
        node, is_entered = pending.pop()
        if is_entered or not node_has_bodies(node):
            yield node
            continue
        pending.append((node, True))
        for body in reversed(list(node.subgraphs())):
            pending.extend((inner, False) for inner in reversed(body.nodes))


def make_keeping(
    limits: Limits, bounds: Mapping[str, ValueBounds], graphs: list[Any], opset: int, *, has_masks: bool = True
) -> Keeping:
    """Decides about the nodes of ``graphs``, the main graph first and its bodies after it.

    ``has_masks``: whether constants that are nothing but masks may be replaced by what the narrow type holds.
    """
    reach = Reach(bounds, limits.margin, limits.largest)
    if has_masks:
        reach.look_for_masks(graphs, {id(tensor) for graph in graphs for tensor in graph.outputs})
    keeping = Keeping(limits, reach, has_masks and opset >= _BROADCASTING_MAX)
    keeping.look(graphs[:1], opset, graphs)
    return keeping
