"""The site gate looks a second time at a region that fails: at what its values are made of, and are read for."""

from onnx import parser

from rewright.model.load import load
from rewright.verify.inputs import make_input_sets
from rewright.verify.process import SessionWorker
from rewright.verify.sites.gate import SiteGate

HEAD = '<ir_version: 8, opset_import: ["": 17]> '


def check(before, after, exactness="reassociating"):
    old, new = (load(parser.parse_model(HEAD + text)) for text in (before, after))
    with SessionWorker() as worker:
        return SiteGate(old, make_input_sets(old), worker).check(old, new, (), exactness).evidence


MEANS = """g (float[N, 8] x, float[N, 1] s) => (float[N, 8] y, float[N, 8] z) {
    m = ReduceMean<axes = [1]>(x) a = Sub(x, m) n = ReduceMean<axes = [1]>(x) y = Sub(x, n) z = Div(a, s) }"""
ONE_MEAN = """g (float[N, 8] x, float[N, 1] s) => (float[N, 8] y, float[N, 8] z) {
    m = ReduceMean<axes = [1]>(x) y = Sub(x, m) z = Div(y, s) }"""


def test_a_value_that_is_kept_is_made_of_what_it_is_read_with():
    assert check(MEANS, ONE_MEAN).status == "passed"
    maximum = [text.replace("ReduceMean", "ReduceMax", 1) for text in (MEANS, ONE_MEAN)]
    assert check(*maximum).status == "failed"  # now the one that is kept is another one


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
