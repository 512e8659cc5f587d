"""A pass on a model: what the model is before it, what it makes of it, and the mutants of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final

from onnx import ModelProto

from rewright.api import Chain
from rewright.model.carrier import Model, all_graphs
from rewright.model.facts import shape_of
from rewright.ops.contract import CONTRACTS
from rewright.passes.contract import Pass, Site, Target
from rewright.passes.session import PassSession
from rewright.registry.catalog import default_catalog
from rewright.registry.options import configure
from rewright.registry.ordering import solve
from rewright.testing.mutants.cleanups import cleanup_mutants
from rewright.testing.mutants.faults import Fault, faults_of
from rewright.testing.mutants.mutant import Mutant
from rewright.testing.mutants.spots import Shape, Spot

FUSIONS: Final = (
    *("layer-norm", "rms-norm", "rotary-embedding", "attention", "multi-head-attention", "group-query-attention"),
    *("gelu", "fast-gelu", "quick-gelu", "gelu-approximation", "bias-gelu", "skip-layer-norm", "skip-rms-norm"),
    *("bias-skip-layer-norm", "embed-layer-norm", "gemm-fast-gelu"),
)
"""The passes that put a fused op in the place of others."""

CLEANUPS: Final = ("constant-folding", "identity-elimination", "shape-simplification", "common-subexpression", "dead-code")
"""The passes that leave the same numbers to fewer nodes."""

_BEFORE_CLEANUPS: Final = {
    "constant-folding": "inline-functions",
    "dead-code": "inline-functions, constant-folding, identity-elimination, shape-simplification, layer-norm, gelu",
}

_PROMISED: Final[Mapping[str, tuple[str, Target]]] = {"gemm-fast-gelu": ("com.microsoft::GemmFastGelu", "cuda")}
"""Ops that no target has a kernel for today, and the target that is taken to have one. They run through their contract's body."""

_EXACT_INSTEAD: Final = "that is the function itself, which the pass may approximate"


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
        if self.step.name in CLEANUPS:
            return cleanup_mutants(self.step.name, self.before, self.after)
        offered: dict[tuple[str, str, str], tuple[Fault, list[str]]] = {}
        for site in self.sites:
            for spot in self._spots(self.after, site):
                for fault in faults_of(spot):
                    reason = fault.equivalent or self._exact_instead(spot, fault)
                    offered.setdefault((spot.op, fault.name, reason), (fault, []))[1].append(site.id)
        found = []
        for (op, name, reason), (fault, ids) in offered.items():
            distinct = list(dict.fromkeys(ids))
            places = {"one site": {distinct[len(distinct) // 2]}, "all sites": set(distinct)}
            for where, sites in places.items():
                if where == "one site" or len(sites) > 1:
                    change = partial(self._break, op, name, frozenset(sites))
                    found.append(Mutant(fault.kind, name, where, op, change, reason))
        return found

    def broken(self, mutant: Mutant) -> Model:
        """The pass's result with the fault in it."""
        proto = ModelProto()
        proto.CopyFrom(self.after.proto)
        copy = self.after.with_proto(proto)
        mutant.change(copy)
        return copy

    def _break(self, op: str, name: str, sites: frozenset[str], model: Model) -> None:
        for site in self.sites:
            if site.id in sites:
                for spot in self._spots(model, site):
                    same = [fault for fault in faults_of(spot) if spot.op == op and fault.name == name]
                    if same:
                        same[0].change(spot)
                        break

    def _exact_instead(self, spot: Spot, fault: Fault) -> str:
        """Why a fault of an approximating pass is none: it gives back what the pass replaced."""
        biased = spot.index("bias") is not None
        exact = "taken for BiasGelu" if biased else "taken for Gelu"
        return _EXACT_INSTEAD if self.step.exactness == "approximate" and fault.name == exact else ""

    def _spots(self, model: Model, site: Site) -> Iterator[Spot]:
        names = set(site.added)
        for graph in all_graphs(model.proto):
            for node in graph.node:
                if node.name in names:
                    yield Spot(model, graph, node, self._applied[2])


def subject_for(
    name: str, model: Model, label: str, options: Mapping[str, object] | None = None, target: Target = "cpu"
) -> Subject:
    """The pass on the model as its predecessors leave it: the cleanup of O1, then what the pass asks to follow.

    A cleanup pass is preceded by little, so that something is left for it. An op that no target has a kernel for is taken to be
    on the target that it was made for.

    Raises:
        UsageError: there is no such pass.
    """
    if name in CLEANUPS:
        prepared = Chain(_BEFORE_CLEANUPS.get(name, "inline-functions, constant-folding")).run(model, verify="off").model
        return Subject(configure(default_catalog().get(name), {}), label, prepared)
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
    prepared = Chain(["O1", *fusions, "dead-code"]).run(model, target=target, verify="off").model
    step = configure(catalog.get(name), dict(options or {}))
    return Subject(step, label, prepared, _PROMISED[name][1] if name in _PROMISED else target)


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
