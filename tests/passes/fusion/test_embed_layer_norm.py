"""embed-layer-norm: the sum of looked-up embeddings and its normalisation, by role, in any order and spelling."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_harness import as_model, ops, parity, run_pass

from rewright.passes.cleanup.dead_code import DeadCode
from rewright.passes.fusion.embed_layer_norm import EmbedLayerNorm
from rewright.passes.fusion.skip_layer_norm import SkipLayerNorm

H, WORDS, POSITIONS = 8, 20, 12
RNG = np.random.default_rng(0)


def tensor(name, *shape, kind="float"):
    values = ", ".join(f"{value:.3f}" for value in RNG.standard_normal(int(np.prod(shape))))
    return f"{kind}[{', '.join(map(str, shape))}] {name} = {{{values}}}"


def integers(name, values):
    array = np.asarray(values)
    return f"int64[{', '.join(map(str, array.shape))}] {name} = {{{', '.join(map(str, array.reshape(-1)))}}}"


CONSTANTS = [
    tensor("words", WORDS, H),
    tensor("places", POSITIONS, H),
    tensor("types", 2, H),
    tensor("more", 3, H),
    tensor("block", 1, POSITIONS, H),
    tensor("vector", 1, 1, H),
    tensor("gamma", H),
    tensor("beta", H),
    integers("zero", [0]),
    integers("one", [1]),
    integers("two", [2]),
    integers("minus", [-1]),
    integers("every", [range(POSITIONS)]),
    integers("backwards", [range(POSITIONS)[::-1]]),
    integers("single", [[0]]),
    integers("zeros", [[0] * POSITIONS]),
    "int64 z = {0}, int64 o = {1}, int64 t = {2}",
]
POSITION = """shape = Shape(ids)
        length = Gather(shape, one)
        number = Squeeze(length)
        """
BERT = POSITION + "place_ids = Slice(every, zero, length, one)\n p = Gather(places, place_ids)"
SEGMENT = "s = Gather(types, type_ids)"
NORM = "y = LayerNormalization<epsilon = 1e-12>(sum, gamma, beta)"


def model(
    position=BERT, segment=SEGMENT, total="a = Add(w, s)\n sum = Add(a, p)", norm=NORM, inputs="", outputs="", opset=17, **changed
):
    types = ", int64[B, S] type_ids" if "type_ids" in segment else ""
    ids = changed.get("ids", "int64[B, S] ids")
    word = changed.get("word", "w = Gather(words, ids)")
    return f"""<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g ({ids}{types}{inputs}) => (float[{changed.get("out", "B, S, 8")}] y{outputs})
    <{", ".join(CONSTANTS)}> {{
        {word}
        {position}
        {segment}
        {total}
        {norm}
    }}"""


def read(text):
    """The model without the constants and lengths that only other tests use."""
    return run_pass(DeadCode(), text)[1]


def feeds_of(proto, batch, length=5):
    """Inputs by their declared types: ids, and float tensors as the test declares them."""
    sizes, rng, feeds = {"B": batch, "S": length}, np.random.default_rng(batch), {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in kind.shape.dim]
        high = 2 if value.name == "type_ids" else POSITIONS if value.name in ("place_ids", "of_zeros") else WORDS
        feeds[value.name] = rng.integers(0, high, shape).astype(np.int32 if kind.elem_type == 6 else np.int64)
    return feeds


def assert_fused(text, expected=("Cast", "Cast", "EmbedLayerNormalization"), lengths=(5, 1), batches=(1, 3)):
    before = read(text)
    session, after = run_pass(EmbedLayerNorm(), before)
    assert sorted(ops(after)) == sorted(expected), session.rejections
    assert not session.rejections
    for batch, length in itertools.product(batches, lengths):
        parity(before, after, feeds_of(before.proto, batch, length), rtol=1e-5, atol=1e-5)
    again, same = run_pass(EmbedLayerNorm(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    assert not run_pass(DeadCode(), after)[0].sites
    return next(node for node in after.proto.graph.node if node.op_type == "EmbedLayerNormalization"), after


def assert_refused(text, reason, target="cpu"):
    before = read(text)
    session, after = run_pass(EmbedLayerNorm(), before, target)
    assert not session.sites
    assert after.fingerprint() == before.fingerprint()
    assert [reason in item.reason for item in session.rejections] == [True], session.rejections


def given_inputs(node):
    names = ["input_ids", "segment_ids", "word", "position", "segment", "gamma", "beta", "mask", "position_ids"]
    return {name: value for name, value in zip(names, node.input, strict=False) if value}


ORDERS = [
    f"a = Add({x}, {y})\n sum = Add({left}, {right})"
    for x, y, z in itertools.permutations("wps")
    for left, right in (("a", z), (z, "a"))
]


@pytest.mark.parametrize("total", ORDERS)
def test_the_summands_may_stand_in_any_order(total):
    node, _ = assert_fused(model(total=total))
    found = given_inputs(node)
    assert set(found) == {"input_ids", "segment_ids", "word", "position", "segment", "gamma", "beta"}
    assert [found[name] for name in ("word", "position", "segment", "gamma", "beta")] == [
        "words",
        "places",
        "types",
        "gamma",
        "beta",
    ]
    assert list(node.output) == ["y", ""]


@pytest.mark.parametrize("total", ["a = Add(w, w)\n sum = Add(a, p)", "a = Add(w, p)\n sum = Add(w, a)"])
def test_a_lookup_that_is_added_twice_counts_twice(total):
    node, _ = assert_fused(model(segment="", total=total), ["Cast", "EmbedLayerNormalization"])
    assert (given_inputs(node)["segment"], given_inputs(node)["segment_ids"]) == ("words", node.input[0])


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
def test_every_opset_that_has_layer_normalization(opset):
    assert_fused(model(opset=opset))


def test_without_epsilon_the_specification_of_the_normalisation_holds():
    def epsilon(text):
        return pytest.approx(assert_fused(text)[0].attribute[0].f)

    assert epsilon(model(norm="y = LayerNormalization(sum, gamma, beta)")) == 1e-5
    assert epsilon(model(norm="y = LayerNormalization<epsilon = 0.1, axis = 2>(sum, gamma, beta)")) == 0.1
    assert epsilon(model(total="a = Add(w, s)", norm="y = com.microsoft.SkipLayerNormalization(a, p, gamma, beta)")) == 1e-12


def test_a_missing_beta_becomes_zeros():
    node, after = assert_fused(model(norm="y = LayerNormalization(sum, gamma)"))
    beta = next(tensor for tensor in after.proto.graph.initializer if tensor.name == node.input[6])
    assert not after.tensor(beta).any()


RANGE = POSITION + "r = Range(z, number, o)\n"
EXPLICIT = ["Cast", "Cast", "Cast", "EmbedLayerNormalization"]


@pytest.mark.parametrize(
    "position",
    [
        RANGE + "p = Gather(places, r)",
        RANGE + "u = Unsqueeze(r, zero)\n p = Gather(places, u)",
        RANGE + "u = Unsqueeze(r, zero)\n e = Expand(u, shape)\n p = Gather(places, e)",
        RANGE + "e = Expand(r, shape)\n c = Cast<to = 6>(e)\n p = Gather<axis = -2>(places, c)",
        RANGE + "g = Gather(places, r)\n p = Unsqueeze(g, zero)",
        RANGE + "g = Gather(places, r)\n h = Unsqueeze(g, zero)\n full = Shape(w)\n p = Expand(h, full)",
        RANGE + "q = Add(r, t)\n v = Sub(q, t)\n p = Gather(places, v)",
        POSITION + "p = Slice(places, zero, length, zero)",
        POSITION + "q = Slice(places, zero, length, zero)\n p = Unsqueeze(q, zero)",
    ],
)
def test_positions_that_are_proven_to_count_from_zero_are_left_out(position):
    node, _ = assert_fused(model(position))
    assert "position_ids" not in given_inputs(node)
    assert given_inputs(node)["position"] == "places"


@pytest.mark.parametrize(
    "position",
    [
        RANGE + "u = Unsqueeze(r, zero)\n q = Add(u, t)\n p = Gather(places, q)",
        RANGE + "q = Add(t, r)\n e = Expand(q, shape)\n p = Gather(places, e)",
        POSITION + "end = Add(length, two)\n q = Slice(every, two, end, one)\n p = Gather(places, q)",
        POSITION + "end = Add(length, two)\n p = Slice(places, two, end, zero)",
    ],
)
def test_a_constant_first_position_becomes_the_first_row_of_the_table(position):
    """As OPT and BART have it, whose tables begin with two rows for padding."""
    node, after = assert_fused(model(position))
    assert "position_ids" not in given_inputs(node)
    table = next(tensor for tensor in after.proto.graph.initializer if tensor.name == given_inputs(node)["position"])
    assert list(table.dims) == [POSITIONS - 2, H]


def test_a_table_of_three_dimensions_becomes_one_of_two():
    node, _ = assert_fused(model(POSITION + "p = Slice(block, zero, length, one)"))
    assert given_inputs(node)["position"] not in ("block", "places")


@pytest.mark.parametrize("rows", ["block", "places"])
def test_rows_that_the_export_has_looked_up_already(rows):
    static = {"ids": "int64[B, 12] ids", "out": "B, 12, 8", "segment": "s = Gather(types, type_ids)"}
    text = model("", total=f"a = Add({rows}, s)\n sum = Add(w, a)", **static).replace("[B, S] type_ids", "[B, 12] type_ids")
    node, _ = assert_fused(text)
    assert (given_inputs(node)["position"] == "places") == (rows == "places")


@pytest.mark.parametrize(("shape", "more"), [("B, S", []), ("1, S", []), ("S", ["Unsqueeze"])])
def test_positions_that_are_an_input_become_position_ids(shape, more):
    text = model("p = Gather(places, place_ids)", inputs=f", int64[{shape}] place_ids")
    node, _ = assert_fused(text, [*EXPLICIT, *more])
    assert "position_ids" in given_inputs(node)


def test_the_positions_of_roberta_become_position_ids():
    position = """n = Equal(ids, o)
        m = Not(n)
        i = Cast<to = 6>(m)
        c = CumSum(i, o)
        q = Mul(c, i)
        l = Cast<to = 7>(q)
        r = Add(l, o)
        p = Gather(places, r)"""
    node, _ = assert_fused(model(position), ["Equal", "Not", "Cast", "CumSum", "Mul", "Cast", "Add", *EXPLICIT])
    assert "position_ids" in given_inputs(node)


def test_other_constant_positions_stay():
    position = POSITION + "q = Slice(backwards, zero, length, one)\n p = Gather(places, q)"
    node, _ = assert_fused(model(position), [*EXPLICIT, "Shape", "Gather", "Slice"])
    assert "position_ids" in given_inputs(node)


@pytest.mark.parametrize("swap", [False, True])
def test_without_segments(swap):
    """DistilBERT, at batch 3 too."""
    node, _ = assert_fused(
        model(segment="", total=f"sum = Add({'p, w' if swap else 'w, p'})"), ["Cast", "EmbedLayerNormalization"]
    )
    assert set(given_inputs(node)) == {"input_ids", "word", "position", "gamma", "beta"}


@pytest.mark.parametrize(
    "segment",
    [
        "e = ConstantOfShape<value = int64[1] {1}>(shape)\n s = Gather(types, e)",
        "q = Slice(zeros, zero, length, one)\n e = Expand(q, shape)\n s = Gather(types, e)",
        "q = Slice(zeros, zero, length, one)\n s = Gather(types, q)",
        "s = Gather(types, single)",
        "s = Identity(vector)",
    ],
)
def test_token_types_that_the_export_left_out_go_into_the_position_table(segment):
    node, after = assert_fused(model(segment=segment), ["Cast", "EmbedLayerNormalization"], lengths=(5,))
    assert set(given_inputs(node)) == {"input_ids", "word", "position", "gamma", "beta"}
    held = {tensor.name for tensor in after.proto.graph.initializer}
    assert not held & {"places", "types", "vector"}


def test_token_types_that_are_gathered_from_zeros():
    """What transformers does from 4.57 on."""
    text = model(segment="q = GatherElements<axis = 1>(zeros, of_zeros)\n s = Gather(types, q)", inputs=", int64[1, S] of_zeros")
    node, _ = assert_fused(text, ["Cast", "EmbedLayerNormalization"])
    assert "segment" not in given_inputs(node)


def test_ids_of_32_bits_need_no_cast():
    assert_fused(model(ids="int32[B, S] ids"), ["Cast", "EmbedLayerNormalization"])
    widened = model(ids="int32[B, S] narrow", word="ids = Cast<to = 7>(narrow)\n w = Gather(words, ids)")
    node, _ = assert_fused(widened, ["Cast", "EmbedLayerNormalization"])
    assert node.input[0] == "narrow"


def test_ids_of_two_sites_are_cast_once():
    second = """a2 = Gather(more, type_ids)
        w2 = Gather(words, ids)
        b2 = Add(a2, p)
        sum2 = Add(w2, b2)
        y2 = LayerNormalization(sum2, gamma, beta)"""
    text = model(norm=f"{NORM}\n{second}", outputs=", float[B, S, 8] y2")
    assert_fused(text, ["Cast", "Cast", "EmbedLayerNormalization", "EmbedLayerNormalization"])


def test_a_sum_that_is_used_elsewhere_becomes_the_third_output():
    node, _ = assert_fused(model(outputs=", float[B, S, 8] sum"))
    assert list(node.output) == ["y", "", "sum"]
    used_before = model(norm=f"v = Relu(sum)\n {NORM}", outputs=", float[B, S, 8] v")
    assert list(assert_fused(used_before, ["Cast", "Cast", "EmbedLayerNormalization", "Relu"])[0].output) == ["y", "", "sum"]
    norm = "y, m, i, sum = com.microsoft.SkipLayerNormalization(a, p, gamma, beta)\n v = Relu(sum)"
    text = model(total="a = Add(w, s)", norm=norm.replace(", m, i,", ", , ,"), outputs=", float[B, S, 8] v")
    assert list(assert_fused(text, ["Cast", "Cast", "EmbedLayerNormalization", "Relu"])[0].output) == ["y", "", "sum"]


def test_after_skip_layer_norm():
    text = model("p = Gather(places, place_ids)", "", "sum = Add(w, p)", inputs=", int64[B, S] place_ids")
    _, skipped = run_pass(SkipLayerNorm(), text)
    assert "SkipLayerNormalization" in ops(skipped)
    session, after = run_pass(EmbedLayerNorm(), skipped)
    assert len(session.sites) == 1
    assert ops(after) == ["Cast", "Cast", "EmbedLayerNormalization"]


def test_a_lookup_whose_shape_alone_is_asked_for_goes():
    position = """full = Shape(w)
        number = Gather(full, o)
        r = Range(z, number, o)
        p = Gather(places, r)"""
    norm = f"{NORM}\n v = Cast<to = 1>(number)"
    text = model(position, norm=norm, outputs=", float v")
    assert_fused(text, ["Cast", "Cast", "EmbedLayerNormalization", "Shape", "Gather", "Cast"])


def test_the_lookup_of_flattened_ids():
    """TensorFlow's spelling."""
    word = """flat = Reshape(ids, minus)
        g = Gather(words, flat)
        batch_and_length = Shape(ids)
        whole = Concat<axis = 0>(batch_and_length, size)
        w = Reshape(g, whole)"""
    text = model(word=word).replace("int64 z =", "int64[1] size = {8}, int64 z =")
    assert_fused(text)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"position": BERT.replace("Shape(ids)", "Shape(other)"), "inputs": ", int64[B, T] other"}, "not proven to fit"),
        ({"position": BERT.replace("every", "single")}, "'p' (1, min(S, 1), 8) is not proven to fit"),
        ({"position": BERT.replace("places", "p_in"), "inputs": ", float[12, 8] p_in"}, "the table 'p_in' is not a constant"),
        ({"position": "p = Gather(places, place_ids)", "inputs": ", int64[B, 1] place_ids"}, "not proven to have the shape"),
        (
            {"position": "p = Gather(places, place_ids)", "inputs": ", int64[B, T] place_ids"},
            "'p' (B, T, 8) is not proven to fit the shape (B, S, 8)",
        ),
        (
            {"position": "", "total": "sum = Add(w, s)", "segment": "s = Gather(types, single)"},
            "no embedding of positions is added",
        ),
        ({"word": "g = Gather(words, ids)\n w = Mul(g, gamma)"}, "is the result of Mul '', not an embedding"),
        ({"word": "w = Neg(ids_f)", "inputs": ", float[B, S, 8] ids_f"}, "is the result of Neg"),
        ({"norm": "y = LayerNormalization(sum, vector, beta)"}, "gamma has the shape (1, 1, 8), not (8,)"),
        ({"norm": "y, m = LayerNormalization(sum, gamma, beta)", "outputs": ", float[B, S, 1] m"}, "the mean or the deviation"),
        ({"norm": "y = LayerNormalization<axis = 1>(sum, block, block)"}, "the normalised axes begin at 1"),
        ({"norm": "v = Neg(gamma)\n y = LayerNormalization(sum, v, beta)"}, "gamma is computed"),
        (
            {
                "segment": "s = Gather(types, type_ids)\n q = Gather(more, type_ids)",
                "total": "a = Add(w, s)\n b = Add(a, q)\n sum = Add(b, p)",
            },
            "4 embeddings are added, and the op adds three",
        ),
        ({"segment": "s = Gather(types, more_ids)", "inputs": ", int64[1, S] more_ids"}, "the same for the whole batch"),
        ({"segment": "s = Gather(types, flat_ids)", "inputs": ", int64[B, S, 1] flat_ids"}, "'s' (B, S, 1, 8) is not proven"),
    ],
)
def test_what_is_not_proven_is_left(changes, reason):
    assert_refused(model(**changes), reason)


def test_ids_of_other_lengths_may_be_one_position_for_all():
    """The reason why the length has to be proven: with T = 1 every word gets position 0, and the op would count."""
    text = model(position=BERT.replace("Shape(ids)", "Shape(other)"), inputs=", int64[B, T] other")
    before = as_model(text)
    feeds = {"ids": np.zeros((1, 3), np.int64), "type_ids": np.zeros((1, 3), np.int64), "other": np.zeros((1, 1), np.int64)}
    parity(before, run_pass(EmbedLayerNorm(), before)[1], feeds)


def test_an_inner_sum_that_is_used_elsewhere_is_left():
    text = model(outputs=", float[B, S, 8] a")
    assert_refused(text, "the summand 'a' is the result of Add")


def test_targets_and_dtypes_without_kernel():
    assert_refused(model(), "the target 'portable' has no kernel", "portable")
    half = re.sub(r"-?\d+\.\d{3}", "15360", model().replace("float[", "float16["))  # the bits of 1
    assert_refused(half, "the target 'cpu' has no kernel for com.microsoft.EmbedLayerNormalization on float16")
    session, after = run_pass(EmbedLayerNorm(), half, "cuda")
    assert len(session.sites) == 1
    assert "EmbedLayerNormalization" in ops(after)


def test_a_body_that_reads_ids_and_lookups_from_outside():
    branch = f"""r = Range(z, number, o)
        p = Gather(places, r)
        sum = Add(w, p)
        {NORM.replace("y =", "inner =")}"""
    text = model(
        position=f"""{POSITION}
        c = Greater(number, o)
        y = If(c) <
            then_branch = t () => (float[B, S, 8] inner) {{ {branch} }},
            else_branch = e () => (float[B, S, 8] other) {{ other = Identity(w) }}>""",
        segment="",
        total="",
        norm="",
    )
    before = read(text)
    session, after = run_pass(EmbedLayerNorm(), before)
    assert len(session.sites) == 1, session.rejections
    assert "EmbedLayerNormalization" not in ops(after)
    assert after.op_counts()["com.microsoft::EmbedLayerNormalization"] == 1
    for batch, length in ((1, 1), (3, 5)):
        parity(before, after, feeds_of(before.proto, batch, length), rtol=1e-5, atol=1e-5)


def test_layer_norms_without_lookups_are_no_near_misses():
    text = model(position="", segment="", total="sum = Add(x, x)", word="", inputs=", float[B, S, 8] x")
    session, _ = run_pass(EmbedLayerNorm(), text)
    assert not session.rejections


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    total=st.sampled_from(ORDERS),
    position=st.sampled_from(["r", "u", "e", "q"]),
    offset=st.integers(0, 4),
    segment=st.sampled_from([SEGMENT, "s = Gather(types, single)", "s = Identity(vector)"]),
    swap=st.booleans(),
)
def test_any_legal_spelling_is_fused(total, position, offset, segment, swap):
    text = f"""k = Constant<value_int = {offset}>()
        r = Add({"k, r0" if swap else "r0, k"})
        u = Unsqueeze(r, zero)
        e = Expand(u, shape)
        q = Reshape(e, shape)
        p = Gather(places, {position})"""
    text = model(RANGE.replace("r = Range", "r0 = Range") + text, segment, total)
    session, after = run_pass(EmbedLayerNorm(), text)
    assert len(session.sites) == 1, session.rejections
    before = as_model(text)
    parity(before, after, feeds_of(before.proto, 2, 5), rtol=1e-5, atol=1e-5)
