"""Passes that each break one promise, for the conformance suite to find out. Each is right in all else."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from rewright import ModelPass, PatternPass
from rewright.model.carrier import all_graphs, all_nodes
from rewright.passes.contract import Site

NORM = """g (float[N, 8] x) => (float[N, 8] y) <float e = {0.00001}> {
    m = ReduceMean<axes = [-1]>(x)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean<axes = [-1]>(q)
    a = Add(v, e)  s = Sqrt(a)  y = Div(d, s)
}"""
NEGATIONS = "g (float[N, 4] x) => (float[N, 4] y) { r = Relu(x) a = Neg(r) b = Neg(a) y = Exp(b) }"
GELU = '<opset_import: ["": 20]> g (float[N, 4] x) => (float[N, 4] y) { r = Relu(x) y = Gelu(r) }'
ZERO = "g (float[N, 4] x) => (float[N, 4] y) <float[4] t = {0.0, 0.0, 0.0, 0.0}> { r = Relu(x) a = Add(r, t) y = Exp(a) }"
HALF = "g (float[N, 4] x) => (float[N, 4] y) <float t = {2.0}> { r = Relu(x) y = Div(r, t) }"
DOUBLE = "g (float[N, 4] x) => (float[N, 4] y) <float t = {2.0}> { r = Relu(x) y = Mul(r, t) }"
BIAS_GELU = """<opset_import: ["": 20]> g (float[N, 4] x) => (float[N, 4] y) <float[4] b = {0.5, -1.0, 2.0, 0.0}> {
    s = Add(x, b)  y = Gelu(s)
}"""


class WrongEpsilon(PatternPass):
    """Sqrt(x + 1e-5) -> Sqrt(x + 1e-12)."""

    name = "wrong-epsilon"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Sqrt(x + 1e-5)

    def check(self, match: Any, x: Any) -> None:
        match.require(x.dtype == np.float32, "the dtype is not float32", x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Sqrt(op.Add(x, op.constant(np.float32(1e-12))))


class Negations(ModelPass):
    """Neg(Neg(x)) -> x, on the proto itself. This one is right; those that derive from it break a promise each."""

    name = "negations"

    def transform(self, session: Any) -> Any:
        proto = ModelProto()
        proto.CopyFrom(session.model.proto)
        fired = 0
        for graph in self.graphs(proto):
            while (found := self.find(proto, graph)) is not None:
                self.fire(session, proto, graph, *found)
                fired += 1
        return session.model.with_proto(proto) if self.finish(session, proto, fired) or fired else session.model

    def graphs(self, proto: ModelProto) -> Iterator[GraphProto]:
        return all_graphs(proto)

    def find(self, proto: ModelProto, graph: GraphProto) -> tuple[NodeProto, NodeProto] | None:
        """The outer and the inner Neg; the outer one's value is no output of the graph."""
        makers = {name: node for node in graph.node for name in node.output}
        outputs = {info.name for info in graph.output}
        for node in graph.node:
            inner = makers.get(node.input[0]) if node.op_type == "Neg" else None
            if inner is not None and inner.op_type == "Neg" and node.output[0] not in outputs:
                return node, inner
        return None

    def fire(self, session: Any, proto: ModelProto, graph: GraphProto, outer: NodeProto, inner: NodeProto) -> None:
        removed = [outer]
        replace_everywhere(proto, outer.output[0], inner.input[0])
        if self.may_go(proto, inner):
            removed.append(inner)
        names = tuple(node.name or node.output[0] for node in removed)
        for node in removed:
            graph.node.remove(node)
        session.sites.append(Site(f"{self.name}#{len(session.sites)}", graph.name, names, (), ("Neg",) * len(names)))

    def may_go(self, proto: ModelProto, node: NodeProto) -> bool:
        return not uses(proto)[node.output[0]] - 1  # the outer one reads it and goes

    def finish(self, session: Any, proto: ModelProto, fired: int) -> bool:
        """Whether it has changed anything else."""
        return False


def replace_everywhere(proto: ModelProto, old: str, new: str) -> None:
    for node in all_nodes(proto):
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def uses(proto: ModelProto) -> Counter[str]:
    read = Counter(name for node in all_nodes(proto) for name in node.input)
    read.update(info.name for graph in all_graphs(proto) for info in graph.output)
    return read


class NotIdempotent(Negations):
    """Neg(Neg(x)) -> x, and an Identity more each time it runs."""

    name = "not-idempotent"

    def finish(self, session: Any, proto: ModelProto, fired: int) -> bool:
        last = next((node for node in proto.graph.node if node.op_type == "Exp"), None)
        if last is None:
            return False
        made = f"{last.input[0]}_again"
        proto.graph.node.insert(0, helper.make_node("Identity", [proto.graph.input[0].name], [made], name=made))
        session.sites.append(Site(f"{self.name}#{len(session.sites)}", proto.graph.name, (), (made,), (), ("Identity",)))
        return True


class DropsAnOutput(Negations):
    """Neg(Neg(x)) -> x, and of several outputs the last one goes."""

    name = "drops-an-output"

    def finish(self, session: Any, proto: ModelProto, fired: int) -> bool:
        if fired and len(proto.graph.output) > 1:
            del proto.graph.output[-1]
        return False


class MutatesOnTheSecondRun(Negations):
    """Neg(Neg(x)) -> x; where there is none, it renames a node and does not say so."""

    name = "mutates-on-the-second-run"

    def finish(self, session: Any, proto: ModelProto, fired: int) -> bool:
        if fired or not any(node.op_type == "Exp" for node in proto.graph.node):
            return False
        proto.graph.node[0].name += "_seen"
        return True


class LiesAboutSites(Negations):
    """Neg(Neg(x)) -> x, and records one site more than there are."""

    name = "lies-about-sites"

    def finish(self, session: Any, proto: ModelProto, fired: int) -> bool:
        if fired:
            session.sites.append(Site(f"{self.name}#{len(session.sites)}", proto.graph.name, (), ()))
        return False


class SaysItFired(Negations):
    """Records a site wherever there is an Exp, and does nothing."""

    name = "says-it-fired"

    def transform(self, session: Any) -> Any:
        if any(node.op_type == "Exp" for node in session.model.proto.graph.node):
            session.sites.append(Site(f"{self.name}#0", "", ("y",), ()))
        return session.model


class IgnoresOtherReaders(Negations):
    """Neg(Neg(x)) -> x, and the inner Neg goes whoever reads it: its other readers get x."""

    name = "ignores-other-readers"

    def may_go(self, proto: ModelProto, node: NodeProto) -> bool:
        if node.output[0] in {info.name for info in proto.graph.output}:
            return False
        replace_everywhere(proto, node.output[0], node.input[0])
        return True


class IgnoresOutputs(Negations):
    """Neg(Neg(x)) -> x, and the inner Neg goes although its value is an output, which gets x."""

    name = "ignores-outputs"

    def may_go(self, proto: ModelProto, node: NodeProto) -> bool:
        if uses(proto)[node.output[0]] == 1:
            return True
        if node.output[0] in {info.name for info in proto.graph.output}:
            node.op_type = "Identity"
        return False


class MainGraphOnly(Negations):
    """Neg(Neg(x)) -> x, never in a body."""

    name = "main-graph-only"

    def graphs(self, proto: ModelProto) -> Iterator[GraphProto]:
        return iter([proto.graph])


class BelowOpset18(Negations):
    """Neg(Neg(x)) -> x, below opset 18."""

    name = "below-opset-18"

    def graphs(self, proto: ModelProto) -> Iterator[GraphProto]:
        return all_graphs(proto) if proto.opset_import[0].version < 18 else iter(())


class TakesDefaultsForConstants(ModelPass):
    """x + 0 -> x, where the zeros may also be the default of an input."""

    name = "takes-defaults-for-constants"

    def transform(self, session: Any) -> Any:
        proto = ModelProto()
        proto.CopyFrom(session.model.proto)
        zeros = {tensor.name for tensor in proto.graph.initializer if not np.any(session.model.tensor(tensor))}
        found = [node for node in proto.graph.node if node.op_type == "Add" and node.input[1] in zeros]
        for node in found:
            replace_everywhere(proto, node.output[0], node.input[0])
            name = (node.name or node.output[0],)
            session.sites.append(Site(f"{self.name}#{len(session.sites)}", proto.graph.name, name, (), ("Add",)))
            proto.graph.node.remove(node)
        return session.model.with_proto(proto) if found else session.model


class RandomNames(Negations):
    """Neg(Neg(x)) -> x, and a name that differs from run to run."""

    name = "random-names"
    runs: ClassVar[Iterator[int]] = itertools.count()

    def finish(self, session: Any, proto: ModelProto, fired: int) -> bool:
        if fired:
            proto.graph.node[0].name = f"run_{next(self.runs)}"
        return False


class Undocumented(Negations):
    name = "undocumented"
    emits = ("BiasGelu",)


class Marker:
    """A value that no text can spell."""


class UnreadableOption(Negations):
    """Neg(Neg(x)) -> x."""

    name = "unreadable-option"
    marker: Any = None


class Undeclared(PatternPass):
    """Gelu(x + bias) -> BiasGelu, and does not declare it."""

    name = "undeclared"
    exactness = "reassociating"
    strict: bool = False

    def pattern(self, op: Any, x: Any, bias: Any) -> Any:
        return op.Gelu(x + bias)

    def check(self, match: Any, x: Any, bias: Any) -> None:
        match.require(bias.is_constant and bias.rank == 1 and x.dim(-1) == bias.shape[0], "no vector", bias)

    def rewrite(self, op: Any, x: Any, bias: Any) -> Any:
        return op.BiasGelu(x, bias, domain="com.microsoft")


class AnyTarget(ModelPass):
    """Gelu -> com.microsoft.Gelu, whatever the target and the dtype."""

    name = "any-target"
    exactness = "reassociating"
    emits = ("com.microsoft.Gelu",)

    def transform(self, session: Any) -> Any:
        proto = ModelProto()
        proto.CopyFrom(session.model.proto)
        found = [node for node in all_nodes(proto) if node.op_type == "Gelu" and not node.domain]
        for node in found:
            node.domain = "com.microsoft"
            name = node.name or node.output[0]
            session.sites.append(
                Site(f"{self.name}#{len(session.sites)}", "", (name,), (name,), ("Gelu",), ("com.microsoft::Gelu",))
            )
        if found and all(entry.domain != "com.microsoft" for entry in proto.opset_import):
            proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return session.model.with_proto(proto) if found else session.model


class Float32Constant(PatternPass):
    """x * 2 -> x + 1 * x, with a constant that is float32 whatever x is."""

    name = "float32-constant"
    exactness = "exact"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, 2.0)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Add(x, op.Mul(x, op.constant(np.float32(1))))


class Reciprocals(PatternPass):
    """x / c -> x * (1 / c), and calls it exact, which it is for powers of two."""

    name = "reciprocals"
    exactness = "exact"

    def pattern(self, op: Any, x: Any, c: Any) -> Any:
        return op.Div(x, c)

    def check(self, match: Any, x: Any, c: Any) -> None:
        match.require(c.is_constant and c.dtype.kind == "f" and np.all(c.value != 0), "the divisor is no constant", c)

    def rewrite(self, op: Any, x: Any, c: Any) -> Any:
        return op.Mul(x, op.constant((1 / c.value).astype(c.dtype)))
