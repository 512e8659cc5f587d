"""Added nodes are tried one of each kind."""

import pytest

from rewright.verify.kernels import check_kernels
from rewright.verify.process import SessionWorker


def names(model):
    return [node.name for node in model.proto.graph.node]


def test_kernels_that_exist_pass(parse, worker):
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { [a] r = com.microsoft.Gelu(x) [b] y = com.microsoft.Gelu(r) }")
    evidence = check_kernels(model, names(model), worker)
    assert (evidence.status, evidence.unknown) == ("passed", ["Gelu 'b'"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N, 4] x) => (float[N, 4] y) { [a] y = com.microsoft.NoSuchOp(x) }", "NoSuchOp"),
        ("g (double[N, 4] x, double[4] b) => (double[N, 4] y) { [a] y = com.microsoft.BiasGelu(x, b) }", "BiasGelu"),
    ],
)
def test_an_op_or_a_dtype_without_a_kernel_is_named(parse, worker, text, reason):
    model = parse(text)
    evidence = check_kernels(model, ["a"], worker)
    assert evidence.status == "failed"
    assert reason in evidence.problems[0]
    assert check_kernels(model, ["somebody else's node"], worker).status == "passed"


def test_nodes_of_one_kind_are_tried_once(parse, monkeypatch):
    loads = []
    monkeypatch.setattr(SessionWorker, "load", lambda self, model: loads.append(model))
    model = parse(
        """g (float[N, 4] x) => (float[N, 4] y) {
            [a] p = LeakyRelu<alpha = 0.1>(x) [b] q = LeakyRelu<alpha = 0.1>(p) [c] y = LeakyRelu<alpha = 0.2>(q)
        }"""
    )
    check_kernels(model, names(model), SessionWorker())
    assert len(loads) == 2


def test_every_node_of_real_exports_has_a_kernel(zoo, worker):
    for name in ("bert.ts17.sdpa", "llama.dyn18.sdpa"):
        model = zoo(name)
        evidence = check_kernels(model, names(model), worker)
        assert (evidence.problems, evidence.unknown) == ([], [])
