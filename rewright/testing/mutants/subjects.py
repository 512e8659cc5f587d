"""A pass on a model: what the model is before it, what it makes of it, and the mutants of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from onnx import GraphProto, ModelProto, NodeProto

from rewright.api import Chain
from rewright.model.carrier import Model, all_graphs
from rewright.model.facts import shape_of
from rewright.ops.contract import CONTRACTS
from rewright.passes.contract import Pass, Site, Target
from rewright.passes.session import PassSession
from rewright.registry.catalog import default_catalog
from rewright.registry.options import configure
from rewright.registry.ordering import solve
from rewright.testing.mutants.faults import Fault, faults_of
from rewright.testing.mutants.spots import Shape, Spot

FUSIONS: Final = (
    *("layer-norm", "rms-norm", "rotary-embedding", "attention", "multi-head-attention", "group-query-attention"),
    *("gelu", "fast-gelu", "quick-gelu", "gelu-approximation", "bias-gelu", "skip-layer-norm", "skip-rms-norm"),
    *("bias-skip-layer-norm", "embed-layer-norm", "gemm-fast-gelu"),
)
"""The passes that put a fused op in the place of others."""

_PROMISED: Final[Mapping[str, tuple[str, Target]]] = {"gemm-fast-gelu": ("com.microsoft::GemmFastGelu", "cuda")}
"""Ops that no target has a kernel for today, and the target that is taken to have one. They run through their contract's body."""

_EXACT_INSTEAD: Final = "that is the function itself, which the pass may approximate"


@dataclass(frozen=True)
class Mutant:
    """A fault of a pass: at one of its sites, or at all that have it.

    Attributes:
        fault: what is broken.
        sites: the ids of the sites.
        where: "one site" or "all sites".
        op: the op that is broken, as "com.microsoft::Attention".
        equivalent: why it cannot show, or empty.
    """

    fault: Fault
    sites: frozenset[str]
    where: str
    op: str
    equivalent: str = ""

    @property
    def name(self) -> str:
        """What is broken, and where."""
        return f"{self.op}: {self.fault.name}, {self.where}"


@dataclass(frozen=True)
class Subject:
    """A configured pass on a model that has been prepared for it.

    Attributes:
        step: the pass.
        label: the model's name.
        before: the model right before the pass.
        target: where it is going to run.
    """

    step: Pass
    label: str
    before: Model
    target: Target = "cpu"

    @cached_property
    def _applied(self) -> tuple[Model, tuple[Site, ...], Mapping[str, Shape]]:
        session = PassSession(self.step, self.before, self.target)
        with promised_kernel(self.step.name):
            session.ensure_facts()
            shapes = {
                tensor.name: shape
                for graph in session.view.graphs()
                for tensor in (*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs))
                if (shape := shape_of(tensor)) is not None
            }
            self.step.apply(session)
            after = session.result if session.result is not None else session.view.to_model()
        return after, tuple(session.sites), shapes

    @property
    def after(self) -> Model:
        """The result without a fault."""
        return self._applied[0]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the pass fired."""
        return self._applied[1]

    def mutants(self) -> list[Mutant]:
        """Every fault at one site, the middle one of those that have it, and at all of them."""
        offered: dict[tuple[str, str, str], tuple[Fault, list[str]]] = {}
        for site in self.sites:
            for spot in self._spots(self.after.proto, site):
                for fault in faults_of(spot):
                    reason = fault.equivalent or self._exact_instead(spot, fault)
                    offered.setdefault((spot.op, fault.name, reason), (fault, []))[1].append(site.id)
        found = []
        for (op, _, reason), (fault, ids) in offered.items():
            distinct = list(dict.fromkeys(ids))
            found.append(Mutant(fault, frozenset({distinct[len(distinct) // 2]}), "one site", op, reason))
            if len(distinct) > 1:
                found.append(Mutant(fault, frozenset(distinct), "all sites", op, reason))
        return found

    def _exact_instead(self, spot: Spot, fault: Fault) -> str:
        """Why a fault of an approximating pass is none: it gives back what the pass replaced."""
        biased = spot.index("bias") is not None
        exact = "taken for BiasGelu" if biased else "taken for Gelu"
        return _EXACT_INSTEAD if self.step.exactness == "approximate" and fault.name == exact else ""

    def broken(self, mutant: Mutant) -> Model:
        """The pass's result with the fault in it."""
        proto = ModelProto()
        proto.CopyFrom(self.after.proto)
        copy = self.after.with_proto(proto)
        for site in self.sites:
            if site.id in mutant.sites:
                for spot in self._spots(proto, site, copy):
                    same = [fault for fault in faults_of(spot) if spot.op == mutant.op and fault.name == mutant.fault.name]
                    if same:
                        same[0].change(spot)
                        break
        return copy

    def _spots(self, proto: ModelProto, site: Site, model: Model | None = None) -> Iterator[Spot]:
        for graph, node in _added(proto, site):
            yield Spot(model or self.after, graph, node, self._applied[2])


def subject_for(name: str, model: Model, label: str, options: Mapping[str, object] | None = None) -> Subject:
    """The pass on the model as its predecessors leave it: the cleanup of O1, then what the pass asks to follow.

    Raises:
        UsageError: there is no such pass.
    """
    catalog = default_catalog()
    earlier: dict[str, None] = {}
    pending = list(catalog.get(name).after)
    while pending:
        found = pending.pop()
        if found not in earlier and found in catalog:
            earlier[found] = None
            pending.extend(catalog.get(found).after)
    if name == "multi-head-attention":  # else these leave nothing for it
        earlier.pop("attention", None), earlier.pop("group-query-attention", None)
    fusions = solve([catalog.get(item)() for item in earlier if item in FUSIONS])
    prepared = Chain(["O1", *fusions, "dead-code"]).run(model, verify="off").model
    step = configure(catalog.get(name), dict(options or {}))
    return Subject(step, label, prepared, _PROMISED[name][1] if name in _PROMISED else "cpu")


@contextmanager
def promised_kernel(name: str) -> Iterator[None]:
    """For a pass whose op no target has a kernel for: lets the contract promise one while the pass decides."""
    if name not in _PROMISED:
        yield
        return
    op, target = _PROMISED[name]
    contract = CONTRACTS[op]
    CONTRACTS[op] = replace(contract, kernels={target: ("float32",)})
    try:
        yield
    finally:
        CONTRACTS[op] = contract


def _added(proto: ModelProto, site: Site) -> list[tuple[GraphProto, NodeProto]]:
    names = set(site.added)
    return [(graph, node) for graph in all_graphs(proto) for node in graph.node if node.name in names]
