"""The site gate: what it runs a changed region on, what it compares it with, and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, parser

import rewright
from rewright.model.load import load
from rewright.model.regions import ClaimedSite
from rewright.ops.lowering import lower
from rewright.passes.contract import Exactness
from rewright.verify.inputs import make_input_sets
from rewright.verify.process import SessionWorker
from rewright.verify.sites.evidence import RegionEvidence, SiteParityEvidence
from rewright.verify.sites.gate import SiteGate
from rewright.verify.sites.judgement import judge

ZOO = Path(__file__).parents[1] / "zoo"
HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> '


def model(text: str) -> ModelProto:
    return parser.parse_model(HEAD + text)


def check(
    before: str | ModelProto,
    after: str | ModelProto,
    *sites: ClaimedSite,
    exactness: Exactness = "reassociating",
    is_lowered: bool = False,
) -> SiteParityEvidence:
    old, new = (load(model(text) if isinstance(text, str) else text) for text in (before, after))
    with SessionWorker() as worker:
        gate = SiteGate(old, make_input_sets(old), worker, lower=lower if is_lowered else None)
        return gate.check(old, new, sites, exactness).evidence


def only(evidence: SiteParityEvidence) -> RegionEvidence:
    (region,) = evidence.regions
    return region


NORM = """g (float[b,8] x) => (float[b,8] y) <float[8] w = {1,1,1,1,1,1,1,1}, float[8] s = {1,1,1,1,1,1,1,1}>
    { h = Add(x, w)  n = LayerNormalization<epsilon = %s>(h, s)  y = Mul(n, w) }"""


def test_a_wrong_epsilon_shows_on_rows_of_low_variance() -> None:
    region = only(check(NORM % "1.0e-5", NORM % "1.0e-12"))
    assert region.status == "failed"
    assert region.output == "n"
    assert region.worst_set in ("low variance", "zeros", "tiny", "rows of different scale")
    assert region.max_abs is not None
    assert region.allowed is not None
    assert region.max_abs > region.allowed


def test_the_right_region_passes_with_float64_as_the_reference() -> None:
    decomposed = """g (float[b,8] x) => (float[b,8] y) <float[8] w = {1,2,3,4,5,6,7,8}, float two = {2}, float e = {0.00001}> {
        h = Add(x, w)  m = ReduceMean<axes = [-1]>(h)  d = Sub(h, m)  q = Pow(d, two)  v = ReduceMean<axes = [-1]>(q)
        a = Add(v, e)  r = Sqrt(a)  n = Div(d, r)  y = Mul(n, w) }"""
    fused = """g (float[b,8] x) => (float[b,8] y) <float[8] w = {1,2,3,4,5,6,7,8}> {
        h = Add(x, w)  y = LayerNormalization<epsilon = 0.00001>(h, w) }"""
    region = only(check(decomposed, fused))
    assert (region.status, region.reference, region.free, region.runs_as) == ("passed", "float64", 1, "kernels")
    assert region.sets > region.captured > 0


def test_a_mask_that_is_dropped_shows_where_nothing_was_padded_too() -> None:
    text = """g (float[b,s,s] x, int64[b,s] attention_mask) => (float[b,s,s] y)
        <float one = {1}, float c = {-10000}, int64[1] k = {1}> {
        f = Cast<to = 1>(attention_mask)  u = Unsqueeze(f, k)  i = Sub(one, u)  bias = Mul(i, c)
        z = Mul(x, one)  a = Add(z, bias)  y = Softmax<axis = -1>(a) }"""
    dropped = text.replace("a = Add(z, bias)", "a = Identity(z)")
    assert check(text, text).regions == []
    region = only(check(text, dropped))
    assert region.status == "failed"


def test_what_only_one_side_reads_is_traced_to_what_both_read() -> None:
    """The mask that is added, and the padding mask that it is made of, are not chosen independently."""
    before = """g (float[b,s] x, int64[b,s] attention_mask) => (float[b,s] y) <float one = {1}, float c = {-10000}> {
        f = Cast<to = 1>(attention_mask)  i = Sub(one, f)  bias = Mul(i, c)  y = Add(x, bias) }"""
    after = """g (float[b,s] x, int64[b,s] attention_mask) => (float[b,s] y) <float c = {-10000}, float zero = {0}> {
        t = Cast<to = 9>(attention_mask)  o = Where(t, zero, c)  y = Add(x, o) }"""
    region = only(check(before, after))
    assert (region.status, region.free) == ("passed", 1)


def test_values_that_an_activation_bounds_are_not_made_up() -> None:
    """Relu of Relu is Relu: true of what Relu gives, and of nothing else."""
    before = "g (float[b,4] x) => (float[b,4] y, float[b,4] r) { r = Relu(x)  t = Relu(r)  y = Neg(t) }"
    after = "g (float[b,4] x) => (float[b,4] y, float[b,4] r) { r = Relu(x)  y = Neg(r) }"
    region = only(check(before, after, exactness="exact"))
    assert (region.status, region.free) == ("passed", 0)
    assert region.sets == region.captured


def test_exact_means_bit_equal() -> None:
    before = "g (float[b,4] x) => (float[b,4] y) <float k = {3}, float i = {0.33333334}> { t = Mul(x, k)  y = Mul(t, i) }"
    after = "g (float[b,4] x) => (float[b,4] y) <float k = {3}> { t = Mul(x, k)  y = Div(t, k) }"
    assert only(check(before, after)).status == "passed"
    assert only(check(before, after, exactness="exact")).status == "failed"


def test_sites_of_one_structure_share_work_and_are_told_apart() -> None:
    weights = np.random.default_rng(0).standard_normal((3, 32, 32)).astype(np.float32)

    def stack(wrong: int | None) -> ModelProto:
        nodes, inits = [], []
        for number in range(3):
            inits.append(onnx.numpy_helper.from_array(weights[number], f"w{number}"))
            nodes.append(onnx.helper.make_node("MatMul", [f"a{number}" if number else "x", f"w{number}"], [f"b{number}"]))
            op = ("Tanh" if number == wrong else "Erf") if wrong is not None else "Erf"
            nodes.append(onnx.helper.make_node(op, [f"b{number}"], [f"a{number + 1}"]))
        ends = [onnx.helper.make_tensor_value_info(name, 1, ["b", 32]) for name in ("x", "a3")]
        graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], inits)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)

    def renamed() -> ModelProto:
        proto = stack(None)
        for node in proto.graph.node:  # another spelling of every site
            if node.op_type == "MatMul":
                node.op_type = "Gemm"
        return proto

    evidence = check(stack(None), renamed())
    assert [region.status for region in evidence.regions] == ["passed"] * 3
    # the first one reads an input, which can be anything, the others what Erf gives
    assert [bool(region.shared_with) for region in evidence.regions] == [False, False, True]
    assert evidence.regions[2].sets < evidence.regions[1].sets < evidence.regions[0].sets
    wrong = check(stack(None), stack(1))
    assert [(region.output, region.status) for region in wrong.regions] == [("a2", "failed")]


def test_a_weight_that_is_wrong_at_one_site_only_is_found_there() -> None:
    def stack(factor: float) -> ModelProto:
        nodes, inits = [], []
        for number in range(3):
            bias = np.linspace(-1, 1, 300, dtype=np.float32) * (factor if number == 2 else 1)
            inits.append(onnx.numpy_helper.from_array(bias, f"bias{number}" if factor == 1 else f"new{number}"))
            nodes.append(onnx.helper.make_node("Add", [f"v{number}" if number else "x", inits[-1].name], [f"v{number + 1}"]))
        ends = [onnx.helper.make_tensor_value_info(name, 1, ["b", 300]) for name in ("x", "v3")]
        graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], inits)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)

    assert [region.status for region in check(stack(1), stack(1.01)).regions] == ["passed", "passed", "failed"]


def test_ops_without_a_kernel_run_through_the_bodies_of_their_contracts() -> None:
    gelu = "g (float[b,8] x) => (float[b,8] y) <float[8] w = {1,2,3,4,5,6,7,8}> { h = Add(x, w)  y = Gelu%s(h) }"
    head = '<ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]> '
    old = parser.parse_model(head + gelu % '<approximate = "tanh">')
    new = parser.parse_model(head + (gelu % "").replace("Gelu(", "com.microsoft.GemmFastGelu(").replace("(h)", "(h, e)"))
    new.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "e"))
    region = only(check(old, new, is_lowered=True))
    assert (region.status, region.runs_as) == ("passed", "contract bodies")
    assert only(check(old, new)).status == "failed"  # as it stands it does not load


def test_a_part_that_does_not_run_alone_is_said_not_to_have_been_run() -> None:
    before = "g (float[b,4] x) => (float[b,4] y) { h = Neg(x)  y = own.Thing(h) }"
    region = only(
        check(before.replace('"com', '"own": 1, "com'), "g (float[b,4] x) => (float[b,4] y) { h = Neg(x)  y = Abs(h) }")
    )
    assert (region.status, bool(region.reason)) == ("not-run", True)


@pytest.mark.parametrize("error", [1e-6, 3e-5])
def test_a_new_part_that_is_nearer_to_the_truth_is_not_blamed(error: float) -> None:
    truth = np.linspace(1, 2, 64).reshape(4, 16)
    old = (truth + error).astype(np.float32)
    assert judge(old, truth.astype(np.float32), truth, "reassociating", is_captured=True).ratio <= 1
    assert (
        judge(truth.astype(np.float32), (truth + 30 * error).astype(np.float32), truth, "reassociating", is_captured=True).ratio
        > 1
    )


def test_padding_that_nobody_reads_may_change_and_nothing_else() -> None:
    text = """g (float[b,s,4] x, int64[b,s] attention_mask) => (float[b,s,4] y) <int64[1] k = {-1}, float one = {1}> {
        h = Mul(x, one)  f = Cast<to = 1>(attention_mask)  u = Unsqueeze(f, k)  y = Mul(h, u) }"""
    same_where_valid = text.replace("y = Mul(h, u)", "y = Mul(h, one)")
    different = text.replace("y = Mul(h, u)", "z = Mul(h, u)  y = Neg(z)")
    assert only(check(text, same_where_valid)).status == "passed"
    assert only(check(text, different)).status == "failed"


@pytest.mark.parametrize(
    "name", ["bert.ts17.sdpa", "gpt2.dyn18.sdpa", "vit.dyn20.eager", "llama.dyn18.sdpa", "t5_enc.ts17.eager"]
)
def test_nothing_is_flagged_in_real_exports(name: str) -> None:
    report = rewright.optimize(ZOO / f"{name}.onnx", verify="sites").report
    assert report.verdict == "passed"
    regions = [region for record in report.passes if record.site_parity for region in record.site_parity.regions]
    assert regions
    assert {region.status for region in regions} <= {"passed", "unused"}
    fused = [
        region
        for record in report.passes
        if record.name == "attention" and record.site_parity
        for region in record.site_parity.regions
    ]
    assert all(region.free for region in fused if not region.shared_with)
