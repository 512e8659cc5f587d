"""rotary-embedding: one op for every spelling, one set of caches for a model, refusals where it would not be the same."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pass_harness import as_model, ops, parity, run, run_pass
from rotary_spelling import Rotary

from rewright.passes.fusion.rotary_embedding import RotaryEmbedding

TOLERANCE = 2e-6


def rotations(after):
    return [node for node in after.proto.graph.node if node.op_type == "RotaryEmbedding"]


def attributes(node):
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def assert_fused(spelling, expected=(), lengths=((1, 1), (2, 5), (3, 4)), target="cpu"):
    before = spelling.model()
    session, after = run_pass(RotaryEmbedding(), before, target)
    assert (len(session.sites), session.rejections) == (1, []), spelling
    (node,) = rotations(after)
    expected = dict(expected) | {"interleaved": int(spelling.pairing == "neighbours")}
    if spelling.rotated < spelling.size:
        expected |= {"rotary_embedding_dim": spelling.rotated, "num_heads": spelling.heads}
    if spelling.layout == "positions first":
        expected |= {"num_heads": spelling.heads}
    assert attributes(node) == expected
    assert not {"Neg", "Split", "Add"} & set(ops(after)), ops(after)
    for batch, length in lengths:
        feeds = spelling.feeds(batch, length if 5 not in spelling.dims else 5)
        parity(before, after, feeds, rtol=TOLERANCE, atol=TOLERANCE)
    again, same = run_pass(RotaryEmbedding(), after, target)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return node, after


def assert_refused(spelling, reason, target="cpu"):
    before = spelling.model() if isinstance(spelling, Rotary) else spelling
    session, after = run_pass(RotaryEmbedding(), before, target)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()
    assert [item.reason for item in session.rejections if reason not in item.reason] == []
    assert len(session.rejections) == 1


CUTS = [("half", "Slice"), ("half", "Split"), ("half", "Gather"), ("half", "Reshape")]
CUTS += [("neighbours", "Slice"), ("neighbours", "Gather"), ("neighbours", "Reshape")]


@pytest.mark.parametrize(("pairing", "cut"), CUTS)
@pytest.mark.parametrize("minus", ["Neg", "Sub", "factor", "signs"])
def test_pairs_and_their_signs_in_every_spelling(pairing, cut, minus):
    assert_fused(Rotary(pairing=pairing, cut=cut, minus=minus))


@pytest.mark.parametrize(("pairing", "cut"), CUTS)
def test_two_halves_computed_apart(pairing, cut):
    assert_fused(Rotary(pairing=pairing, cut=cut, form="split"))


@pytest.mark.parametrize("caches", ["computed", "per batch", "gathered", "constant"])
@pytest.mark.parametrize("pairing", ["half", "neighbours"])
@pytest.mark.parametrize("layout", ["heads first", "positions first"])
@pytest.mark.parametrize("rotated", [8, 4])
def test_caches_and_layouts(caches, pairing, layout, rotated):
    assert_fused(Rotary(caches=caches, pairing=pairing, layout=layout, rotated=rotated))


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20, 23])
@pytest.mark.parametrize("rotated", [6, 2])
def test_every_opset(opset, rotated):
    assert_fused(Rotary(opset=opset, size=6, rotated=rotated, caches="per batch"))


def test_caches_for_all_the_batch_are_read_from_position_0_on():
    """Positions of shape (1, S) would fail for a batch of 3."""
    node, after = assert_fused(Rotary())
    (positions,) = (tensor for tensor in after.proto.graph.initializer if tensor.name == node.input[1])
    assert (list(positions.dims), after.tensor(positions).tolist()) == ([1], [0])


def test_cosines_are_computed_for_one_half_and_scaled_there():
    _, after = assert_fused(Rotary(scaling=1.25))
    assert "Concat" not in ops(after)
    assert ops(after).count("Cos") == ops(after).count("Sin") == 1
    assert ops(after).count("Mul") == 3  # the angle, and the scaling of either


def test_a_table_is_cut_to_one_half():
    node, after = assert_fused(Rotary(caches="constant"))
    dims = {tensor.name: list(tensor.dims) for tensor in after.proto.graph.initializer}
    assert [dims[name] for name in node.input[2:]] == [[5, 4], [5, 4]]
    assert ops(after) == ["RotaryEmbedding", "Identity"]


def test_swapped_caches_are_taken_as_they_are():
    assert_fused(Rotary(change="swapped caches"))


@pytest.mark.parametrize("pairing", ["half", "neighbours"])
def test_half_precision(pairing):
    spelling = Rotary(pairing=pairing, elem_type=TensorProto.FLOAT16)
    before = spelling.model()
    _, after = run_pass(RotaryEmbedding(), before)
    assert len(rotations(after)) == 1
    parity(before, after, spelling.feeds(3, 5), rtol=4e-3, atol=4e-3)


class Layers:
    """Queries and keys of several layers, each with caches of one of the bases."""

    def __init__(self, bases, caches="computed"):
        self.bases, self.caches = bases, caches

    def model(self):
        base = [Rotary(caches=self.caches, heads=4) for _ in set(self.bases)]
        graph = Rotary(heads=4)
        graph.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4, "S", 8])]
        caches = []
        for number, spelling in enumerate(base):
            spelling.nodes, spelling.initializers = graph.nodes, graph.initializers
            spelling.inputs = graph.inputs if number == 0 else []
            original = spelling.real
            spelling.real = lambda values, scale=number + 1, real=original: real(np.asarray(values) / scale)
            caches.append(spelling.angles())
        x = "x"
        for index in self.bases:
            cos, sin = (graph.unsqueezed(item, 1) for item in caches[index])
            first, second = graph.pair_of(x, [0, 4, 0, 8])
            x = graph("Sigmoid", graph._rotate(x, first, second, cos, sin, [0, 4, 0, 8]))
        graph.result = lambda: x
        self.feeds, graph.dims = graph.feeds, ("B", 4, "S", 8)
        return graph.model()


@pytest.mark.parametrize("caches", ["computed", "per batch"])
def test_all_layers_share_caches_and_positions(caches):
    layers = Layers([0, 0, 0], caches)
    before = layers.model()
    session, after = run_pass(RotaryEmbedding(), before)
    assert len(session.sites) == 3
    assert len({tuple(node.input[1:]) for node in rotations(after)}) == 1
    assert ops(after).count("Cos") == 1
    assert ops(after).count("Range") == 1
    for batch in (1, 3):
        parity(before, after, layers.feeds(batch, 5), rtol=TOLERANCE, atol=TOLERANCE)


def test_two_bases_keep_caches_of_their_own():
    layers = Layers([0, 1, 0, 1])
    before = layers.model()
    _, after = run_pass(RotaryEmbedding(), before)
    first, second, third, fourth = (tuple(node.input[2:]) for node in rotations(after))
    assert first == third != second == fourth
    parity(before, after, layers.feeds(2, 5), rtol=TOLERANCE, atol=TOLERANCE)


def test_one_rotation_written_twice():
    spelling = Rotary()
    before = spelling.model()
    copies = [helper.make_node(n.op_type, n.input, [f"{o}b" for o in n.output]) for n in before.graph.node[-8:]]
    made = {output for node in before.graph.node[-8:] for output in node.output}
    for node in copies:
        node.input[:] = [f"{name}b" if name in made else name for name in node.input]
    for new, old in zip(copies, before.graph.node[-8:], strict=True):
        new.attribute.extend(old.attribute)
    before.graph.node.extend(copies)
    before.graph.output.append(helper.make_tensor_value_info("yb", TensorProto.FLOAT, [None] * 4))
    session, after = run_pass(RotaryEmbedding(), before)
    assert len(session.sites) == 2
    parity(before, after, spelling.feeds(2, 5), rtol=TOLERANCE, atol=TOLERANCE)


PAIRS = "elements are paired neither by halves nor as neighbours"
REFUSALS = {
    "signs": (Rotary(change="sign"), "another element of the pair is negated than the first one's partner"),
    "signs of split halves": (Rotary(change="sign", form="split"), "another element of the pair is negated"),
    "halves of the cosines differ": (Rotary(change="halves differ"), "not known to have the same cosine"),
    "halves of a table differ": (Rotary(change="halves differ", caches="constant"), "not known to have the same cosine"),
    "neighbours with caches for halves": (
        Rotary(pairing="neighbours", caches="constant", change="halves differ"),
        "not known to have the same cosine",
    ),
    "an inner product is an output": (Rotary(change="inner output"), "inside it is used elsewhere too"),
    "other length": (Rotary(change="other length"), "are not known to agree"),
    "float64": (Rotary(elem_type=TensorProto.DOUBLE), "no kernel for com.microsoft.RotaryEmbedding on float64"),
    "unknown size of heads": (Rotary(x_dims=("B", 3, "S", "H")), "the size of a head is not known"),
    "unknown number of heads": (
        Rotary(x_dims=("B", "S", "N", 8), layout="positions first"),
        "the number of heads is not known",
    ),
    "another batch": (Rotary(x_dims=("C", 3, "S", 8), caches="per batch"), "are not known to agree"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    spelling, reason = REFUSALS[case]
    assert_refused(dataclasses.replace(spelling), reason)


def test_what_exchanges_nothing_is_no_rotation():
    session, _ = run_pass(RotaryEmbedding(), Rotary(change="no exchange").model())
    assert not session.sites


def test_a_rotation_inside_that_is_used_elsewhere_is_fused_alone():
    """The heads' rest is joined outside then."""
    spelling = Rotary(rotated=4)
    before = spelling.model()
    total = next(node for node in before.graph.node if node.op_type == "Add")
    before.graph.output.append(helper.make_tensor_value_info(total.output[0], TensorProto.FLOAT, [None] * 4))
    session, after = run_pass(RotaryEmbedding(), before)
    assert (len(session.sites), session.rejections) == (1, [])
    assert attributes(rotations(after)[0]) == {"interleaved": 0}
    parity(before, after, spelling.feeds(2, 5), rtol=TOLERANCE, atol=TOLERANCE)


def test_halves_cut_from_packed_heads_need_no_value_of_their_own():
    """Queries, keys and values of one head side by side: the halves come straight out of the packed value."""
    spelling = Rotary(size=8)
    cos, sin = (spelling.constant(np.random.default_rng(0).random((1, 1, 5, 4)), np.float32) for _ in range(2))
    first, second = spelling.part("x", 8, 12), spelling.part("x", 12, 16)
    spelling.form, spelling.dims = "split", ("B", 3, 5, 24)
    turned = spelling._split("x", first, second, cos, sin, [0, 3, 5, 8])
    spelling.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 5, 24])]
    spelling.result = lambda: turned
    before = spelling.model()
    _, after = run_pass(RotaryEmbedding(), before)
    assert ops(after) == ["Slice", "RotaryEmbedding", "Identity"]
    parity(before, after, spelling.feeds(2, 5), rtol=TOLERANCE, atol=TOLERANCE)


def test_heads_that_are_sorted_into_halves_before():
    """DeepSeek: neighbours become halves by a Transpose, and only then the halves are rotated."""
    spelling = Rotary()
    spelling.dims = ("B", 3, "S", 8)
    spelling.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, spelling.dims)]
    cos, sin = spelling.cos_and_sin()
    pairs = spelling("Reshape", "x", spelling.constant([0, 3, -1, 4, 2]))
    x = spelling("Reshape", spelling("Transpose", pairs, perm=[0, 1, 2, 4, 3]), spelling.constant([0, 3, -1, 8]))
    turned = spelling._rotate(x, *spelling.pair_of(x, [0, 3, 0, 8]), cos, sin, [0, 3, 0, 8])
    spelling.result = lambda: turned
    before = spelling.model()
    session, after = run_pass(RotaryEmbedding(), before)
    assert len(session.sites) == 1
    assert rotations(after)[0].input[0] == x
    parity(before, after, spelling.feeds(2, 5), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("bound", [True, False])
def test_positions_along_the_first_axis(bound):
    """Conformer: (positions, batch, heads, elements) between two Transposes, which go; with tables cut to the length or not."""
    spelling = Rotary(caches="constant")
    spelling.dims = ("B", "S" if bound else 5, 3, 8)
    spelling.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, spelling.dims)]
    x = spelling("Transpose", "x", perm=[1, 0, 2, 3])
    caches = [spelling.unsqueezed(item, 1, 2) for item in spelling.table(rows=16 if bound else 5)]
    if bound:
        end = spelling("Slice", spelling("Shape", "x"), *(spelling.constant([item]) for item in (1, 2)))
        start, axis = spelling.constant([0]), spelling.constant([0])
        caches = [spelling("Slice", item, start, end, axis) for item in caches]
    turned = spelling._rotate(x, *spelling.pair_of(x, [0, 0, 3, 8]), *caches, [0, 0, 3, 8])
    result = spelling("Transpose", turned, perm=[1, 0, 2, 3])
    spelling.result = lambda: result
    before = spelling.model()
    session, after = run_pass(RotaryEmbedding(), before)
    assert len(session.sites) == 1
    assert "Transpose" not in ops(after)
    assert attributes(rotations(after)[0]) == {"interleaved": 0, "num_heads": 3}
    parity(before, after, spelling.feeds(2, 5), rtol=TOLERANCE, atol=TOLERANCE)


def test_inside_a_body_with_captured_heads_and_caches():
    outer, inner = Rotary(), Rotary()
    cos, sin = outer.cos_and_sin()
    inner.initializers = outer.initializers
    inner.part = lambda x, start, end, step=1: Rotary.part(inner, x, start, end, step)
    turned = inner._rotate("x", *inner.pair_of("x", [0, 3, 0, 8]), cos, sin, [0, 3, 0, 8])
    for node in inner.nodes:
        names = {name: f"in_{name}" for made in inner.nodes for name in made.output}
        node.input[:] = [names.get(name, name) for name in node.input]
    for node in inner.nodes:
        node.output[:] = [f"in_{name}" for name in node.output]
    value = helper.make_tensor_value_info(f"in_{turned}", TensorProto.FLOAT, [None] * 4)
    other = helper.make_tensor_value_info("other", TensorProto.FLOAT, [None] * 4)
    branches = {
        "then_branch": helper.make_graph(inner.nodes, "then", [], [value]),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["x"], ["other"])], "else", [], [other]),
    }
    outer.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, "S", 8])]
    outer.inputs.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
    chosen = outer("If", "condition", **branches)
    outer.result, outer.dims = (lambda: chosen), ("B", 3, "S", 8)
    before = outer.model()
    session, after = run_pass(RotaryEmbedding(), before)
    assert len(session.sites) == 1
    assert after.op_counts()["com.microsoft::RotaryEmbedding"] == 1
    for condition in (True, False):
        feeds = outer.feeds(2, 5) | {"condition": np.array(condition)}
        parity(before, after, feeds, rtol=TOLERANCE, atol=TOLERANCE)


def test_portable_takes_the_standard_op_from_opset_23_on():
    for caches, layout, rotated in product(("computed", "per batch"), ("heads first", "positions first"), (8, 4)):
        spelling = Rotary(opset=23, caches=caches, layout=layout, rotated=rotated)
        node, after = assert_fused(spelling, target="portable")
        assert node.domain == ""
        assert not [name for name in after.op_counts() if name.startswith("com.microsoft")]
    assert_refused(Rotary(opset=20), "RotaryEmbedding is standard from opset 23 on, and the model is at opset 20", "portable")


@pytest.mark.parametrize(("caches", "batch", "length"), [("computed", 0, 4), ("computed", 2, 0), ("per batch", 2, 0)])
def test_empty_batches_and_sequences(caches, batch, length):
    spelling = Rotary(caches=caches)
    _, after = run_pass(RotaryEmbedding(), spelling.model())
    assert run(after, spelling.feeds(batch, length))[0].shape == (batch, 3, length, 8)


@settings(max_examples=60, deadline=None)
@given(
    cut=st.sampled_from(CUTS),
    form=st.sampled_from(["rotate", "rotate", "split"]),
    minus=st.sampled_from(["Neg", "Sub", "factor", "signs"]),
    caches=st.sampled_from(["computed", "per batch", "gathered", "constant"]),
    layout=st.sampled_from(["heads first", "positions first"]),
    rotated=st.sampled_from([8, 8, 6, 4, 2]),
    swap=st.integers(0, 63),
    scaling=st.sampled_from([1.0, 0.5, 1.3]),
    heads=st.sampled_from([1, 3]),
    opset=st.sampled_from([13, 17, 18, 23]),
    change=st.sampled_from(["", "", "sign", "halves differ", "inner output"]),
)
def test_legal_spellings_are_fused_and_one_illegal_change_refuses(cut, form, minus, caches, layout, rotated, **rest):
    change = rest["change"]
    if form == "split" and change in ("halves differ", "inner output"):
        rest["change"] = change = ""
    spelling = Rotary(pairing=cut[0], cut=cut[1], form=form, minus=minus, caches=caches, layout=layout, rotated=rotated, **rest)
    before = spelling.model()
    session, after = run_pass(RotaryEmbedding(), before)
    assert (len(session.sites), len(session.rejections)) == ((1, 0) if not change else (0, 1)), spelling
    parity(before, after, spelling.feeds(2, 5, seed=rest["swap"]), rtol=TOLERANCE, atol=TOLERANCE)
