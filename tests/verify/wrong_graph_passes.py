"""Passes over layouts, weights and whole graphs that make known mistakes, some of them without saying where they did what."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from mistakes import Mistake
from onnx import ModelProto, numpy_helper

from rewright import GraphPass, Match, ModelPass, PatternPass, graph_pass
from rewright.model.carrier import Model
from rewright.passes.session import PassSession


class TwiceTransposed(PatternPass):
    """Takes any permutation for its own inverse."""

    name = "twice-transposed"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Transpose(op.Transpose(x, bind="first"), bind="second")

    def check(self, match: Match) -> None:
        same = match.the_node("first").attribute("perm") == match.the_node("second").attribute("perm")
        match.require(same, "the permutations differ")

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Identity(x)


class ReshapedAnyhow(PatternPass):
    """Takes a Transpose before a Reshape for nothing."""

    name = "reshaped-anyhow"

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        return op.Reshape(op.Transpose(x), shape)

    def rewrite(self, op: Any, x: Any, shape: Any) -> Any:
        return op.Reshape(x, shape)


class TransposedWeight(PatternPass):
    """Puts the Transpose of a weight into Gemm, whether Gemm transposes it already or not."""

    name = "transposed-weight"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Gemm(x, op.Transpose(weight, perm=[1, 0]), bias)

    def rewrite(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Gemm(x, weight, bias, transB=1)


class WeightSecond(PatternPass):
    """Takes the constant operand of a MatMul for the second one."""

    name = "weight-second"
    exactness = "reassociating"

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return op.Relu(op.MatMul(a, b))

    def rewrite(self, op: Any, a: Any, b: Any) -> Any:
        x, weight = (b, a) if a.is_constant else (a, b)
        return op.Max(op.MatMul(x, weight), op.constant(np.float32(0)))


class PowerInBranch(PatternPass):
    """Takes every power for the square, in branches too."""

    name = "power-in-branch"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, exponent: Any) -> Any:
        return op.Pow(x, exponent)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Mul(x, x)


class ScaledWeight(GraphPass):
    """MatMul(x, W) * c -> MatMul(x, c W), whoever else reads the product."""

    name = "scaled-weight"
    exactness = "reassociating"

    def run(self, session: PassSession) -> None:
        graph = session.view.graph
        for scaling in [node for node in graph.nodes if node.op == "Mul"]:
            product, factor = scaling.inputs
            if not (product.inputs and product.inputs[0].op == "MatMul" and isinstance(factor, gs.Constant)):
                continue
            matmul = product.inputs[0]
            weight = matmul.inputs[1]
            matmul.inputs[1] = gs.Constant(f"{scaling.name}_weight", weight.values * factor.values)
            session.editor.remove(scaling)
            made = session.editor.redirect(scaling.outputs[0], product, at=scaling)
            session.record(graph, [scaling, matmul], [matmul, *made])


class AttributeBlind(GraphPass):
    """Lets nodes of one op with the same inputs stand for each other, whatever their attributes."""

    name = "attribute-blind"

    def run(self, session: PassSession) -> None:
        graph, known = session.view.graph, dict[Any, Any]()
        for node in [node for node in graph.nodes if node.op == "Softmax"]:
            first = known.setdefault(tuple(map(id, node.inputs)), node)
            if first is not node:
                session.editor.remove(node)
                made = session.editor.redirect(node.outputs[0], first.outputs[0], at=node)
                session.record(graph, [node], made)


@graph_pass("no-dropped-columns", exactness="reassociating")
def no_dropped_columns(graph: gs.Graph) -> None:
    """Takes away every Mul by a constant that begins with one."""
    for node in [node for node in graph.nodes if node.op == "Mul" and isinstance(node.inputs[1], gs.Constant)]:
        if node.inputs[1].values.reshape(-1)[0] == 1:
            for user in list(node.outputs[0].outputs):
                user.inputs[list(user.inputs).index(node.outputs[0])] = node.inputs[0]
    graph.cleanup()


def copied(model: Model) -> ModelProto:
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    return proto


class HalfWeights(ModelPass):
    """Writes weights with the precision of float16, where that is no loss and where it is; names no site but the model."""

    name = "half-weights"
    exactness = "reassociating"

    def transform(self, session: PassSession) -> Model:
        proto = copied(session.model)
        for tensor in proto.graph.initializer:
            array = session.model.tensor(tensor)
            if array.dtype == np.float32 and array.ndim == 2:
                tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), tensor.name))
        session.record(session.view.graph, [], [])
        return session.model.with_proto(proto)


class FoldedNorm(ModelPass):
    """BatchNormalization -> Mul and Add with numbers for which the epsilon was forgotten; records a site for each."""

    name = "folded-norm"
    exactness = "reassociating"

    def transform(self, session: PassSession) -> Model:
        proto = copied(session.model)
        arrays = {tensor.name: session.model.tensor(tensor) for tensor in proto.graph.initializer}
        old = {node.name: node for node in session.view.graph.nodes}
        nodes = []
        for node in proto.graph.node:
            if node.op_type != "BatchNormalization":
                nodes.append(node)
                continue
            scale, shift, mean, variance = (arrays[name].reshape(-1, 1) for name in node.input[1:5])
            factor = scale / np.sqrt(variance)
            for name, array in (("factor", factor), ("term", shift - mean * factor)):
                proto.graph.initializer.append(numpy_helper.from_array(array, f"{node.name}_{name}"))
            made = [
                onnx.helper.make_node("Mul", [node.input[0], f"{node.name}_factor"], [f"{node.name}_scaled"], f"{node.name}_mul"),
                onnx.helper.make_node("Add", [f"{node.name}_scaled", f"{node.name}_term"], [node.output[0]], f"{node.name}_add"),
            ]
            nodes += made
            session.record(session.view.graph, [old[node.name]], [gs.Node(item.op_type, item.name) for item in made])
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        return session.model.with_proto(proto)


class TransposedInPlace(ModelPass):
    """MatMul(x, Transpose(W)) -> MatMul(x, W) with W transposed, whoever else reads W."""

    name = "transposed-in-place"
    exactness = "reassociating"

    def transform(self, session: PassSession) -> Model:
        proto = copied(session.model)
        old = {node.name: node for node in session.view.graph.nodes}
        held = {tensor.name: tensor for tensor in proto.graph.initializer}
        for node in [node for node in proto.graph.node if node.op_type == "Transpose"]:
            weight = held[node.input[0]]
            turned = np.ascontiguousarray(session.model.tensor(weight).T)
            weight.CopyFrom(numpy_helper.from_array(turned, weight.name))
            user = next(item for item in proto.graph.node if node.output[0] in item.input)
            user.input[1] = weight.name
            proto.graph.node.remove(node)
            session.record(session.view.graph, [old[node.name], old[user.name]], [old[user.name]])
        return session.model.with_proto(proto)


class LostOutput(ModelPass):
    """Relu(Neg(x)) -> Max(-x, 0) in other ops, whether Neg's value is asked for elsewhere or not."""

    name = "lost-output"

    def transform(self, session: PassSession) -> Model:
        proto = copied(session.model)
        old = {node.name: node for node in session.view.graph.nodes}
        for node in list(proto.graph.node):
            if node.op_type == "Relu":
                inner = next(item for item in proto.graph.node if node.input[0] in item.output)
                node.op_type, node.input[0] = "Min", inner.input[0]
                node.input.append("zero")
                after = onnx.helper.make_node("Neg", [f"{node.name}_min"], [node.output[0]], f"{node.name}_neg")
                node.output[0] = f"{node.name}_min"
                place = list(proto.graph.node).index(node)
                proto.graph.node.insert(place + 1, after)
                proto.graph.node.remove(inner)
                made = gs.Node("Neg", after.name)
                session.record(session.view.graph, [old[inner.name], old[node.name]], [made])
        return session.model.with_proto(proto)


def half(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers that float16 has."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16).astype(np.float32)


BRANCHES = """{p} = If(flag) <
    then_branch = then_graph () => (float[B, S, 8] {p}_then) {{ {p}_then = Pow(x, {exponent}) }},
    else_branch = else_graph () => (float[B, S, 8] {p}_else) {{ {p}_else = Neg(x) }}
>  """
SCALED = "{p}_product = MatMul(x, weight)  {p}_scaled = Mul({p}_product, three)  {rest}  "
READ_IN_BRANCH = """wrong1_sum = Add(wrong1_scaled, x)  wrong1 = If(flag) <
    then_branch = then_graph () => (float[B, S, 8] wrong1_then) { wrong1_then = Neg(wrong1_product) },
    else_branch = else_graph () => (float[B, S, 8] wrong1_else) { wrong1_else = Identity(wrong1_sum) }
>  """

MISTAKES = (
    Mistake(
        TwiceTransposed(),
        "{p}_first = Transpose<perm = {perm}>(x)  {p} = Transpose<perm = {perm}>({p}_first)",
        right=[{"perm": "[1, 0, 2]"}, {"perm": "[0, 2, 1]"}],
        wrong=[{"perm": "[1, 2, 0]"}, {"perm": "[2, 0, 1]"}],
        inputs="float[8, 8, 8] x",
        output="float[8, 8, 8]",
    ),
    Mistake(
        ReshapedAnyhow(),
        "{p}_back = Transpose<perm = [0, 2, 1]>({x})  {p} = Reshape({p}_back, flat)",
        right=[{"x": "x"}],
        wrong=[{"x": "y"}],
        inputs="float[B, 1, 8] x, float[B, 2, 4] y",
        output="float[B, 8]",
        weights={"flat": np.array([0, 8])},
    ),
    Mistake(
        TransposedWeight(),
        "{p}_turned = Transpose<perm = [1, 0]>(weight)  {p} = Gemm<transB = {turn}>(x, {p}_turned, bias)",
        right=[{"turn": 0}],
        wrong=[{"turn": 1}],
        inputs="float[B, 8] x",
        output="float[B, 8]",
    ),
    Mistake(
        WeightSecond(),
        "{p}_product = MatMul({operands})  {p} = Relu({p}_product)",
        right=[{"operands": "x, weight"}, {"operands": "x, y"}],
        wrong=[{"operands": "weight, x"}],
        inputs="float[B, 8, 8] x, float[B, 8, 8] y",
        output="float[B, 8, 8]",
    ),
    Mistake(
        PowerInBranch(),
        BRANCHES,
        right=[{"exponent": "two"}],
        wrong=[{"exponent": "three"}],
        inputs="float[B, S, 8] x, bool flag",
    ),
    Mistake(
        ScaledWeight(),
        SCALED,
        right=[{"rest": "right0 = Add(right0_scaled, x)"}, {"rest": "right1 = Sub(right1_scaled, bias)"}],
        wrong=[{"rest": "wrong0 = Add(wrong0_scaled, wrong0_product)"}, {"rest": READ_IN_BRANCH}],
        inputs="float[B, S, 8] x, bool flag",
    ),
    Mistake(
        AttributeBlind(),
        "{p}_softmax = Softmax<axis = {axis}>(x)  {p}_sum = Add({p}_softmax, {other})  {p} = Mul({p}_sum, first)",
        right=[{"axis": -1, "other": "bias"}, {"axis": -1, "other": "x"}],
        wrong=[{"axis": 1, "other": "bias"}],
        prelude="first = Softmax<axis = -1>(x)  ",
        inputs="float[B, 8, 8] x",
        output="float[B, 8, 8]",
    ),
    Mistake(
        no_dropped_columns(),
        "{p}_kept = Mul(x, {columns})  {p} = Add({p}_kept, {other})",
        right=[{"columns": "ones", "other": "bias"}, {"columns": "ones", "other": "rows"}],
        wrong=[{"columns": "all_but_one", "other": "bias"}],
        weights={"ones": np.ones(8, np.float32), "all_but_one": np.array([1, 1, 1, 1, 1, 0, 1, 1], np.float32)},
    ),
    Mistake(
        HalfWeights(),
        "{p} = MatMul(x, {weight})",
        right=[{"weight": "first_half"}, {"weight": "second_half"}],
        wrong=[{"weight": "weight"}],
        sites_recorded=1,
        weights={"first_half": half((8, 8), 1), "second_half": half((8, 8), 2)},
    ),
    Mistake(
        FoldedNorm(),
        "{p} = BatchNormalization<epsilon = {epsilon}>(x, gamma, beta_of_norm, rows, {variance})",
        right=[{"epsilon": 1e-12, "variance": "variances"}, {"epsilon": 1e-5, "variance": "large_variances"}],
        wrong=[{"epsilon": 1e-3, "variance": "variances"}],
        inputs="float[B, 8, S] x",
        output="float[B, 8, S]",
        weights={
            "variances": np.linspace(0.01, 2, 8, dtype=np.float32),
            "large_variances": np.linspace(50, 90, 8, dtype=np.float32),
        },
    ),
)
IN_PLACE = Mistake(
    TransposedInPlace(),
    """{p}_turned = Transpose<perm = [1, 0]>({weight})  {p}_product = MatMul(x, {p}_turned)  {rest}
       {p} = Add({p}_product, {other})""",
    right=[{"weight": "other_weight", "rest": "", "other": "bias"}, {"weight": "third_weight", "rest": "", "other": "x"}],
    wrong=[{"weight": "weight", "rest": "wrong0_straight = MatMul(x, weight)", "other": "wrong0_straight"}],
    weights={"third_weight": half((8, 8), 3)},
)

LOST_OUTPUT = Mistake(
    LostOutput(),
    "{p}_minus = Neg({x})  {p}_positive = Relu({p}_minus)  {p} = Add({p}_positive, {other})",
    right=[{"x": "x", "other": "bias"}],
    wrong=[{"x": "y", "other": "wrong0_minus"}],
    inputs="float[B, S, 8] x, float[B, S, 8] y",
    prelude="unused = Identity(zero)  ",
    weights={"zero": np.float32(0)},
)
