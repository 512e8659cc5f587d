"""check_pass: what it accepts, and what one failure says."""

import hashlib

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.parser import parse_model

from rewright import GraphPass, ModelPass, PatternPass, UsageError, load
from rewright.passes.fusion.bias_gelu import BiasGelu
from rewright.testing import check_pass, refuses

BIAS = "<float[4] b = {0.5, -1.0, 2.0, 0.0}>"
PLAIN = f"g (float[N, 4] x) => (float[N, 4] y) {BIAS} {{ s = Add(x, b)  y = com.microsoft.Gelu(s) }}"
SHARED = f"g (float[N, 4] x) => (float[N, 4] y, float[N, 4] s) {BIAS} {{ s = Add(x, b)  y = com.microsoft.Gelu(s) }}"
NORM = """g (float[N, 8] x) => (float[N, 8] y) <float e = {0.00001}> {
    m = ReduceMean<axes = [-1]>(x)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean<axes = [-1]>(q)
    a = Add(v, e)  s = Sqrt(a)  y = Div(d, s)
}"""


class WrongEpsilon(PatternPass):
    """Sqrt(x + 1e-5) -> Sqrt(x + 1e-12): wrong."""

    name = "wrong-epsilon"
    exactness = "reassociating"

    def pattern(self, op, x):
        return op.Sqrt(x + 1e-5)

    def rewrite(self, op, x):
        return op.Sqrt(op.Add(x, op.constant(np.float32(1e-12))))


class DoubleNegation(GraphPass):
    """Neg(Neg(x)) -> x, once a run."""

    name = "double-negation-once"

    def run(self, session):
        for graph in session.view.graphs():
            for node in graph.nodes:
                inner = node.inputs[0].inputs[0] if node.op == "Neg" and node.inputs[0].inputs else None
                if inner is not None and inner.op == "Neg":
                    session.record(graph, [node], session.editor.redirect(node.outputs[0], inner.inputs[0], node))
                    return


class Renames(ModelPass):
    """Gives the model another producer, and says nothing."""

    name = "renames"

    def transform(self, session):
        made = onnx.ModelProto()
        made.CopyFrom(session.model.proto)
        made.producer_name += "x"
        return session.model.with_proto(made)


class WritesIntoTheInput(ModelPass):
    """Writes into the model that it was given."""

    name = "writes-into-the-input"

    def transform(self, session):
        session.model.proto.producer_name = "somebody else"
        return session.model


def failure(*arguments, **options):
    with pytest.raises(AssertionError) as raised:
        check_pass(*arguments, **options)
    return str(raised.value)


def test_a_right_pass_gives_its_run():
    result = check_pass(BiasGelu(), PLAIN, becomes={"BiasGelu": 1, "Add": 0, "com.microsoft::Gelu": 0, "ai.onnx::Add": 0})
    assert result.report.verdict == "passed"
    assert result.report.verify == "sites"
    assert result.report.passes[0].site_parity.status == "passed"
    assert [node.op_type for node in result.model.proto.graph.node] == ["BiasGelu"]


@pytest.mark.parametrize("pass_", [BiasGelu, BiasGelu(), "bias-gelu", "bias-gelu{gemm=true}"])
def test_a_pass_is_a_class_or_configured_or_chain_text(pass_):
    assert check_pass(pass_, PLAIN).report.chain.startswith("bias-gelu")


def test_of_chain_text_the_sites_of_all_passes_count():
    model = PLAIN.replace("s = Add", "i = Identity(x) s = Add").replace("(x, b)", "(i, b)")
    assert check_pass("identity-elimination, bias-gelu", model, sites=2).report.counts() == {
        "identity-elimination": 1,
        "bias-gelu": 1,
    }


def test_what_comes_before_is_not_counted():
    model = PLAIN.replace("s = Add", "i = Identity(x) s = Add").replace("(x, b)", "(i, b)")
    result = check_pass("bias-gelu", model, before="identity-elimination")
    assert result.report.model.ops_before == {"ai.onnx::Add": 1, "com.microsoft::Gelu": 1}


@pytest.mark.parametrize("kind", ["text", "text with a header", "proto", "model", "path", "path as text", "external data"])
def test_models_come_in_every_form(kind, tmp_path):
    proto = parse_model(f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> {PLAIN}')
    path = tmp_path / "model.onnx"
    load(proto).save(path, external_data=kind == "external data")
    sources = {
        "text": PLAIN,
        "text with a header": f'<ir_version: 10, opset_import: ["": 20]> {PLAIN}',
        "proto": proto,
        "model": load(proto),
        "path": path,
        "path as text": str(path),
        "external data": path,
    }
    assert check_pass(BiasGelu, sources[kind]).report.verdict == "passed"


def test_too_few_sites_are_told_with_the_reasons():
    message = failure(BiasGelu, SHARED)
    assert "the check of 'bias-gelu' found 1 problem" in message
    assert "it fires at 0 sites, 1 expected; its reasons are:" in message
    assert "the value 's' inside it is used elsewhere too" in message
    assert message.endswith("ops: Add 1, com.microsoft::Gelu 1")


def test_too_many_sites_are_told_with_what_they_did():
    message = failure(BiasGelu, PLAIN, sites=0)
    assert "it fires at 1 site, 0 expected" in message
    assert "bias-gelu#0: com.microsoft::Gelu, Add -> com.microsoft::BiasGelu" in message


def test_what_a_site_removes_is_counted():
    constants = "a = Constant<value_float = 1.0>() b = Constant<value_float = 2.0>() c = Constant<value_float = 3.0>()"
    model = f"g (float[N] x) => (float[N] y) {{ {constants} d = Sum(a, b, c) y = Add(x, d) }}"
    message = failure("constant-folding", model, sites=5)
    assert "it fires at 2 sites, 5 expected" in message
    assert "Constant x 3 -> nothing" in failure("constant-folding", model, sites=0)


def test_any_number_of_sites():
    assert check_pass(BiasGelu, PLAIN, sites=None).report.counts() == {"bias-gelu": 1}
    assert check_pass(BiasGelu, SHARED, sites=None).report.counts() == {"bias-gelu": 0}


def test_refusals_and_their_reasons():
    assert refuses(BiasGelu, SHARED, r"value '\w' inside it is used").report.counts() == {"bias-gelu": 0}
    with pytest.raises(
        AssertionError, match=r"no rejection gives a reason that matches 'a vector'; its reasons are:\n .*used elsewhere"
    ):
        refuses(BiasGelu, SHARED, "a vector")
    with pytest.raises(AssertionError, match="it fires at 1 site, 0 expected"):
        refuses(BiasGelu, PLAIN, "used")


def test_a_site_beside_a_refusal():
    both = f"""g (float[N, 4] x) => (float[N, 4] y, float[N, 4] t) {BIAS} {{
        s = Add(x, b)  z = com.microsoft.Gelu(s)  t = Add(z, b)  y = com.microsoft.Gelu(t) }}"""
    check_pass(BiasGelu, both, sites=1, refuses="'t' inside it is used elsewhere")


def test_ops_that_are_left():
    message = failure(BiasGelu, PLAIN, becomes={"BiasGelu": 2, "Add": 0, "Erf": 1})
    assert "the result has 1 x BiasGelu instead of 2, 0 x Erf instead of 1; it holds com.microsoft::BiasGelu 1" in message


def test_a_pass_that_asks_for_an_end_of_the_run_gets_the_same_message():
    message = failure(WrongEpsilon(on_failure="raise"), NORM)
    assert "wrong-epsilon rolled back: sites: wrong-epsilon#0: value 's'" in message


@pytest.mark.parametrize("verify", ["model", "sites"])
def test_wrong_numbers_are_told_with_figures(verify):
    message = failure(WrongEpsilon, NORM, verify=verify)
    assert "wrong-epsilon rolled back" in message
    assert "wrong-epsilon#0 at Add" in message
    assert "max abs 2." in message
    assert "is allowed" in message
    assert ("output 'y' float32" in message) == (verify == "model")


def test_everything_that_is_wrong_is_in_one_message():
    message = failure(WrongEpsilon, NORM, sites=3, becomes={"Exp": 1}, refuses="no such reason")
    assert "found 4 problems:" in message
    for number, part in enumerate(["it fires at 1 site, 3 expected", "rolled back", "no rejection gives", "0 x Exp"], 1):
        assert f"{number}. " in message
        assert part in message


def test_a_second_run_must_change_nothing():
    model = "g (float[N] x) => (float[N] y) { a = Neg(x) b = Neg(a) c = Relu(b) d = Neg(c) e = Neg(d) y = Exp(e) }"
    message = failure(DoubleNegation, model)
    assert "a second run fires again at 1 site:\n     double-negation-once#0: Neg -> " in message
    assert check_pass(DoubleNegation, model, idempotent=False).report.verdict == "passed"


def test_a_change_without_a_site_is_a_problem_even_where_none_is_expected():
    assert "the pass changed the model but reports no site" in failure(Renames, PLAIN, sites=0)


def test_a_comparison_that_proves_nothing_is_a_problem():
    constant = "g (float[N, 4] x) => (float[N, 4] y) { z = Sub(x, x) i = Identity(z) y = Abs(i) }"
    message = failure("identity-elimination", constant)
    assert "the comparison proves nothing" in message
    assert "vacuous" in message
    check_pass("identity-elimination", constant, verify="structure")


def test_inputs_of_ones_own():
    model = "g (float[N, 4] x) => (float[N, 4] y) { i = Identity(x) y = Sqrt(i) }"
    assert "the comparison proves nothing" in failure(
        "identity-elimination", model, inputs={"x": np.full((2, 4), -1.0, np.float32)}
    )
    result = check_pass("identity-elimination", model, inputs={"x": np.arange(8, dtype=np.float32).reshape(2, 4)})
    assert result.report.parity.input_sets == ["inputs"]


def test_another_target():
    refuses(BiasGelu, PLAIN, "the target 'portable' has no kernel for com.microsoft.BiasGelu", target="portable")
    assert check_pass(BiasGelu, PLAIN, target="cuda").report.target == "cuda"


def test_a_proto_and_a_file_stay_as_they_are(tmp_path):
    proto = parse_model(f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> {PLAIN}')
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    bytes_before, digest = proto.SerializeToString(deterministic=True), hashlib.sha256(path.read_bytes()).hexdigest()
    check_pass(BiasGelu, proto)
    check_pass(BiasGelu, path)
    assert proto.SerializeToString(deterministic=True) == bytes_before
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


class OverwritesTheFile(ModelPass):
    """Appends to the file that the model was loaded from, or to its data file."""

    name = "overwrites-the-file"
    suffix: str = ""

    def transform(self, session):
        with open(f"{session.model.path}{self.suffix}", "ab") as file:
            file.write(b" ")
        return session.model


def test_whoever_writes_into_the_input_is_found_out(tmp_path):
    assert "the input was modified: the model is not" in failure(
        WritesIntoTheInput, load(parse_model(f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> {PLAIN}')), sites=0
    )
    weight = numpy_helper.from_array(np.ones((32, 32), np.float32), "w")
    values = [helper.make_tensor_value_info(name, 1, ["N", 32]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    path = tmp_path / "model.onnx"
    load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).save(path, external_data=True)
    (data,) = set(tmp_path.iterdir()) - {path}
    suffix = data.name.removeprefix(path.name)
    assert f"the input was modified: the file {path} is not" in failure(OverwritesTheFile, path, sites=0)
    assert f"the input was modified: the file {data} is not" in failure(OverwritesTheFile(suffix=suffix), path, sites=0)


def test_text_that_does_not_parse_is_one_clear_error():
    with pytest.raises(UsageError, match=r"the model's text does not parse: .*line: 1 column"):
        check_pass(BiasGelu, "g (float[N, x) => (y) {}")


def test_a_crash_of_the_pass_is_in_the_message():
    class Crashes(PatternPass):
        """Crashes."""

        name = "crashes"

        def pattern(self, op, x):
            return op.Gelu(x, domain="com.microsoft")

        def rewrite(self, op, x):
            return op.nothing / 0

    message = failure(Crashes, PLAIN)
    assert "crashes failed: " in message
    assert "it fires at 0 sites, 1 expected" in message
