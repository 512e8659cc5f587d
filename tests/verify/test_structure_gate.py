"""A pass answers for the structural problems that it makes, and for no others."""

import onnx
import pytest
from onnx import TensorProto, helper

from rewright.model.load import load
from rewright.verify.structure import check_structure

TWO_NODES = "g (float[N] x) => (float[N] y) { [first] a = Relu(x) [second] y = Neg(a) }"


def changed(model, change):
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    change(proto)
    return model.with_proto(proto)


def swap_nodes(proto):
    nodes = list(proto.graph.node)[::-1]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def edit(index, **fields):
    """Change fields of one node; a list field is replaced."""

    def change(proto):
        node = proto.graph.node[index]
        for name, value in fields.items():
            if isinstance(value, list):
                node.ClearField(name)
                getattr(node, name).extend(value)
            else:
                setattr(node, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (swap_nodes, "Neg node 'second' reads value 'a' before it is produced, or out of its scope"),
        (edit(1, input=["nowhere"]), "Neg node 'second' reads value 'nowhere' that nothing produces"),
        (edit(0, output=["y"]), "value 'y' is assigned a second time, by Neg node 'second'"),
        (edit(0, output=["x"]), "value 'x' is assigned a second time, by Relu node 'first'"),
        (edit(1, output=["z"]), "output 'y' of graph is not produced in it"),
        (edit(1, name=""), "the Neg node that makes 'y' has no name"),
        (edit(1, name="first"), "node name 'first' is used more than once"),
        (edit(1, domain="own", op_type="Neg2"), "Neg2 node 'second' is of domain 'own', which the model does not import"),
        (edit(1, op_type="Negg"), "onnx.checker: No Op registered for Negg"),
        (edit(1, input=["a", "a"]), "has input size 2 not in range"),
    ],
)
def test_each_problem_is_found_and_named(parse, change, problem):
    before = parse(TWO_NODES)
    after = changed(before, change)
    evidence = check_structure(before, after)
    assert evidence.status == "failed"
    assert any(problem in found for found in evidence.problems), evidence.problems
    assert evidence.reason == evidence.problems[0]


@pytest.mark.parametrize("change", [swap_nodes, edit(1, name=""), edit(1, op_type="Negg"), edit(1, domain="own")])
def test_problems_of_the_original_are_not_held_against_the_pass(parse, change):
    broken = changed(parse(TWO_NODES), change)
    still_broken = changed(broken, lambda proto: proto.graph.node.add(op_type="Relu", name="new", input=["x"], output=["b"]))
    assert check_structure(broken, still_broken).status == "passed"


def test_a_new_problem_beside_an_old_one_is_held_against_the_pass(parse):
    broken = changed(parse(TWO_NODES), edit(0, name=""))
    worse = changed(broken, edit(1, input=["nowhere"]))
    evidence = check_structure(broken, worse)
    assert evidence.problems == ["Neg node 'second' reads value 'nowhere' that nothing produces"]


def test_ops_of_other_domains_and_of_the_runtime_are_tolerated(parse):
    before = parse(TWO_NODES)
    assert check_structure(before, changed(before, edit(1, domain="com.microsoft", op_type="Whatever"))).status == "passed"
    assert check_structure(before, changed(before, edit(1, op_type="SimplifiedLayerNormalization"))).status == "passed"
    assert check_structure(before, changed(before, edit(1, op_type="LayerNormalisation"))).status == "failed"


IF = """g (bool c, float[N] x) => (float[N] y) {
    [outer] a = Relu(x)
    [choice] y = If(c) <
        then_branch = t () => (float[N] p) { [then] p = Neg(a) },
        else_branch = e () => (float[N] q) { [else] q = Abs(x) }
    >
}"""


def branch(proto, index):
    return proto.graph.node[1].attribute[index].g


def test_bodies_see_what_is_around_them(parse):
    assert check_structure(parse(IF), parse(IF)).status == "passed"


def test_a_capture_has_to_be_produced_before_the_body(parse):
    before = parse(IF)
    evidence = check_structure(before, changed(before, swap_nodes))
    assert "Neg node 'then' reads value 'a' before it is produced, or out of its scope" in evidence.problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda p: branch(p, 0).node[0].input.__setitem__(0, "nowhere"), "reads value 'nowhere' that nothing produces"),
        (lambda p: branch(p, 1).node[0].input.__setitem__(0, "p"), "reads value 'p' before it is produced, or out of its scope"),
        (lambda p: branch(p, 0).node[0].output.__setitem__(0, "a"), "value 'a' is assigned a second time, by Neg node 'then'"),
        (
            lambda p: setattr(branch(p, 0).output[0], "name", "a"),
            "output 'a' of a body of If node 'choice' is not produced in it",
        ),
    ],
)
def test_problems_in_bodies_are_found(parse, change, problem):
    before = parse(IF)
    evidence = check_structure(before, changed(before, change))
    assert any(problem in found for found in evidence.problems), evidence.problems


def test_names_may_repeat_in_the_two_branches_of_an_if(parse):
    same = IF.replace("float[N] q", "float[N] p").replace("[else] q", "[else] p")
    assert check_structure(parse(IF), parse(same)).status == "passed"


def test_functions_are_checked_in_their_own_scope(parse):
    text = """<ir_version: 10, opset_import: ["": 17, "own": 1]>
        g (float[N] x) => (float[N] y) { [call] y = own.f(x) }
        <domain: "own", opset_import: ["": 17]>
        f (x) => (z) { [inside] z = Relu(x) }"""
    before = parse(text)
    assert check_structure(before, before).status == "passed"
    after = changed(before, lambda proto: proto.functions[0].node[0].input.__setitem__(0, "y"))
    assert "reads value 'y'" in check_structure(before, after).reason


def test_weights_in_files_are_not_looked_for(zoo, tmp_path, monkeypatch):
    model = zoo("bert.ts17.sdpa")
    monkeypatch.chdir(tmp_path)
    assert check_structure(model, model).status == "passed"
    assert check_structure(model, changed(model, edit(0, op_type="Nothing"))).status == "failed"


def test_a_hundred_thousand_nodes_in_a_chain_are_ordinary():
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(100_000)]
    x = helper.make_tensor_value_info("v0", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_value_info("v100000", TensorProto.FLOAT, ["N"])
    model = load(helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)]))
    broken = changed(model, edit(99_999, input=["v5", "v6"]))
    evidence = check_structure(model, broken)
    assert evidence.reason.startswith("onnx.checker: ")
    assert "has input size 2" in evidence.reason


def test_a_thousand_problems_are_abridged(parse):
    before = parse(TWO_NODES)

    def add_many(proto):
        for index in range(1000):
            proto.graph.node.add(op_type="Relu", name=f"n{index}", input=["nowhere"], output=[f"o{index}"])

    evidence = check_structure(before, changed(before, add_many))
    assert len(evidence.problems) == 21
    assert evidence.problems[-1] == "and 980 more problems"
