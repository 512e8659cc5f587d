"""Which nodes a target cannot run, judged by contracts, schemas and kernels; and that onnxruntime agrees."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

from rewright.model.load import load
from rewright.verify.static import support
from rewright.verify.static.checks import static_checks
from rewright.verify.static.evidence import Finding

ZOO = Path(__file__).parents[2] / "zoo"


def findings(text: str, target: str = "cpu", precision: str | None = None) -> list[Finding]:
    model = load(parser.parse_model(text))
    return [f for f in static_checks(model, target, precision=precision).findings if f.kind in ("schema", "kernel")]


def one_node(op: str, opset: int = 17, domain: str = "", dtype: str = "float") -> str:
    name = f"{domain}.{op}" if domain else op
    imports = f'"": {opset}' + (f', "{domain}": 1' if domain else "")
    return f"<ir_version: 9, opset_import: [{imports}]> g ({dtype}[N, 4] x) => ({dtype}[N, 4] y) {{ y = {name}(x) }}"


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        (one_node("Relu"), "cpu", None),
        (one_node("Gelu"), "cpu", "opset 17 has no Gelu"),
        (one_node("Gelu", opset=20), "cpu", None),
        (one_node("Gelu", domain="com.microsoft"), "cpu", None),
        (one_node("Gelu", domain="com.microsoft"), "portable", "the target 'portable' has no kernel for com.microsoft.Gelu"),
        (one_node("Own", domain="somebody"), "portable", "somebody.Own is not a standard op"),
        (one_node("Own", domain="somebody"), "cpu", "a domain of its own"),
        (one_node("Erf", dtype="bfloat16", opset=13), "cpu", "no kernel for Erf on bfloat16"),
        (one_node("Cos", dtype="bfloat16", opset=17), "cuda", "Cos of opset 17 does not take bfloat16 as 'input'"),
        (one_node("Upsample", opset=10), "cuda", "Upsample is deprecated in opset 10"),
        (one_node("Erf", dtype="float16"), "cpu", "computes Erf in float32 between Casts"),
        (one_node("Softmax", dtype="float16"), "cpu", "runs Softmax as the ops of its definition"),
    ],
)  # fmt: skip
def test_one_node(text, target, said):
    found = findings(text, target)
    assert [said in finding.message for finding in found] == ([True] if said else []), [finding.message for finding in found]


def test_what_a_narrower_type_would_lack():
    assert findings(one_node("Cos"), "cuda", "float16") == []
    (found,) = findings(one_node("Cos"), "cuda", "bfloat16")
    assert (found.kind, found.certainty) == ("schema", "certain")


def test_a_type_for_storage_is_no_type_to_compute_in():
    evidence = static_checks(load(parser.parse_model(one_node("Cos"))), "cpu", precision="float8e4m3fn")
    assert [finding.kind for finding in evidence.findings if finding.kind in ("schema", "kernel")] == []
    assert "which is a type for storage" in evidence.notes[0]


def test_nodes_of_a_kind_are_counted_once():
    (found,) = findings(
        '<ir_version: 9, opset_import: ["": 17]> g (float16[N] x) => (float16[N] y) { a = Erf(x)  b = Erf(a)  y = Erf(b) }'
    )
    assert (found.nodes, found.certainty) == (3, "note")


def test_what_is_not_known_of_a_target_is_said():
    evidence = static_checks(load(ZOO / "bert.ts17.sdpa.onnx"), "cuda")
    assert evidence.notes == ["kernels of the target 'cuda' are known for fused ops only"]
    assert static_checks(load(ZOO / "bert.ts17.sdpa.onnx"), "cpu").notes == []


@pytest.mark.parametrize(
    "name", ["bert.ts14.eager", "llama.dyn18.sdpa", "vit.dyn23.sdpa", "t5_enc.ts17.eager", "gpt2.ts17.eager"]
)
def test_a_model_that_runs_lacks_nothing(name):
    assert [f for f in static_checks(load(ZOO / f"{name}.onnx")).findings if f.certainty == "certain"] == []


UNARY = {
    "Erf": 17, "Relu": 13, "Softmax": 17, "Gelu": 20, "Round": 17, "Cos": 17, "Tanh": 13, "Neg": 13, "Floor": 13, "Sign": 13,
    "Mish": 18, "HardSwish": 14, "Ceil": 13, "IsNaN": 13,
}  # fmt: skip
KINDS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "INT8")
CASES = [(op, opset, TensorProto.DataType.Value(kind)) for op, opset in UNARY.items() for kind in KINDS]


@pytest.mark.parametrize(("op", "opset", "kind"), CASES)
def test_onnxruntime_agrees(op, opset, kind):
    """Certain findings are models that no session loads, and those without any load."""
    output = TensorProto.BOOL if op == "IsNaN" else kind
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [3])],
        [helper.make_tensor_value_info("y", output, [3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    lacking = [f for f in static_checks(load(model)).findings if f.certainty != "note"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        loads = True
    except Exception:  # whatever the runtime throws means that it does not
        loads = False
    if [f.certainty for f in lacking] != ["possible"]:  # an op that is taken apart
        assert loads is (not lacking), [f.message for f in lacking]


def test_without_the_list_of_kernels_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(support, "_kernels", dict)
    support._judged.cache_clear()
    try:
        evidence = static_checks(load(parser.parse_model(one_node("Erf", dtype="bfloat16", opset=13))))
        assert evidence.findings == []
        assert evidence.notes == ["the installed onnxruntime does not say which kernels it has"]
    finally:
        support._judged.cache_clear()


def test_functions_of_the_model_are_no_missing_ops():
    text = """<ir_version: 9, opset_import: ["": 17, "own": 1]> g (float[N] x) => (float[N] y) { y = own.Twice(x) }
    <domain: "own", opset_import: ["": 17]> Twice (a) => (b) { b = Add(a, a) }"""
    assert findings(text) == []
