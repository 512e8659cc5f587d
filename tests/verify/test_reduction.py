"""Reduction: the smallest part of a model on which a pass still fails, with the values that occurred at its edges."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rewright import GraphPass, ModelPass, Pass, PatternPass
from rewright.api import Chain
from rewright.model.load import load
from rewright.registry.catalog import Catalog
from rewright.verify.cut import Cutter
from rewright.verify.inputs import make_input_sets
from rewright.verify.reduction import Budget, Reduction, reduce_failure

NOTHING_ELSE = Catalog([])


class TanhForErf(PatternPass):
    """Wrong on purpose."""

    name = "tanh-for-erf"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.product(x, 0.5, op.Erf(x / 2**0.5) + 1)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Tanh(x)


class DropsBias(PatternPass):
    """Wrong on purpose, and only where the shape of the bias is known."""

    name = "drops-bias"
    exactness = "reassociating"

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.MatMul(x, weight) + bias

    def check(self, match: Any, x: Any, bias: Any) -> None:
        match.require(bias.is_constant and bias.rank == 1, "not a bias", bias)
        match.require(x.rank == 3 and isinstance(x.dim(0), str), "the shape of the input is not known", x)

    def rewrite(self, op: Any, x: Any, weight: Any) -> Any:
        return op.MatMul(x, weight)


class FailsAtTanh(GraphPass):
    """Divides by zero where a Tanh follows a Gemm."""

    name = "fails-at-tanh"

    def run(self, session: Any) -> None:
        for node in session.view.graph.nodes:
            if node.op == "Tanh" and node.inputs[0].inputs and node.inputs[0].inputs[0].op == "Gemm":
                raise ZeroDivisionError


class NegatesWeight(ModelPass):
    """Wrong on purpose, in one of many weights."""

    name = "negates-weight"

    def transform(self, session: Any) -> Any:
        proto = onnx.ModelProto()
        proto.CopyFrom(session.model.proto)
        for tensor in proto.graph.initializer:
            if tensor.name == "w7":
                tensor.CopyFrom(onnx.numpy_helper.from_array(-session.model.tensor(tensor), tensor.name))
                session.record(session.view.graph, [], [])
        return session.model.with_proto(proto)


def long_chain(length=12):
    """x -> MatMul(w0) -> Relu -> MatMul(w1) -> Relu ...; each weight is its own."""
    steps = "".join(f"m{index} = MatMul(r{index}, w{index})  r{index + 1} = Relu(m{index})  " for index in range(length))
    rng = np.random.default_rng(5)
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 17]> g (float[B, 8] x) => (float[B, 8] r{length}) {{ r0 = Identity(x) {steps} }}'
    )
    for index in range(length):
        weight = rng.standard_normal((8, 8)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
    return proto


def record_of(step: Pass, model: Any, input_sets: Any, verify: str) -> Any:
    arrays = [input_set.arrays for input_set in input_sets] or None
    return Chain([step], catalog=NOTHING_ELSE).run(model, inputs=arrays, verify=verify).report.passes[0]


def reduced(step: Pass, model: Any, sites: Any, worker: Any, verify: str = "model", **options: Any) -> Reduction:
    input_sets = make_input_sets(model) if verify != "structure" else []
    return reduce_failure(
        model,
        sites,
        input_sets,
        worker,
        lambda part, sets: record_of(step, part, sets, verify).status in ("failed", "rolled-back"),
        **options,
    )


def test_a_site_is_cut_out_of_an_export(zoo, tmp_path):
    model = zoo("bert.ts17.sdpa")
    run = Chain([TanhForErf()], catalog=NOTHING_ELSE).run(model, reproducers=tmp_path)
    (record,) = run.report.passes
    assert (len(record.sites), record.status) == (2, "rolled-back")
    found = load(Path(record.reproducer) / "before.onnx")
    ops = sorted(node.op_type for node in found.proto.graph.node if node.op_type != "Constant")
    assert ops == ["Add", "Div", "Erf", "Mul", "Mul"]
    (given,) = found.proto.graph.input
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["batch", "sequence", 64]
    (inputs,) = (Path(record.reproducer) / "inputs").iterdir()
    with np.load(inputs) as arrays:
        assert arrays[given.name].shape[-1] == 64
    reduction = json.loads((Path(record.reproducer) / "failure.json").read_text())["reduction"]
    assert reduction["nodes_before"] == len(model.proto.graph.node)
    assert reduction["nodes_after"] == len(found.proto.graph.node)


def test_the_edges_keep_what_the_pass_asks_for_and_only_the_weights_that_are_read(zoo, worker, tmp_path):
    model = zoo("bert.ts17.sdpa")
    sites = [site.removed for site in record_of(DropsBias(), model, [], "model").sites]
    found = reduced(DropsBias(), model, sites, worker)
    assert [node.op_type for node in found.model.proto.graph.node] == ["MatMul", "Add"]
    assert len(found.model.proto.graph.initializer) == 2
    found.model.save(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size < model.nbytes() / 10


def test_a_pass_that_crashes_is_reduced_without_sites(worker):
    nodes = "".join(f"a{index + 1} = Relu(a{index})  " for index in range(40))
    tail = "".join(f"b{index + 1} = Abs(b{index})  " for index in range(30))
    model = load(
        onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 17]>
            g (float[B, 4] x) => (float[B, 4] b30) <float[4, 4] w = {{{", ".join(["1"] * 16)}}}> {{
                a0 = Identity(x) {nodes} g = Gemm(a40, w)  b0 = Tanh(g) {tail} }}""")
    )
    found = reduced(FailsAtTanh(), model, [], worker, "structure")
    assert [node.op_type for node in found.model.proto.graph.node] == ["Gemm", "Tanh"]
    assert found.input_sets == []


def test_a_pass_that_names_no_node_is_reduced_too(worker):
    found = reduced(NegatesWeight(), load(long_chain()), [], worker)
    assert [node.op_type for node in found.model.proto.graph.node] == ["MatMul"]
    assert [tensor.name for tensor in found.model.proto.graph.initializer] == ["w7"]


def test_what_cannot_be_reduced_stays_whole(worker):
    model = load(long_chain())

    def only_whole(part: Any, sets: Any) -> bool:
        return len(part.proto.graph.node) == len(model.proto.graph.node)

    found = reduce_failure(model, [["m3"]], make_input_sets(model), worker, only_whole)
    assert found.model is model
    assert len(found.input_sets) == 1
    assert not found.evidence.is_exhausted


def test_the_budget_is_kept(worker):
    model = load(long_chain(40))
    asked = []

    def never(part: Any, sets: Any) -> bool:
        asked.append(part)
        return False

    found = reduce_failure(model, [], make_input_sets(model), worker, never, budget=Budget(trials=2))
    assert found.model is model
    assert (len(asked), found.evidence.trials, found.evidence.is_exhausted) == (2, 2, True)
    reduce_failure(model, [], make_input_sets(model), worker, never, budget=Budget(seconds=0))
    assert len(asked) == 2


@pytest.mark.parametrize(("hops", "expected"), [(0, ["m3"]), (1, ["r3", "m3", "r4"]), (2, ["m2", "r3", "m3", "r4", "m4"])])
def test_a_slice_grows_both_ways(hops, expected):
    cutter = Cutter(load(long_chain()))
    around = cutter.around(cutter.named(["m3"]), hops)
    assert [cutter.index.nodes[number].output[0] for number in sorted(around)] == expected


def test_a_node_in_a_branch_is_reduced_to_the_node_that_holds_the_branch(parse, worker):
    model = parse("""g (float[B, 8] x, bool flag) => (float[B, 8] y) {
        a = Abs(x)
        b = Relu(a)
        c = If(flag) <
            then_branch = t () => (float[B, 8] d) <float third = {3}> { d = Pow(b, third) },
            else_branch = e () => (float[B, 8] f) { f = Neg(b) }
        >
        y = Softmax<axis = -1>(c)
    }""")
    cutter = Cutter(model)
    part = cutter.part(cutter.named(["d"]), {})
    assert part is not None
    assert [node.op_type for node in part.proto.graph.node] == ["If"]
    assert {value.name for value in part.proto.graph.input} == {"b", "flag"}
    assert [value.name for value in part.proto.graph.output] == ["c"]
