"""dead-code: what nothing uses goes, what the signature names stays."""

import numpy as np
from pass_harness import as_model, ops, parity, run_pass

from rewright.passes.cleanup.dead_code import DeadCode

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, float[2] unused_input) => (float[2] y)
<float[2] used = {1, 2}, float[2] unused = {3, 4}, float[2] only_dead = {5, 6}> {
  y = Add(x, used)
  dead_a = Add(x, only_dead)
  dead_b = Relu(dead_a)
}"""


def test_removes_chains_of_unused_nodes_and_their_initializers():
    session, after = run_pass(DeadCode(), MODEL)
    assert ops(after) == ["Add"]
    assert [t.name for t in after.proto.graph.initializer] == ["used"]
    assert [i.name for i in after.proto.graph.input] == ["x", "unused_input"]
    assert session.sites[0].removed == ("dead_a", "dead_b")
    again, same = run_pass(DeadCode(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()


def test_an_initializer_that_gives_an_input_its_default_stays():
    model = as_model(MODEL)
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    default = proto.graph.initializer.add()
    default.CopyFrom(proto.graph.initializer[0])
    default.name = "unused_input"
    _, after = run_pass(DeadCode(), proto)
    assert "unused_input" in {t.name for t in after.proto.graph.initializer}


BODIES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, bool c) => (float[2] y) {
  captured = Relu(x)
  never = Exp(x)
  y = If(c) <
    then_branch = t () => (float[2] a) <float[1] two = {2}, float[1] three = {3}> { a = Mul(captured, two) lost = Mul(x, three) },
    else_branch = e () => (float[2] b) { b = Identity(x) }
  >
}"""


def test_captured_values_are_uses_and_bodies_are_cleaned():
    session, after = run_pass(DeadCode(), BODIES)
    assert ops(after) == ["Relu", "If"]
    then = next(a.g for a in after.proto.graph.node[1].attribute if a.name == "then_branch")
    assert [n.op_type for n in then.node] == ["Mul"]
    assert [t.name for t in then.initializer] == ["two"]
    assert {site.graph for site in session.sites} == {"g", "t"}
    x = np.array([-1, 2], np.float32)
    for flag in (True, False):
        parity(BODIES, after, {"x": x, "c": np.array(flag)})


def test_a_dead_node_with_bodies_goes_whole():
    text = BODIES.replace("=> (float[2] y)", "=> (float[2] captured)")
    _, after = run_pass(DeadCode(), text)
    assert ops(after) == ["Relu"]
