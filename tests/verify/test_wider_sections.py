"""The site gate looks a second time at a region that fails: at what its values are made of, and are read for."""

from onnx import parser

from rewright.model.load import load
from rewright.model.regions import ClaimedSite
from rewright.verify.inputs import make_input_sets
from rewright.verify.process import SessionWorker
from rewright.verify.sites.gate import SiteGate

HEAD = '<ir_version: 8, opset_import: ["": 17]> '


def check(before, after, exactness="reassociating"):
    """All that differs is one site, as a pass that takes a whole model claims."""
    old, new = (load(parser.parse_model(HEAD + text)) for text in (before, after))
    names = tuple(name for model in (old, new) for node in model.proto.graph.node for name in node.output)
    with SessionWorker() as worker:
        gate = SiteGate(old, make_input_sets(old), worker)
        return gate.check(old, new, [ClaimedSite("all", names)], exactness).evidence


MEANS = """g (float[N, 8] x, float[N, 1] s) => (float[N, 8] y, float[N, 8] z) {
    m = ReduceMean<axes = [1]>(x) a = Sub(x, m) n = ReduceMean<axes = [1]>(x) y = Sub(x, n) z = Div(a, s) }"""
ONE_MEAN = """g (float[N, 8] x, float[N, 1] s) => (float[N, 8] y, float[N, 8] z) {
    m = ReduceMean<axes = [1]>(x) y = Sub(x, m) z = Div(y, s) }"""


def test_a_value_that_is_kept_is_made_of_what_it_is_read_with():
    assert check(MEANS, ONE_MEAN).status == "passed"
    maximum = [text.replace("ReduceMean", "ReduceMax", 1) for text in (MEANS, ONE_MEAN)]
    assert check(*maximum).status == "failed"  # now the one that is kept is another one


PERMUTED = """g (float[N, 4, 8] x, float[4, 8] w) => (float[N, 4, 2] y, float[8, N, 4] z)
    <int64[1] a = {0}, int64[1] b = {2}, int64[1] one = {1}> {
    t = Transpose<perm = [2, 0, 1]>(x) s = Slice(t, a, b, a) y = Transpose<perm = [1, 2, 0]>(s)
    v = Transpose<perm = [1, 0]>(w) u = Unsqueeze(v, one) z = Mul(t, u) }"""
OTHERWISE = PERMUTED.replace("s = Slice(t, a, b, a)", "c = Identity(a) s = Slice(t, c, b, a)").replace(
    "v = Transpose<perm = [1, 0]>(w) u = Unsqueeze(v, one) z = Mul(t, u)", "m = Mul(x, w) z = Transpose<perm = [2, 0, 1]>(m)"
)


def test_a_value_that_one_side_reads_makes_another_that_both_read():
    assert check(PERMUTED, OTHERWISE).status == "passed"
    assert check(PERMUTED, OTHERWISE.replace("Mul(x, w)", "Sub(x, w)")).status == "failed"


SHAPE = """g (float[N, 8] x) => (float[N, 2, 4] y) <int64[2] tail = {2, 4}, int64[1] first = {0}> {
    s = Shape(x) n = Gather(s, first) shape = Concat<axis = 0>(n, tail) y = Reshape(x, shape) }"""
SPELLED = "g (float[N, 8] x) => (float[N, 2, 4] y) { shape = Constant<value = int64[3] {%s}>() y = Reshape(x, shape) }"


def test_a_shape_may_be_spelled_otherwise_if_its_readers_make_the_same_of_it():
    assert check(SHAPE, SPELLED % "-1, 2, 4", "exact").status == "passed"
    assert check(SHAPE, SPELLED % "0, 2, 4", "exact").status == "passed"  # 0 stands for the size of x
    assert check(SHAPE, SPELLED % "-1, 4, 2", "exact").status == "failed"


def test_a_shape_that_the_model_gives_must_be_the_same():
    outputs = "float[N, 2, 4] y, int64[3] shape)"
    before, after = (text.replace("float[N, 2, 4] y)", outputs) for text in (SHAPE, SPELLED % "-1, 2, 4"))
    assert check(before, after, "exact").status == "failed"


WEIGHTS = (
    "<float[8, 8] w = {"
    + ", ".join(str((7 * place) % 11 / 10 - 0.5) for place in range(64))
    + "}, float[8] c = {1, 2, 3, 4, 5, 6, 7, 8}>"
)
PRODUCT = f"""g (float[N, 8] x) => (float[N, 8] y) {WEIGHTS} {{
    p = MatMul(x, w) q = Add(p, c) s = Add(q, x) m = ReduceMean<axes = [1]>(s) d = Sub(s, m) v = Mul(d, d)
    e = ReduceMean<axes = [1]>(v) b = Constant<value_float = 1e-12>() f = Add(e, b) r = Sqrt(f) y = Div(d, r) }}"""


def test_a_product_with_weights_may_be_any_number_beside_what_it_is_made_of():
    """Else the sum would keep the variance of the vector that is added, and hide the epsilon."""
    assert check(PRODUCT, PRODUCT.replace("f = Add(e, b)", "f = Add(b, e)")).status == "passed"
    assert check(PRODUCT, PRODUCT.replace("1e-12", "1e-11")).status == "failed"


TWICE = f"""g (float[N, 8] x) => (float[N, 8] y, float[N, 8] z) {WEIGHTS} {{
    p = MatMul(x, w) q = MatMul(x, w) a = Sub(x, p) y = Sub(a, q) z = Add(p, c) }}"""
ONCE = f"""g (float[N, 8] x) => (float[N, 8] y, float[N, 8] z) {WEIGHTS} {{
    p = MatMul(x, w) a = Sub(x, p) y = Sub(a, p) z = Add(p, c) }}"""


def test_a_product_that_is_computed_once_instead_of_twice_is_the_same():
    assert check(TWICE, ONCE).status == "passed"
    assert check(TWICE, ONCE.replace("y = Sub(a, p)", "y = Sub(a, x)")).status == "failed"


SCORES = "g (float16[N, 4, 8] q, float16[N, 8, 4] k) => (float16[N, 4, 4] y) { s = MatMul(q, k) %s }"


def test_products_of_half_precision_stay_finite():
    before = SCORES % "y = Softmax<axis = -1>(s)"
    after = SCORES % "m = ReduceMax<axes = [2]>(s) d = Sub(s, m) e = Exp(d) t = ReduceSum<keepdims = 1>(e, last) y = Div(e, t)"
    assert check(before, after.replace("{ s", "<int64[1] last = {2}> { s")).status == "passed"


UNROUNDED = """g (float16[N, 16] h) => (float[N, 16] y) {
    g = Cast<to = 1>(h) f = Mul(g, g) m = ReduceMean<axes = [1]>(f) y = Sub(f, m) }"""


def test_rounding_to_half_precision_inside_is_judged_as_that():
    rounded = UNROUNDED.replace("g = Cast<to = 1>(h) f = Mul(g, g)", "s = Mul(h, h) f = Cast<to = 1>(s)")
    assert check(UNROUNDED, rounded).status == "passed"
    assert check(UNROUNDED, rounded.replace("s = Mul(h, h)", "t = Add(h, h) s = Mul(h, t)")).status == "failed"
