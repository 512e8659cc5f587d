"""Random ops draw the same numbers in the original and in a candidate, so that both can be compared."""

import onnx
import pytest

from rewright.api import Chain
from rewright.verify import seeds
from rewright.verify.parity import NONDETERMINISTIC, OTHER_DRAWS, ParityGate
from rewright.verify.seeds import drawing_outputs, draws, pin_seeds, random_values

NOISY = """g (float[B, 4] x) => (float[B, 4] y, float[B, 4] z) {
    noise = RandomNormalLike(x) y = Add(x, noise) z = Relu(x)
}"""
IN_TRAINING = """g (float[B, 64] x, bool training) => (float[B, 64] y) <float ratio = {0.5}> {
    y = Dropout(x, ratio, training)
}"""
GENERATORS = {
    "RandomNormal": "noise = RandomNormal<shape = [4]>() y = Add(x, noise)",
    "RandomUniform": "noise = RandomUniform<shape = [4]>() y = Add(x, noise)",
    "RandomNormalLike": "noise = RandomNormalLike(x) y = Add(x, noise)",
    "RandomUniformLike": "noise = RandomUniformLike(x) y = Add(x, noise)",
    "Multinomial": "drawn = Multinomial<sample_size = 4>(x) noise = Cast<to = 1>(drawn) y = Add(x, noise)",
    "Bernoulli": "p = Sigmoid(x) noise = Bernoulli(p) y = Add(x, noise)",
}


@pytest.fixture
def judge(parse, worker):
    return lambda reference, candidate, **options: ParityGate(parse(reference), None, worker, **options).check(
        parse(candidate), "reassociating"
    )


@pytest.mark.parametrize("body", GENERATORS.values(), ids=GENERATORS)
def test_every_generator_is_pinned(judge, body):
    text = f"g (float[B, 4] x) => (float[B, 4] y) {{ {body} }}"
    evidence = judge(text, text)
    assert (evidence.status, evidence.outputs[0].max_abs, evidence.outputs[0].vacuous) == ("passed", 0.0, "")
    wrong = judge(text, text.replace("y = Add", "y = Sub"))
    assert wrong.status == "failed"


def test_what_is_computed_from_noise_is_compared(judge):
    assert judge(NOISY, NOISY).status == "passed"
    swapped = judge(NOISY, NOISY.replace("y = Add(x, noise)", "d = Mul(noise, noise) y = Add(x, d)"))
    assert swapped.status == "failed"
    assert "output 'y'" in swapped.reason


def test_noise_that_a_pass_froze_is_noticed(judge):
    frozen = """g (float[B, 4] x) => (float[B, 4] y, float[B, 4] z) <float[4] noise = {0.1, -0.3, 0.2, 0.7}> {
        y = Add(x, noise) z = Relu(x)
    }"""
    assert judge(NOISY, frozen).status == "failed"


def test_values_that_draw_under_another_name_are_not_comparable(judge):
    renamed = judge(NOISY, NOISY.replace("noise", "other"))
    assert renamed.status == "passed"
    assert {output.name: output.vacuous for output in renamed.outputs} == {"y": OTHER_DRAWS, "z": ""}
    assert judge(NOISY, NOISY.replace("noise", "other").replace("z = Relu(x)", "z = Neg(x)")).status == "failed"


def test_a_dropout_in_training_is_pinned(judge, parse):
    assert judge(IN_TRAINING, IN_TRAINING).status == "passed"
    dropped = "g (float[B, 64] x, bool training) => (float[B, 64] y) { y = Identity(x) }"
    assert judge(IN_TRAINING, dropped).status == "failed"


@pytest.mark.parametrize(
    ("mode", "is_random"),
    [("", False), (", ratio", False), (", ratio, off", False), (", ratio, on", True)],
)
def test_a_dropout_draws_only_in_training_mode(parse, mode, is_random):
    text = f"""g (float[B, 4] x) => (float[B, 4] y) <float ratio = {{0.5}}, bool on = {{1}}, bool off = {{0}}> {{
        y = Dropout(x{mode})
    }}"""
    assert draws(parse(text)) is is_random


def test_a_model_without_random_ops_is_not_copied(parse):
    model = parse("g (float[B, 4] x) => (float[B, 4] y) { y = Relu(x) }")
    assert pin_seeds(model) is model


def test_a_seed_of_the_models_own_is_kept_and_a_pass_may_not_change_it(judge, parse):
    seeded = "g (float[B, 4] x) => (float[B, 4] y) { noise = RandomNormalLike<seed = 3.0>(x) y = Add(x, noise) }"
    assert judge(seeded, seeded).status == "passed"
    assert judge(seeded, seeded.replace("3.0", "4.0")).status == "failed"
    original = parse(seeded)
    assert pin_seeds(original).proto.graph.node[0].attribute[0].f == 3.0


def test_the_original_is_not_touched_and_seeds_depend_on_names(parse):
    model = parse("g (float[4] x) => (float[4] y) { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Add(a, b) }")
    before = model.fingerprint()
    pinned = pin_seeds(model)
    assert model.fingerprint() == before
    first, second = (onnx.helper.get_attribute_value(node.attribute[0]) for node in pinned.proto.graph.node[:2])
    assert first != second
    assert random_values(pinned) == {("RandomNormalLike", "a"), ("RandomNormalLike", "b")}


def test_draws_in_functions_are_the_same_before_and_after_inlining(parse, worker):
    model = parse("""<ir_version: 10, opset_import: ["": 17, "local": 1]>
    g (float[B, 4] x) => (float[B, 4] y) { a = local.Noisy(x) y = local.Noisy(a) }
    <domain: "local", opset_import: ["": 17]> Noisy (v) => (w) { noise = RandomNormalLike(v) w = Add(v, noise) }""")
    result = Chain("inline-functions").run(model)
    assert result.report.passes[0].status == "applied"
    assert result.report.parity.outputs[0].vacuous == ""
    assert result.report.verdict == "passed"


def test_draws_that_take_a_session_apart_stay_in_step_on_every_set(judge):
    """The kernel counts on from its seed: in one session, a set that the original drops would put the others out of step."""
    text = """g (float[batch, seq] x) => (float[4, 1] y) <int64[2] fixed = {4, 1}> {
        noise = RandomNormalLike(x) noisy = Add(x, noise) y = Reshape(noisy, fixed)
    }"""
    evidence = judge(text, text)
    assert evidence.dropped
    assert (evidence.status, evidence.outputs[0].max_abs) == ("passed", 0.0)


SITES = {
    "a function": """g (float[B, 8] x) => (float[B, 8] y) { a = local.Noisy(x) y = local.Twice(a) }
        <domain: "local", opset_import: ["": 17]> Noisy (v) => (w) { noise = RandomNormalLike(v) w = Add(v, noise) }
        <domain: "local", opset_import: ["": 17, "local": 1]> Twice (v) => (w) { a = local.Noisy(v) w = local.Noisy(a) }""",
    "a dropout": """g (float[B, 8] x, bool training) => (float[B, 8] y) <float ratio = {0.5}> {
        i = Identity(x) d = Dropout(i, ratio, training) y = Erf(d)
    }""",
}


@pytest.mark.parametrize("text", SITES.values(), ids=SITES)
def test_sites_that_draw_are_left_to_the_comparison_of_whole_models(parse, text):
    model = parse('<ir_version: 10, opset_import: ["": 17, "local": 1]>' + text)
    report = Chain("inline-functions, identity-elimination").run(model, verify="sites").report
    assert report.verdict == "passed"
    changed = [record for record in report.passes if record.status == "applied"]
    assert changed
    assert "it draws random numbers" in changed[0].site_parity.regions[0].reason


def test_what_draws_is_found_in_functions_and_bodies(parse):
    model = parse(
        """<ir_version: 10, opset_import: ["": 17, "local": 1]>
        g (float[B, 8] x, bool c) => (float[B, 8] y) {
            a = local.Outer(x)
            b = Relu(a)
            d = If(c) <
                then_branch = t () => (float[B, 8] noisy) { noisy = RandomNormalLike(b) },
                else_branch = e () => (float[B, 8] quiet) { quiet = Identity(b) }
            >
            y = Add(b, d)
        }
        <domain: "local", opset_import: ["": 17, "local": 1]> Outer (v) => (w) { w = local.Inner(v) }
        <domain: "local", opset_import: ["": 17]> Inner (v) => (w) { noise = RandomNormalLike(v) w = Add(v, noise) }"""
    )
    assert drawing_outputs(model) == {"a", "d"}
    assert drawing_outputs(parse("g (float[4] x) => (float[4] y) { y = Relu(x) }")) == frozenset()


def test_what_is_not_known_to_draw_stays_not_comparable(judge, monkeypatch):
    monkeypatch.setattr(seeds, "_NAMES", frozenset())
    evidence = judge(NOISY, NOISY)
    assert evidence.status == "passed"
    assert {output.name: output.vacuous for output in evidence.outputs} == {"y": NONDETERMINISTIC, "z": ""}
    only = "g (float[B, 4] x) => (float[B, 4] y) { noise = RandomNormalLike(x) y = Add(x, noise) }"
    assert judge(only, only).status == "vacuous"
