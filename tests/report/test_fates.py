"""fates: what became of each softmax, normalisation and activation, through passes that follow one another."""

from __future__ import annotations

from onnx import parser

from rewright.api import explain
from rewright.model.load import load
from rewright.report.fates import fates
from rewright.report.model import PassReport, RejectionReport, SiteReport
from rewright.report.wording import fate as worded

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[B, 3, 8] x, bool c) => (float[B, 3, 8] y, float[B, 3, 1] pooled)
    <float[8] scale = {1, 1, 1, 1, 1, 1, 1, 1}, float two = {2}, float three = {3}> {
        [mean] m = ReduceMean<axes = [-1]>(x)
        d = Sub(x, m)
        [power] q = Pow(d, two)
        [variance] v = ReduceMean<axes = [-1]>(q)
        [cube] r = Pow(x, three)
        [cubes] pooled = ReduceMean<axes = [-1]>(r)
        e = Add(d, v)
        [softmax] p = Softmax(e)
        [norm] n = LayerNormalization(p, scale)
        [erf] f = Erf(n)
        y = If(c) <
            then_branch = t () => (float[B, 3, 8] t1) { [inner] t1 = Tanh(f) },
            else_branch = o () => (float[B, 3, 8] o1) { o1 = Sigmoid(f) }>
    }"""


def site(removed, added, ops_added, status="kept"):
    ops_removed = ["?"] * len(removed)
    return SiteReport(
        id="s", status=status, graph="g", removed=removed, added=added, ops_removed=ops_removed, ops_added=ops_added
    )


def record(name, *sites, **reasons):
    rejections = [RejectionReport(node=node, reason=reason) for node, reason in reasons.items()]
    return PassReport(name=name, backend="standalone", status="applied", exactness="exact", sites=sites, rejections=rejections)


def found(*passes):
    return {fate.node: fate for fate in fates(load(parser.parse_model(MODEL)), passes)}


def test_the_nodes_that_are_asked_for_are_found_in_bodies_too():
    listed = {node: (fate.kind, fate.op, fate.graph) for node, fate in found().items()}
    assert listed == {
        "variance": ("normalisation", "ReduceMean", "g"),
        "softmax": ("attention", "Softmax", "g"),
        "norm": ("normalisation", "LayerNormalization", "g"),
        "erf": ("activation", "Erf", "g"),
        "inner": ("activation", "Tanh", "t"),
        "o1": ("activation", "Sigmoid", "o"),
    }
    said = {node: worded(fate) for node, fate in found().items()}
    assert said.pop("norm") == "left: it is one op already"
    assert set(said.values()) == {"left: no pass of the chain is about it"}


def test_a_node_is_followed_through_the_sites_of_several_passes():
    first = record("layer-norm", site(["mean", "power", "variance"], ["ln"], ["LayerNormalization"]))
    second = record("skip", site(["ln"], ["cast", "skip"], ["Cast", "com.microsoft::SkipLayerNormalization"]), ln="too late")
    fate = found(first, second)["variance"]
    assert (fate.outcome, fate.became, fate.name, fate.passes) == (
        "became",
        "com.microsoft::SkipLayerNormalization",
        "skip",
        ["layer-norm", "skip"],
    )
    assert worded(fate) == "became com.microsoft.SkipLayerNormalization 'skip' (layer-norm, skip)"


def test_of_several_new_ops_the_one_of_the_kind_stands_for_the_node():
    ops = ["Transpose", "com.microsoft::MultiHeadAttention", "com.microsoft::RotaryEmbedding", "Reshape"]
    fate = found(record("attention", site(["softmax"], ["t", "a", "r", "s"], ops)))["softmax"]
    assert (fate.became, fate.name) == ("com.microsoft::MultiHeadAttention", "a")


def test_a_site_that_changes_the_whole_model_does_not_say_which_node_stands_for_which():
    ops = ["com.microsoft::Gelu", "com.microsoft::BiasGelu", "com.microsoft::BiasGelu"]
    fate = found(record("ort-session", site(["erf"], ["a", "b", "c"], ops)))["erf"]
    assert worded(fate) == "became com.microsoft.Gelu or com.microsoft.BiasGelu (ort-session)"


def test_the_reason_is_the_first_specific_one_and_follows_new_names():
    vague = record("one", softmax="no MatMul completes the pattern around it")
    fate = found(vague, record("two", softmax="the scale is not constant"), record("three", softmax="later"))["softmax"]
    assert worded(fate) == "left: two: the scale is not constant"
    assert worded(found(vague)["softmax"]) == "left: one finds none of its formulas around it"
    renamed = record("renames", site(["norm"], ["norm2"], ["LayerNormalization"]))
    fate = found(renamed, record("skip", norm2="an operand is a constant"))["norm"]
    assert worded(fate) == "left: skip: an operand is a constant"


def test_what_was_rolled_back_did_not_happen_and_what_went_is_said():
    undone = record("gelu", site(["erf"], ["g"], ["com.microsoft::Gelu"], status="rolled-back"))
    assert found(undone)["erf"].outcome == "left"
    assert worded(found(record("dead-code", site(["erf"], [], [])))["erf"]) == "went (dead-code)"


def test_functions_are_looked_into():
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[2] x) => (float[2] y) { a = f.act(x)  y = f.act(a) }
    <domain: "f", opset_import: ["" : 17]> act (x) => (y) { y = Tanh(x) }"""
    report = explain(parser.parse_model(text), chain="O1")
    assert [(fate.op, fate.outcome) for fate in report.fates] == [("Tanh", "left")] * 2
    assert len({fate.node for fate in report.fates}) == 2
