"""The cleanups that ONNX Runtime has too: the same graphs through each backend."""

from deferral_table import Row, Table, graph, table_tests

NUMBERS = (
    "float[8] u = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}, float[8] v = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}, "
    "float one = {1.0}, float[1, 1, 8] wide = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}, float zero = {0.0}, "
    "int64[1] first = {0}, int64[1] second = {1}, int64[1] third = {2}, int64[1] end = {9223372036854775807}, "
    "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64[1] four = {4}, int64[1] two = {2}, int64[1] eight = {8}, "
    "int64[1] rest = {-1}, int64[3] ones = {1, 1, 1}"
)
SQUARE = ", ".join(str(round(((3 * n) % 7 - 3) / 4, 2)) for n in range(64))
WEIGHT = f"{NUMBERS}, float[8, 8] w = {{{SQUARE}}}"
TWO = "float[N, S, 8] y, float[N, S, 8] z"
CUBES = {"inputs": "float[4, 4, 4] x", "outputs": "float[4, 4, 4] y"}


def with_numbers(body, **given):
    return graph(body, WEIGHT, **given)


CONSTANT_FOLDING = Table(
    "constant-folding",
    {
        "sum-of-constants": Row(with_numbers("c = Add(u, v) y = Mul(x, c)"), ort=True),
        "constant-node": Row(with_numbers("c = Constant<value = float[1] {2.5}>() d = Mul(c, u) y = Mul(x, d)"), ort=True),
        "transposed-weight": Row(with_numbers("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)"), ort=True),
        "shared-transposed-weight": Row(
            with_numbers("t = Transpose<perm = [1, 0]>(w) k = MatMul(x, t) r = Transpose<perm = [1, 0]>(w) y = MatMul(k, r)"),
            ort=True,
        ),
        "transposed-in-gemm": Row(
            with_numbers(
                "t = Transpose<perm = [1, 0]>(w) y = Gemm<transB = 1>(x, t, u)", inputs="float[N, 8] x", outputs="float[N, 8] y"
            ),
            ort=True,
        ),
        "shape-of-an-input": Row(
            with_numbers("h = Shape(x) k = Cast<to = 1>(h) s = ReduceSum<keepdims = 0>(k) y = Mul(x, s)"), None
        ),
        "in-a-branch": Row(
            with_numbers(
                "y = If(flag) <then_branch = t () => (float[N, S, 8] p) { c = Add(u, v) p = Mul(x, c) },"
                "else_branch = f () => (float[N, S, 8] q) { q = Neg(x) }>",
                inputs="float[N, S, 8] x, bool flag",
            ),
        ),
        "random": Row(with_numbers("c = RandomUniform<shape = [8], seed = 1.0>() d = Mul(c, zero) y = Add(x, d)"), None),
        "nothing-to-fold": Row(with_numbers("y = Add(x, u)"), False),
    },
    explains=False,
)

IDENTITY = Table(
    "identity-elimination",
    {
        "identity": Row(with_numbers("i = Identity(x) y = Relu(i)"), ort=True),
        "at-the-output": Row(with_numbers("r = Relu(x) y = Identity(r)"), ort=True),
        "times-1": Row(with_numbers("r = Relu(x) m = Mul(r, one) y = Neg(m)"), ort=True),
        "plus-0": Row(with_numbers("r = Relu(x) m = Add(r, zero) y = Neg(m)"), None),
        "cast-to-what-it-is": Row(with_numbers("c = Cast<to = 1>(x) y = Neg(c)"), ort=True),
        "cast-there-and-back": Row(with_numbers("c = Cast<to = 11>(x) d = Cast<to = 1>(c) y = Neg(d)"), None),
        "cast-to-integers-and-back": Row(with_numbers("c = Cast<to = 7>(x) d = Cast<to = 1>(c) y = Neg(d)"), False, ort=False),
        "whole-slice": Row(with_numbers("c = Slice(x, first, end, second) y = Neg(c)"), None),
        "part-of-a-slice": Row(
            with_numbers("c = Slice(x, second, end, third) y = Neg(c)", outputs="float[N, S, 7] y"), False, ort=False
        ),
        "expanding-by-1": Row(with_numbers("c = Expand(x, ones) y = Neg(c)"), None),
        "expanding": Row(
            with_numbers("c = Expand(x, eight) y = Neg(c)", inputs="float[N, S, 1] x", outputs="float[N, S, 8] y"),
            False,
            ort=False,
        ),
        "times-1-of-more-axes": Row(
            with_numbers("r = Relu(x) m = Mul(r, wide) y = Neg(m)", inputs="float[8] x", outputs="float[1, 1, 8] y"),
            False,
            ort=False,
        ),
        "transposed-twice": Row(
            with_numbers("a = Transpose<perm = [2, 1, 0]>(x) b = Transpose<perm = [2, 1, 0]>(a) y = Neg(b)"), None
        ),
        "turned-twice": Row(
            with_numbers("a = Transpose<perm = [1, 2, 0]>(x) b = Transpose<perm = [1, 2, 0]>(a) y = Neg(b)", **CUBES), None
        ),
        "dropout": Row(with_numbers("r = Relu(x) d = Dropout(r) y = Neg(d)"), ort=True),
        "identity-of-an-input-at-the-output": Row(with_numbers("y = Identity(x)"), False, ort=False),
        "read-by-a-branch": Row(
            with_numbers(
                "i = Identity(x) y = If(flag) <then_branch = t () => (float[N, S, 8] p) { p = Neg(i) },"
                "else_branch = f () => (float[N, S, 8] q) { q = Abs(i) }>",
                inputs="float[N, S, 8] x, bool flag",
            ),
        ),
    },
    explains=False,
)

COMMON = Table(
    "common-subexpression",
    {
        "twice": Row(with_numbers("a = Exp(x) b = Exp(x) y = Add(a, b)"), ort=True),
        "chains": Row(with_numbers("a = Relu(x) b = Relu(x) c = Mul(a, u) d = Mul(b, u) y = Add(c, d)"), ort=True),
        "of-other-attributes": Row(
            with_numbers("a = Softmax<axis = 1>(x) b = Softmax<axis = 2>(x) y = Add(a, b)"), False, ort=False
        ),
        "of-other-operands": Row(with_numbers("a = Sub(x, u) b = Sub(u, x) y = Mul(a, b)"), False, ort=False),
        "both-are-outputs": Row(with_numbers("y = Exp(x) z = Exp(x)", outputs=TWO), None),
        "random": Row(
            with_numbers(
                "a = RandomNormalLike(x) b = RandomNormalLike(x) c = Mul(a, zero) d = Mul(b, zero) e = Add(c, d) y = Add(x, e)"
            ),
            False,
            ort=False,
        ),
        "in-two-branches": Row(
            with_numbers(
                "a = Exp(x) y = If(flag) <then_branch = t () => (float[N, S, 8] p) { b = Exp(x) p = Neg(b) },"
                "else_branch = f () => (float[N, S, 8] q) { c = Exp(x) q = Add(c, a) }>",
                inputs="float[N, S, 8] x, bool flag",
            ),
            None,
        ),
    },
    explains=False,
)

SPLIT = (
    "h = Shape(x) n = Gather(h, i0) s = Gather(h, i1) nu = Unsqueeze(n, first) su = Unsqueeze(s, first) "
    "t = Concat<axis = 0>(nu, su, two, four) r = Reshape(x, t) y = Relu(r)"
)
FOUR_AXES = "float[N, S, 2, 4] y"
SHAPES = Table(
    "shape-simplification",
    {
        "split-into-heads": Row(with_numbers(SPLIT, outputs=FOUR_AXES), ort=True),
        "in-another-order": Row(
            with_numbers(SPLIT.replace("(nu, su,", "(su, nu,"), outputs="float[?, ?, 2, 4] y"), None, ort=False
        ),
        "of-another-value": Row(
            with_numbers(
                SPLIT.replace("Shape(x)", "Shape(z)"), inputs="float[N, S, 8] x, float[M, K, 3] z", outputs="float[?, ?, 2, 4] y"
            ),
            None,
            ort=False,
        ),
        "the-shape-is-an-output": Row(
            with_numbers(SPLIT.replace("t =", "z =").replace("(x, t)", "(x, z)"), outputs=f"{FOUR_AXES}, int64[4] z"), None
        ),
        "merged-again": Row(
            with_numbers(
                "h = Shape(x) n = Gather(h, i0) s = Gather(h, i1) nu = Unsqueeze(n, first) su = Unsqueeze(s, first) "
                "t = Concat<axis = 0>(nu, su, rest) r = Reshape(x, t) y = Relu(r)",
                inputs="float[N, S, 2, 4] x",
            ),
            ort=True,
        ),
        "a-length-of-8": Row(with_numbers("h = Shape(x) l = Gather(h, i2) c = Cast<to = 1>(l) y = Div(x, c)"), None),
        "a-length-that-varies": Row(
            with_numbers("h = Shape(x) l = Gather(h, i1) c = Cast<to = 1>(l) y = Div(x, c)"), None, ort=False
        ),
    },
    explains=False,
)

BRANCHES = (
    "y = If({condition}) <then_branch = t () => (float[N, S, 8] p) {{ p = Neg(x) }},"
    "else_branch = f () => (float[N, S, 8] q) {{ q = Abs(x) }}>"
)
CONDITIONALS = Table(
    "inline-conditionals",
    {
        "constant": Row(graph(BRANCHES.format(condition="c"), "bool c = {1}"), ort=True),
        "false": Row(graph(BRANCHES.format(condition="c"), "bool c = {0}"), ort=True),
        "an-input": Row(graph(BRANCHES.format(condition="flag"), inputs="float[N, S, 8] x, bool flag"), False, ort=False),
        "by-a-length": Row(
            graph(
                "h = Shape(x) l = Gather(h, i1) c = Equal(l, i1) " + BRANCHES.format(condition="c"),
                "int64 i1 = {1}, int64 five = {5}",
            ),
            False,
            ort=False,
        ),
        "in-a-branch": Row(
            graph(
                "y = If(flag) <then_branch = t () => (float[N, S, 8] a) { a = If(c) <then_branch = u () => (float[N, S, 8] p) "
                "{ p = Neg(x) }, else_branch = v () => (float[N, S, 8] q) { q = Abs(x) }> },"
                "else_branch = f () => (float[N, S, 8] b) { b = Relu(x) }>",
                "bool c = {1}",
                inputs="float[N, S, 8] x, bool flag",
            ),
        ),
    },
)

test_cleanups = table_tests(CONSTANT_FOLDING, IDENTITY, COMMON, SHAPES, CONDITIONALS)
