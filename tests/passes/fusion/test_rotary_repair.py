"""rotary-embedding on models that have the op already: what runs for a batch of 1 only is made to run for any."""

import numpy as np
import pytest
from pass_harness import ZOO, ops, parity, run, run_pass, zoo_feeds

from rewright.passes.cleanup.constant_folding import ConstantFolding
from rewright.passes.cleanup.identity_elimination import IdentityElimination
from rewright.passes.cleanup.shape_simplification import ShapeSimplification
from rewright.passes.fusion.rotary_embedding import RotaryEmbedding

RNG = np.random.default_rng(0)
HEADS, LENGTH, SIZE = 3, 4, 8
NAMED = {"half": "", "neighbours": ", interleaved = 1"}


def model(op, x="B, 3, S, 8", cache="1, S, 4", positions="", rest="y = Identity(t)", domain="", opset=23):
    ids = f", int64[{positions}] ids" if positions else ""
    return f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g (float[{x}] x, float[{cache}] cos, float[{cache}] sin{ids}) => (float[{x}] y) {{
        t = {domain}{op}
        {rest}
    }}"""


def feeds(x, cache, positions=None):
    made = {"x": RNG.standard_normal(x), "cos": RNG.standard_normal(cache), "sin": RNG.standard_normal(cache)}
    found = {name: value.astype(np.float32) for name, value in made.items()}
    return found if positions is None else found | {"ids": np.asarray(positions, np.int64)}


def assert_right_for_every_batch(before, after, feed, batch=3):
    """Each row of a batch is what the model gave for that row alone."""
    many = feed(batch)
    alone = [run(before, many | {"x": many["x"][row : row + 1]})[0] for row in range(batch)]
    np.testing.assert_allclose(run(after, many)[0], np.concatenate(alone), rtol=1e-6, atol=1e-6)


def repaired(before, target="cpu"):
    session, after = run_pass(RotaryEmbedding(), before, target)
    assert (len(session.sites), session.rejections) == (1, [])
    again, same = run_pass(RotaryEmbedding(), after, target)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return session.model, after


@pytest.mark.parametrize("pairing", NAMED)
@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("rotated", [8, 4])
def test_caches_with_a_batch_of_1(pairing, target, rotated):
    whole = model(f"RotaryEmbedding <num_heads = 3{NAMED[pairing]}> (x, cos, sin)")
    part = model(f"RotaryEmbedding <num_heads = 3, rotary_embedding_dim = 4{NAMED[pairing]}> (x, cos, sin)", cache="1, S, 2")
    before, after = repaired(whole if rotated == 8 else part, target)
    cache = (1, LENGTH, rotated // 2)
    parity(before, after, feeds((1, HEADS, LENGTH, SIZE), cache), rtol=1e-6, atol=1e-6)
    assert_right_for_every_batch(before, after, lambda batch: feeds((batch, HEADS, LENGTH, SIZE), cache))
    assert ("com.microsoft::RotaryEmbedding" in after.op_counts()) == (target == "cpu")


def test_heads_in_one_axis():
    before, after = repaired(model("RotaryEmbedding <num_heads = 3> (x, cos, sin)", x="B, S, 24"))
    assert_right_for_every_batch(before, after, lambda batch: feeds((batch, LENGTH, 24), (1, LENGTH, 4)))


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
@pytest.mark.parametrize("x", ["B, 3, S, 8", "B, S, 24"])
def test_positions_with_a_batch_of_1(domain, x):
    """Positions of shape (1, S), which no kernel broadcasts."""
    order = "x, ids, cos, sin" if domain else "x, cos, sin, ids"
    text = model(f"RotaryEmbedding <num_heads = 3> ({order})", x=x, cache="P, 4", positions="1, S", domain=domain)
    before, after = repaired(text)
    sizes = (HEADS, LENGTH, SIZE) if x.startswith("B, 3") else (LENGTH, 24)
    assert_right_for_every_batch(before, after, lambda batch: feeds((batch, *sizes), (9, 4), [[5, 3, 8, 0]]))


def test_the_rest_of_a_head_that_is_joined_outside_goes_into_the_op():
    rest = """start = Constant <value_ints = [4]> ()
        end = Constant <value_ints = [8]> ()
        last = Constant <value_ints = [3]> ()
        z = Constant <value_ints = [0]> ()
        left = Slice(x, z, start, last)
        right = Slice(x, start, end, last)
        turned = RotaryEmbedding(left, cos, sin)
        y = Concat<axis = -1>(turned, right)"""
    before, after = repaired(model("Identity(x)", cache="1, S, 2", rest=rest))
    assert ops(after).count("Concat") == ops(after).count("Slice") == 0
    assert_right_for_every_batch(before, after, lambda batch: feeds((batch, HEADS, LENGTH, SIZE), (1, LENGTH, 2)))


@pytest.mark.parametrize(
    "text",
    [
        model("RotaryEmbedding(x, cos, sin)", cache="B, S, 4"),
        model("RotaryEmbedding(x, cos, sin)", x="1, 3, S, 8"),
        model("RotaryEmbedding(x, cos, sin, ids)", cache="P, 4", positions="B, S"),
        model("RotaryEmbedding(x, ids, cos, sin)", cache="P, 4", positions="B, S", domain="com.microsoft."),
        model("RotaryEmbedding(x, ids, cos, sin)", cache="P, 4", positions="1", domain="com.microsoft."),
    ],
)
def test_what_runs_for_every_batch_stays(text):
    session, after = run_pass(RotaryEmbedding(), text)
    assert not session.sites
    assert not session.rejections
    assert after.fingerprint() == session.model.fingerprint()


EXPECTED = {"llama.dyn18.sdpa": 4, "llama.ts17.eager": 4, "modernbert.dyn20.eager": 4}


@pytest.mark.parametrize("path", sorted(ZOO.glob("*.onnx")), ids=lambda path: path.stem)
def test_real_exports(path):
    """Two layers, queries and keys; the caches are made once for each base."""
    clean = path
    for current in (ConstantFolding(), IdentityElimination(), ShapeSimplification(), ConstantFolding()):
        _, clean = run_pass(current, clean)
    session, after = run_pass(RotaryEmbedding(), clean)
    assert len(session.sites) == EXPECTED.get(path.stem, 0)
    assert not session.rejections
    if session.sites:
        caches = {tuple(node.input[1:]) for node in after.proto.graph.node if node.op_type == "RotaryEmbedding"}
        assert len(caches) == (2 if path.stem.startswith("modernbert") else 1)
        for batch, length in ((1, 5), (3, 9)):
            parity(session.model, after, zoo_feeds(session.model, batch, length), rtol=1e-4, atol=1e-5)
