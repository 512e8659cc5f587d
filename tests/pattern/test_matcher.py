"""The search: scopes, shared and exposed values, several roots, near misses, and how many steps it takes."""

from typing import Any

import onnx
import pytest
from matching import HEADER, attempt, bindings, make_pass, reason, rewritten, view
from onnx import helper

from rewright.model import facts
from rewright.model.errors import PassError
from rewright.model.load import load
from rewright.model.view import View


def pair(op: Any, x: Any) -> Any:
    return op.Relu(x), op.Sigmoid(x)


def fused_pair(op: Any, x: Any) -> Any:
    return op.Pair(x, domain="custom", outputs=2)


# one root


def test_a_parameter_is_one_value_wherever_it_occurs() -> None:
    pattern = lambda op, a: op.Abs(a) * a  # noqa: E731
    assert bindings(pattern, "n = Abs(x) y = Mul(n, x)") == {"a": "x"}
    assert "should be one value (a)" in reason(pattern, "n = Abs(x) y = Mul(n, z)")


def test_equal_small_constants_are_one_value() -> None:
    pattern = lambda op, a, c: op.Max(op.Min(a, c), c)  # noqa: E731
    inner = "<float[1] p = {2.0}, float[1] q = {2.0}, float[1] r = {3.0}, float s = {2.0}>"
    assert bindings(pattern, "n = Min(x, p) y = Max(n, q)", inner=inner) is not None
    assert bindings(pattern, "n = Min(x, p) y = Max(n, r)", inner=inner) is None
    assert bindings(pattern, "n = Min(x, p) y = Max(n, s)", inner=inner) is None  # another shape


def test_a_node_outside_the_graph_of_the_root_is_not_matched() -> None:
    branches = "< then_branch = t () => (float[2,3] p) { p = Neg(h) }, else_branch = e () => (float[2,3] q) { q = Exp(x) } >"
    opened = view(f"h = Abs(x) y = If (c) {branches}", "(float[2,3] x, bool c) => (float[2,3] y)")
    body = opened.graph.nodes[1].attrs["then_branch"]
    session, nodes = rewritten(make_pass(lambda op, x: op.Neg(op.Abs(x)), lambda op, x: op.Sin(x)), opened)
    assert session.sites == []
    session, nodes = rewritten(make_pass(lambda op, x: op.Neg(x), lambda op, x: op.Sin(x)), opened)
    assert [site.graph for site in session.sites] == ["t"]
    assert body.nodes[0].op == "Sin"
    assert nodes[0] == "h = Abs(x)"


NEAR = [
    (lambda op, x: op.Neg(op.Abs(x)), "n = Exp(x) y = Neg(n)", "'n' comes from Exp, not from Abs"),
    (lambda op, x: op.Neg(op.Abs(x)), "y = Neg(x)", "'x' is not computed by Abs in this graph"),
    (lambda op, x: op.Mul(x, 2), "y = Mul(x, z)", "is not the constant 2"),
    (lambda op, x: op.Mul(x, 2), "k = Constant <value_float = 3.0> () y = Mul(x, k)", "the constant 'k' is 3, not 2"),
]


@pytest.mark.parametrize(("pattern", "body", "said"), NEAR)
def test_the_attempt_that_came_furthest_says_why_it_failed(pattern: Any, body: str, said: str) -> None:
    assert said in reason(pattern, body)


def test_the_near_miss_names_the_nodes_that_fitted() -> None:
    made, _ = attempt(lambda op, x: op.Neg(op.Abs(op.Exp(x))), view("e = Log(x) a = Abs(e) y = Neg(a)"))
    assert made.near is not None
    assert [node.op for node in made.near.nodes] == ["Neg", "Abs"]
    assert made.near.node.op == "Log"


def test_strings_and_complex_constants_are_no_numbers() -> None:
    body = 'k = Constant <value_string = "two"> () y = custom.Mix(x, k)'
    assert bindings(lambda op, x: op.Mix(x, 2, domain="custom"), body) is None


# steps, not seconds


def chain(count: int, op: str = "Mul") -> View:
    """x * c * c * ..., as a chain of scalar multiplications."""
    proto = onnx.parser.parse_model(f"{HEADER} (float[2,3] x) => (float[2,3] y) <float c = {{1.0}}> {{ n0 = Abs(x) }}")
    names = [f"n{index}" for index in range(count)] + ["y"]
    for index in range(count):
        inputs = [names[index], "c"] if op == "Mul" else [names[index]]
        proto.graph.node.append(helper.make_node(op, inputs, [names[index + 1]]))
    opened = View(load(proto))
    facts.ensure(opened)
    return opened


def total_steps(pattern: Any, opened: View) -> int:
    return sum(attempt(pattern, opened, node.outputs[0].name)[0].steps for node in opened.graph.nodes)


PATTERNS = {
    "gelu": lambda op, x: op.product(x, 0.5, op.Erf(x * 0.70710678) + 1),
    "run": lambda op, x: op.Abs(op.through(op.Exp(x), "Mul", "Identity")),
    "sums": lambda op, a, b, c, d: (op.Neg(a) + op.Neg(b)) + (op.Neg(c) + op.Neg(d)),
    "pair": pair,
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("op", ["Mul", "Identity", "Relu"])
def test_the_steps_grow_with_the_candidates(pattern: Any, op: str) -> None:
    short, long = total_steps(pattern, chain(100, op)), total_steps(pattern, chain(400, op))
    assert long <= 4.5 * short


def test_a_long_run_of_factors_does_not_recurse() -> None:
    opened = chain(5000)
    made, found = attempt(lambda op, x: op.product(op.Exp(x), 3), opened)
    assert not found
    assert made.steps < 200


def test_steps_of_a_join_do_not_grow_with_the_graph() -> None:
    steps = []
    for count in (5, 200):
        body = " ".join(
            f"a{index} = Relu(x{index}) b{index} = Sigmoid(x{index}) x{index + 1} = Add(a{index}, b{index})"
            for index in range(count)
        )
        opened = view(f"{body} y = Neg(x{count})", "(float[2,3] x0) => (float[2,3] y)")
        steps.append(attempt(pair, opened, "a3")[0].steps)
    assert steps[0] == steps[1]


def test_a_join_asks_the_value_with_the_fewest_consumers() -> None:
    body = " ".join(
        f"m{index} = Mul(h{index}, x) s{index} = Sub(h{index}, x) h{index + 1} = Add(m{index}, s{index})" for index in range(100)
    )
    opened = view(f"h0 = Neg(x) {body} y = Neg(h100)")
    made, found = attempt(lambda op, h, x: (op.Mul(h, x), op.Sub(h, x)), opened, "m50")
    assert {"h": "h50", "x": "x"} in found
    assert made.steps < 60  # x has 201 consumers


# several outputs


def test_roots_that_share_a_value_are_replaced_together() -> None:
    opened = view("r = Relu(x) s = Sigmoid(x) y = Add(r, s)")
    session, nodes = rewritten(make_pass(pair, fused_pair), opened)
    assert nodes == ["r,s = Pair(x)", "y = Add(r,s)"]
    (site,) = session.sites
    assert set(site.ops_removed) == {"Relu", "Sigmoid"}
    again, same = rewritten(make_pass(pair, fused_pair), opened)
    assert (again.sites, same) == ([], nodes)


def test_roots_may_be_graph_outputs_and_stand_in_any_order() -> None:
    opened = view("s = Sigmoid(x) m = Neg(s) y = Relu(x)", "(float[2,3] x) => (float[2,3] y, float[2,3] s, float[2,3] m)")
    _, nodes = rewritten(make_pass(pair, fused_pair), opened)
    assert nodes == ["y,s = Pair(x)", "m = Neg(s)"]


def test_deeper_roots_are_found_through_the_pattern() -> None:
    def pattern(op: Any, x: Any, w: Any) -> Any:
        shared = op.Exp(x)
        return shared * w, op.Neg(op.Sqrt(op.through(shared)))

    body = "e = Exp(x) p = Mul(z, e) c = Identity(e) q = Sqrt(c) n = Neg(q) y = Add(p, n)"
    _, nodes = rewritten(make_pass(pattern, lambda op, x, w: op.Two(x, w, domain="custom", outputs=2)), view(body))
    assert nodes == ["p,n = Two(x,z)", "y = Add(p,n)"]


def test_three_roots_and_alternatives_between_them() -> None:
    def pattern(op: Any, x: Any, a: Any, b: Any, c: Any) -> Any:
        return op.MatMul(x, a), op.any_of(op.MatMul(x, b), op.Gemm(x, b)), op.MatMul(x, c)

    def rewrite(op: Any, x: Any, a: Any, b: Any, c: Any) -> Any:
        return op.Packed(x, a, b, c, domain="custom", outputs=3)

    body = "q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c) y = Sum(q, k, v)"
    opened = view(body, "(float[2,3] x, float[3,3] a, float[3,3] b, float[3,3] c) => (float[2,3] y)")
    session, nodes = rewritten(make_pass(pattern, rewrite), opened)
    assert len(session.sites) == 1
    assert [node.split(" = ")[1] for node in nodes] == ["Packed(x,a,b,c)", "Sum(q,k,v)"]


def test_a_root_that_nothing_computes_is_named() -> None:
    assert "nothing computes output 1 of the pattern" in reason(pair, "y = Relu(x)")


def test_interior_values_of_a_further_root_must_be_private_too() -> None:
    pattern = lambda op, x: (op.Relu(x), op.Neg(op.Sigmoid(x)))  # noqa: E731
    body = "r = Relu(x) s = Sigmoid(x) n = Neg(s) t = Add(s, n) y = Add(r, t)"
    session, nodes = rewritten(make_pass(pattern, fused_pair), view(body))
    assert session.sites == []
    assert "used elsewhere" in session.rejections[0].reason
    assert len(nodes) == 5


def test_a_match_that_would_need_its_own_output_is_refused() -> None:
    pattern = lambda op, a, b: (op.Relu(a), op.Mul(a, op.Exp(b)))  # noqa: E731
    rewrite = lambda op, a, b: op.Two(a, b, domain="custom", outputs=2)  # noqa: E731
    session, _ = rewritten(make_pass(pattern, rewrite), view("r = Relu(x) n = Neg(r) e = Exp(n) m = Mul(x, e) y = Add(r, m)"))
    assert session.sites == []
    assert "depends on an output of it" in session.rejections[0].reason
    session, nodes = rewritten(make_pass(pattern, rewrite), view("r = Relu(x) n = Neg(z) e = Exp(n) m = Mul(x, e) y = Add(r, m)"))
    assert nodes == ["n = Neg(z)", "r,m = Two(x,n)", "y = Add(r,m)"]


def test_such_a_path_is_also_seen_through_bodies_and_through_other_sites() -> None:
    branches = "< then_branch = t () => (float[2,3] p) { p = Neg(r) }, else_branch = e () => (float[2,3] q) { q = Neg(x) } >"
    pattern = lambda op, a, b: (op.Relu(a), op.Mul(a, op.Exp(b)))  # noqa: E731
    rewrite = lambda op, a, b: op.Two(a, b, domain="custom", outputs=2)  # noqa: E731
    body = f"r = Relu(x) n = If (c) {branches} e = Exp(n) m = Mul(x, e) y = Add(r, m)"
    session, _ = rewritten(make_pass(pattern, rewrite), view(body, "(float[2,3] x, bool c) => (float[2,3] y)"))
    assert session.sites == []
    crossed = "r1 = Relu(x) r2 = Relu(z) e1 = Exp(r2) m1 = Mul(x, e1) e2 = Exp(r1) m2 = Mul(z, e2) y = Add(m1, m2)"
    session, _ = rewritten(make_pass(pattern, rewrite), view(crossed))
    assert len(session.sites) == 1  # each alone would do, both would need each other
    assert any("depends on an output of it" in rejection.reason for rejection in session.rejections)


def test_an_exposed_value_below_the_root_is_replaced_where_it_is_used_elsewhere() -> None:
    def pattern(op: Any, a: Any, b: Any) -> Any:
        total = a + b
        return op.Relu(total), total

    rewrite = lambda op, a, b: op.SkipRelu(a, b, domain="custom", outputs=2)  # noqa: E731
    _, nodes = rewritten(make_pass(pattern, rewrite), view("t = Add(x, z) r = Relu(t) y = Mul(r, t)"))
    assert nodes == ["r,t = SkipRelu(x,z)", "y = Mul(r,t)"]


def test_none_keeps_an_exposed_value_and_what_computes_it() -> None:
    def pattern(op: Any, a: Any, b: Any) -> Any:
        total = a + b
        return op.Relu(total), total

    rewrite = lambda op, a, b: (op.Fused(a, b, domain="custom"), None)  # noqa: E731
    _, nodes = rewritten(make_pass(pattern, rewrite), view("t = Add(x, z) r = Relu(t) y = Mul(r, t)"))
    assert nodes == ["t = Add(x,z)", "r = Fused(x,z)", "y = Mul(r,t)"]


def test_keep_lets_other_nodes_use_the_value() -> None:
    body = "a = Abs(x) n = Neg(a) y = Add(n, a)"
    fuse = lambda op, x: op.Fused(x, domain="custom")  # noqa: E731
    session, nodes = rewritten(make_pass(lambda op, x: op.Neg(op.Abs(x)), fuse), view(body))
    assert session.sites == []
    assert "'a' inside it is used elsewhere" in session.rejections[0].reason
    session, nodes = rewritten(make_pass(lambda op, x: op.Neg(op.Abs(x, keep=True)), fuse), view(body))
    assert nodes == ["a = Abs(x)", "n = Fused(x)", "y = Add(n,a)"]
    session, nodes = rewritten(make_pass(lambda op, x: op.Neg(op.Abs(x, keep=True)), fuse), view("a = Abs(x) y = Neg(a)"))
    assert nodes == ["y = Fused(x)"]


def test_one_new_value_may_replace_two() -> None:
    same = lambda op, x: (value := op.Tanh(x), value)  # noqa: E731
    _, nodes = rewritten(make_pass(pair, same), view("r = Relu(x) s = Sigmoid(x) y = Add(r, s)"))
    assert nodes == ["r = Tanh(x)", "y = Add(r,r)"]


def test_both_outputs_of_one_node_may_be_roots() -> None:
    def pattern(op: Any, x: Any) -> Any:
        return op.Split(op.Neg(x), outputs=2, axis=1)

    rewrite = lambda op, x: op.NegSplit(x, domain="custom", outputs=2)  # noqa: E731
    body = "n = Neg(x) a, b = Split <axis = 1, num_outputs = 2> (n) y = Add(b, a)"
    _, nodes = rewritten(make_pass(pattern, rewrite), view(body))
    assert nodes == ["a,b = NegSplit(x)", "y = Add(b,a)"]
    third = "n = Neg(x) a, b, c = Split <axis = 1, num_outputs = 3> (n) y = Sum(b, a, c)"
    session, _ = rewritten(make_pass(pattern, rewrite), view(third))
    assert "the output 'c' of Split is used" in session.rejections[0].reason


def test_more_results_than_values_are_the_pass_developers_mistake() -> None:
    with pytest.raises(PassError, match="returned 2 values for the 1") as caught:
        rewritten(make_pass(lambda op, x: op.Relu(x), fused_pair), view("y = Relu(x)"))
    assert "Pass developer" in caught.value.hint


def test_many_sites_of_one_value_fire_once_each() -> None:
    body = "r1 = Relu(x) s1 = Sigmoid(x) r2 = Relu(x) s2 = Sigmoid(x) y = Sum(r1, s1, r2, s2)"
    session, nodes = rewritten(make_pass(pair, fused_pair), view(body))
    assert len(session.sites) == 2
    assert sorted(node.split(" = ")[1] for node in nodes) == ["Pair(x)", "Pair(x)", "Sum(r1,s1,r2,s2)"]
