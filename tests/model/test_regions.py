"""What a pass changed, cut into regions, and models in which some of them are undone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, parser

from rewright.model.load import load
from rewright.model.mixture import mixture
from rewright.model.regions import ClaimedSite, GraphIndex, Region, regions

HEAD = '<ir_version: 8, opset_import: ["": 17]> '
BEFORE = """g (float[n] x) => (float[n] y) {
    a = Relu(x)
    b = Neg(a)
    c = Neg(b)
    d = Exp(c)
    e = Identity(d)
    y = Add(e, a)
}"""
AFTER = """g (float[n] x) => (float[n] y) {
    a = LeakyRelu<alpha = 0.0>(x)
    d = Exp(a)
    y = Add(d, a)
}"""


def model(text: str, head: str = HEAD) -> ModelProto:
    proto = parser.parse_model(head + text)
    onnx.checker.check_model(proto)
    return proto


def indexes(before: str, after: str, head: str = HEAD) -> tuple[GraphIndex, GraphIndex]:
    return GraphIndex(load(model(before, head))), GraphIndex(load(model(after, head)))


def ops(region: Region) -> tuple[list[str], list[str]]:
    return [node.op_type for node in region.removed], [node.op_type for node in region.added]


def run(proto: ModelProto) -> np.ndarray:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in proto.graph.input]
    return session.run(None, {name: np.linspace(-2, 2, 7, dtype=np.float32) for name in names})[0]


def test_changes_that_share_no_value_are_regions_of_their_own() -> None:
    found = regions(*indexes(BEFORE, AFTER))
    assert [ops(region) for region in found] == [
        (["Relu"], ["LeakyRelu"]),
        (["Neg", "Neg", "Exp"], ["Exp"]),
        (["Identity", "Add"], ["Add"]),
    ]
    assert [region.outputs for region in found] == [("a",), ("d",), ("y",)]


def test_equal_models_have_no_regions_whatever_their_nodes_are_called() -> None:
    before, after = model(BEFORE), model(BEFORE)
    for number, node in enumerate(after.graph.node):
        node.name = f"renamed_{number}"
        node.metadata_props.add(key="k", value="v")
    assert regions(GraphIndex(load(before)), GraphIndex(load(after))) == []


def test_a_site_joins_what_it_names() -> None:
    sites = [ClaimedSite("one", ("a", "e", "y"))]
    found = regions(*indexes(BEFORE, AFTER), sites)
    assert [(region.sites, ops(region)[0]) for region in found] == [
        (("one",), ["Relu", "Identity", "Add"]),
        ((), ["Neg", "Neg", "Exp"]),
    ]


@pytest.mark.parametrize("kept", range(8))
def test_every_mixture_computes_the_same(kept: int) -> None:
    before, after = indexes(BEFORE, AFTER)
    found = regions(before, after)
    undone = [region for number, region in enumerate(found) if not kept & 1 << number]
    mixed = mixture(before, after, undone)
    assert mixed is not None
    onnx.checker.check_model(mixed.proto)
    np.testing.assert_allclose(run(mixed.proto), run(model(BEFORE)), rtol=1e-6)
    kinds = {node.op_type for node in mixed.proto.graph.node}
    assert ("LeakyRelu" in kinds) == bool(kept & 1)
    assert ("Neg" in kinds) == (not kept & 2)
    assert ("Identity" in kinds) == (not kept & 4)


def test_undoing_everything_gives_the_nodes_of_the_model_before() -> None:
    before, after = indexes(BEFORE, AFTER)
    mixed = mixture(before, after, regions(before, after))
    assert mixed is not None
    assert [node.op_type for node in mixed.proto.graph.node] == ["Relu", "Neg", "Neg", "Exp", "Identity", "Add"]


def test_a_folded_constant_is_undone_with_its_node() -> None:
    before, after = indexes(
        "g (float[2] x) => (float[2] y) <float[2] k = {1, 2}> { s = Neg(k) y = Mul(x, s) }",
        "g (float[2] x) => (float[2] y) <float[2] s = {-1, -2}> { y = Mul(x, s) }",
    )
    (region,) = regions(before, after)
    assert (ops(region), region.outputs) == ((["Neg"], []), ("s",))
    mixed = mixture(before, after, [region])
    assert mixed is not None
    assert [tensor.name for tensor in mixed.proto.graph.initializer] == ["k"]
    assert [node.op_type for node in mixed.proto.graph.node] == ["Neg", "Mul"]


def test_what_a_pass_brought_in_for_an_undone_region_goes_with_it() -> None:
    before, after = indexes(
        """g (float[2] x) => (float[2] y, float[2] z) <float[2] k = {1, 2}, float[2] idle = {0, 0}> {
            y = Mul(x, k) z = Add(x, k) }""",
        """g (float[2] x) => (float[2] y, float[2] z) <float[2] m = {1, 2}, float[2] a = {1, 2}, float[2] idle = {0, 0}> {
            y = Mul(x, m) z = Add(x, a) }""",
    )
    first, _ = regions(before, after)
    mixed = mixture(before, after, [first])
    assert mixed is not None
    assert {tensor.name for tensor in mixed.proto.graph.initializer} == {"k", "a", "idle"}
    assert [list(node.input) for node in mixed.proto.graph.node] == [["x", "k"], ["x", "a"]]


def test_a_constant_that_changed_its_value_changes_who_reads_it() -> None:
    before, after = indexes(
        "g (float[2] x) => (float[2] y) <float[2] k = {1, 2}> { y = Mul(x, k) }",
        "g (float[2] x) => (float[2] y) <float[2] k = {1, 3}> { y = Mul(x, k) }",
    )
    (region,) = regions(before, after)
    assert ops(region) == (["Mul"], ["Mul"])
    mixed = mixture(before, after, [region])
    assert mixed is not None
    assert mixed.fingerprint() == before.model.fingerprint()


def test_a_constant_of_which_both_values_are_needed_keeps_its_name_for_the_old_one() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] z) <float[2] k = {1, %d}> { y = Mul(x, k) z = Add(x, k) }"
    before, after = indexes(text % 2, text % 3)
    first, _ = regions(before, after)
    mixed = mixture(before, after, [first])
    assert mixed is not None
    assert [list(node.input) for node in mixed.proto.graph.node] == [["x", "k"], ["x", "k_1"]]
    values = {tensor.name: mixed.tensor(tensor).tolist() for tensor in mixed.proto.graph.initializer}
    assert values == {"k": [1, 2], "k_1": [1, 3]}


def test_a_changed_constant_that_a_branch_reads_too_cannot_be_had_both_ways() -> None:
    text = """g (float[2] x, bool c) => (float[2] y, float[2] z) <float[2] k = {1, %d}> {
        y = Mul(x, k)
        z = If (c) <then_branch = t () => (float[2] u) { u = Add(x, k) }, else_branch = e () => (float[2] v) { v = Neg(x) }>
    }"""
    before, after = indexes(text % 2, text % 3)
    first, second = regions(before, after)
    assert mixture(before, after, [first]) is None
    mixed = mixture(before, after, [first, second])
    assert mixed is not None
    assert mixed.fingerprint() == before.model.fingerprint()


def test_what_a_kept_region_reads_of_an_undone_one_stays() -> None:
    before, after = indexes(
        "g (float[n] x) => (float[n] y, float[n] z) { y = Relu(x) a = Abs(x) z = Neg(a) }",
        "g (float[n] x) => (float[n] y, float[n] z) { h = Identity(x) y = LeakyRelu<alpha = 0.0>(h) a = Abs(h) z = Neg(a) }",
    )
    found = regions(before, after, [ClaimedSite("one", ("h", "y")), ClaimedSite("two", ("a",))])
    first = next(region for region in found if region.sites == ("one",))
    mixed = mixture(before, after, [first])
    assert mixed is not None
    assert [node.op_type for node in mixed.proto.graph.node] in (
        ["Identity", "Relu", "Abs", "Neg"],
        ["Relu", "Identity", "Abs", "Neg"],
    )


def test_a_change_in_a_body_is_one_of_the_node_that_holds_it() -> None:
    text = """g (bool c, float[n] x) => (float[n] y) {{
        y = If (c) <then_branch = t () => (float[n] u) {{ u = {0}(x) }}, else_branch = e () => (float[n] v) {{ v = Abs(x) }}>
    }}"""
    (region,) = regions(*indexes(text.format("Relu"), text.format("Neg")))
    assert ops(region) == (["If"], ["If"])


def test_a_change_in_a_function_is_one_of_the_nodes_that_call_it() -> None:
    head = '<ir_version: 8, opset_import: ["": 17, "own": 1]> '
    text = """g (float[n] x) => (float[n] y) {{ a = own.outer(x) y = Neg(a) }}
        <domain: "own", opset_import: ["": 17, "own": 1]> outer (x) => (y) {{ y = own.inner(x) }}
        <domain: "own", opset_import: ["": 17]> inner (x) => (y) {{ y = {0}(x) }}"""
    (region,) = regions(*indexes(text.format("Relu"), text.format("Abs"), head))
    assert ops(region) == (["outer"], ["outer"])


def test_regions_are_found_in_linear_time() -> None:
    def chain(length: int, op: str) -> GraphIndex:
        nodes = [onnx.helper.make_node("Abs" if i % 2 else op, [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
        ends = [onnx.helper.make_tensor_value_info(f"v{i}", 1, ["n"]) for i in (0, length)]
        return GraphIndex(load(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:]))))

    found = regions(chain(40_000, "Relu"), chain(40_000, "Neg"))
    assert len(found) == 20_000


def test_what_is_said_of_a_restored_value_is_what_the_model_before_said() -> None:
    """The model after may have another type for a name that it no longer uses."""
    text = "g (float[n] x) => (float[n] y) { c = Cast<to = 10>(x) d = Cast<to = 1>(c) y = Neg(d) }"
    changed = "g (float[n] x) => (float[n] y) { d = Identity(x) y = Neg(d) }"
    after = model(changed)
    after.graph.value_info.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.INT64, ["n"]))
    pair = GraphIndex(load(model(text))), GraphIndex(load(after))
    mixed = mixture(*pair, regions(*pair))
    assert mixed is not None
    onnx.checker.check_model(mixed.proto, full_check=True)
    assert [value.name for value in mixed.proto.graph.value_info] == []
