"""gelu, fast-gelu, quick-gelu, bias-gelu and the rest of the family: the same graphs through each backend."""

from deferral_table import Row, Table, graph, table_tests

NUMBERS = "float one = {1.0}, float half = {0.5}, float root = {1.4142135}, float inverse = {0.70710677}"
VECTORS = "float[8] halves = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4}"
TORCH = "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"
SECOND = " k = Div(g, root) f = Erf(k) b = Add(f, one) n = Mul(g, b) y = Mul(n, half)"
TWO = "float[N, S, 8] y, float[N, S, 8] z"


def gelu(body=TORCH, constants=NUMBERS, **given):
    return graph(body, constants, **given)


GELU = Table(
    "gelu",
    {
        "torch": Row(gelu(), ort=True),
        "half-first": Row(gelu("h = Mul(x, half) d = Div(x, root) e = Erf(d) a = Add(e, one) y = Mul(h, a)"), ort=True),
        "half-on-the-sum": Row(gelu("d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(a, half) y = Mul(x, h)")),
        "inverse-root": Row(gelu("d = Mul(x, inverse) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)")),
        "tensorflow": Row(gelu("r = Relu(x) d = Mul(r, inverse) e = Erf(d) a = Add(e, one) h = Mul(a, half) y = Mul(h, r)")),
        "commuted": Row(gelu("d = Div(x, root) e = Erf(d) a = Add(one, e) m = Mul(a, x) y = Mul(half, m)")),
        "opset-20": Row(gelu(opset=20), ort=True),
        "one-after-the-other": Row(gelu(TORCH.replace("y =", "g =") + SECOND), ort=True),
        "inner-value-is-an-output": Row(gelu(TORCH.replace("e = ", "z = ").replace("(e,", "(z,"), NUMBERS, outputs=TWO), False),
        "sum-is-used-elsewhere": Row(gelu(TORCH + " z = Neg(a)", outputs=TWO), False),
        "another-root": Row(gelu(constants=NUMBERS.replace("1.4142135", "1.402")), False, ort=False),
        "another-half": Row(gelu(constants=NUMBERS.replace("0.5", "0.45")), False, ort=False),
        "another-one": Row(gelu(constants=NUMBERS.replace("one = {1.0}", "one = {1.1}")), False, ort=False),
        "another-factor": Row(gelu(TORCH.replace("Mul(x, a)", "Mul(z, a)"), inputs="float[N, S, 8] x, float[N, S, 8] z"), False),
        "a-factor-for-each-column": Row(gelu(TORCH.replace("half", "halves"), f"{NUMBERS}, {VECTORS}"), False, ort=False),
        "a-branch-reads-an-inner-value": Row(
            gelu(
                f"{TORCH} z = If(flag) <then_branch = t () => (float[N, S, 8] p) {{ p = Neg(e) }},"
                "else_branch = f () => (float[N, S, 8] q) { q = Abs(e) }>",
                inputs="float[N, S, 8] x, bool flag",
                outputs=TWO,
            ),
            False,
        ),
        "a-branch-reads-the-result": Row(
            gelu(
                f"{TORCH.replace('y =', 'g =')} y = If(flag) <then_branch = t () => (float[N, S, 8] p) {{ p = Neg(g) }},"
                "else_branch = f () => (float[N, S, 8] q) { q = Abs(g) }>",
                inputs="float[N, S, 8] x, bool flag",
            ),
            ort=True,
        ),
    },
    ("Gelu", "com.microsoft::Gelu"),
)

CONSTANTS = (
    "float one = {1.0}, float half = {0.5}, float three = {3.0}, float cubic = {0.044715}, float slope = {0.7978845608028654}, "
    "float twice = {1.5957691216057308}"
)
ARGUMENT = "p = Pow(x, three) c = Mul(p, cubic) s = Add(x, c) i = Mul(s, slope) t = Tanh(i) a = Add(t, one) "
HALF_FIRST = ARGUMENT + "h = Mul(x, half) y = Mul(h, a)"
HALF_LAST = ARGUMENT + "m = Mul(x, a) y = Mul(m, half)"
CUBE = "q = Mul(x, x) p = Mul(q, x) c = Mul(cubic, p) s = Add(x, c) i = Mul(s, slope) t = Tanh(i) a = Add(t, one) "
OPENAI = (
    "u = Mul(x, slope) v = Mul(x, cubic) w = Mul(v, x) k = Add(w, one) i = Mul(u, k) t = Tanh(i) a = Add(t, one) "
    "h = Mul(x, half) y = Mul(h, a)"
)


def tanh_gelu(body=HALF_FIRST, constants=CONSTANTS, **given):
    return graph(body, constants, **given)


FAST_GELU = Table(
    "fast-gelu",
    {
        "power": Row(tanh_gelu(), ort=True),
        "power-half-last": Row(tanh_gelu(HALF_LAST)),
        "cube": Row(tanh_gelu(CUBE + "h = Mul(x, half) y = Mul(h, a)")),
        "openai": Row(tanh_gelu(OPENAI), ort=True),
        "sigmoid": Row(tanh_gelu(ARGUMENT[:-28].replace("slope", "twice") + "g = Sigmoid(i) y = Mul(x, g)")),
        "opset-20": Row(tanh_gelu(opset=20)),
        "cube-half-last": Row(tanh_gelu(CUBE + "m = Mul(x, a) y = Mul(m, half)"), ort=True),
        "other-constants": Row(
            tanh_gelu(
                CUBE + "m = Mul(x, a) y = Mul(m, half)", CONSTANTS.replace("0.0447", "0.054").replace("0.7978845", "0.807")
            ),
            False,
            ort=False,
        ),
        "the-square": Row(tanh_gelu(constants=CONSTANTS.replace("3.0", "2.0")), False, ort=False),
        "another-slope": Row(tanh_gelu(constants=CONSTANTS.replace("0.797", "0.812")), False, ort=False),
        "tanh-is-an-output": Row(tanh_gelu(HALF_FIRST.replace("t = ", "z = ").replace("(t,", "(z,"), outputs=TWO), False),
        "the-power-is-used-elsewhere": Row(tanh_gelu(HALF_FIRST + " z = Neg(p)", outputs=TWO), None),
        "another-factor": Row(
            tanh_gelu(HALF_FIRST.replace("h = Mul(x", "h = Mul(z"), inputs="float[N, S, 8] x, float[N, S, 8] z"), False, ort=False
        ),
    },
    ("Gelu", "com.microsoft::FastGelu"),
)

ALPHA = "float alpha = {1.702}, float other = {0.9}, float[8] alphas = {1.702, 1.702, 1.702, 1.702, 1.702, 1.702, 1.702, 1.0}"
WITH_Z = "float[N, S, 8] x, float[N, S, 8] z"
QUICK_GELU = Table(
    "quick-gelu",
    {
        "clip": Row(graph("m = Mul(x, alpha) s = Sigmoid(m) y = Mul(x, s)", ALPHA), ort=True),
        "commuted": Row(graph("m = Mul(alpha, x) s = Sigmoid(m) y = Mul(s, x)", ALPHA), ort=True),
        "silu": Row(graph("s = Sigmoid(x) y = Mul(x, s)"), ort=True),
        "another-alpha": Row(graph("m = Mul(x, other) s = Sigmoid(m) y = Mul(x, s)", ALPHA), ort=True),
        "an-alpha-that-is-an-input": Row(graph("m = Mul(x, z) s = Sigmoid(m) y = Mul(x, s)", inputs=WITH_Z), False, ort=False),
        "an-alpha-for-each-column": Row(graph("m = Mul(x, alphas) s = Sigmoid(m) y = Mul(x, s)", ALPHA), False, ort=False),
        "of-another-value": Row(graph("m = Mul(z, alpha) s = Sigmoid(m) y = Mul(x, s)", ALPHA, inputs=WITH_Z), False, ort=False),
        "the-sigmoid-is-an-output": Row(graph("m = Mul(x, alpha) z = Sigmoid(m) y = Mul(x, z)", ALPHA, outputs=TWO), False),
        "the-sigmoid-is-used-elsewhere": Row(
            graph("m = Mul(x, alpha) s = Sigmoid(m) y = Mul(x, s) z = Neg(s)", ALPHA, outputs=TWO), False
        ),
        "the-product-is-an-output": Row(graph("z = Mul(x, alpha) s = Sigmoid(z) y = Mul(x, s)", ALPHA, outputs=TWO), None),
    },
    ("com.microsoft::QuickGelu", "Swish"),
)

BIAS = "float[8] b = {0.5, -1.0, 2.0, 0.0, 0.25, -0.5, 1.5, -2.0}, float[1] single = {0.75}, float[1, 8] row = "
BIAS += "{0.5, -1.0, 2.0, 0.0, 0.25, -0.5, 1.5, -2.0}"
WITH_W = "float[N, S, 8] x, float[8, 8] w"
SUM = "t = MatMul(x, w) s = Add(t, b) "


def biased(body, opset=17, **given):
    return graph(body, BIAS, **{"inputs": WITH_W, **given}, opset=opset)


BIAS_GELU = Table(
    "bias-gelu",
    {
        "microsoft": Row(biased(SUM + "y = com.microsoft.Gelu(s)"), ort=True),
        "bias-first": Row(biased("t = MatMul(x, w) s = Add(b, t) y = com.microsoft.Gelu(s)")),
        "standard": Row(biased(SUM + "y = Gelu(s)", 20)),
        "fast": Row(biased(SUM + "y = com.microsoft.FastGelu(s)"), ort=True),
        "tanh": Row(biased(SUM + 'y = Gelu<approximate = "tanh">(s)', 20)),
        "without-a-product": Row(biased("r = Relu(x) s = Add(r, b) y = com.microsoft.Gelu(s)", inputs="float[N, S, 8] x")),
        "one-element": Row(biased(SUM.replace("b)", "single)") + "y = com.microsoft.Gelu(s)"), False),
        "of-rank-2": Row(biased(SUM.replace("b)", "row)") + "y = com.microsoft.Gelu(s)"), False),
        "an-input": Row(biased(SUM.replace("b)", "z)") + "y = com.microsoft.Gelu(s)", inputs=f"{WITH_W}, float[8] z"), False),
        "the-sum-is-an-output": Row(biased("t = MatMul(x, w) z = Add(t, b) y = com.microsoft.Gelu(z)", outputs=TWO), False),
        "expanding": Row(
            biased("t = MatMul(x, w) s = Add(t, b) y = com.microsoft.Gelu(s)", inputs="float[N, S, 8] x, float[8, 1] w"), False
        ),
    },
)

APPROXIMATION = Table(
    "gelu-approximation",
    {
        "microsoft": Row(graph("y = com.microsoft.Gelu(x)"), ort=True),
        "biased": Row(graph("y = com.microsoft.BiasGelu(x, b)", BIAS), ort=True),
        "standard": Row(graph("y = Gelu(x)", opset=20)),
        "after-a-product": Row(biased("t = MatMul(x, w) y = com.microsoft.Gelu(t)"), ort=True),
        "is-one-already": Row(graph('y = Gelu<approximate = "tanh">(x)', opset=20), None),
        "has-its-bias": Row(graph("y = com.microsoft.FastGelu(x, b)", BIAS), None),
    },
    ("com.microsoft::FastGelu", "Gelu"),
    absolute=1e-3,
)

GEMM = Table(
    "gemm-fast-gelu",
    {
        "product": Row(biased("t = MatMul(x, w) y = com.microsoft.FastGelu(t)"), False),
        "with-a-bias": Row(biased("t = MatMul(x, w) y = com.microsoft.FastGelu(t, b)"), False),
        "weight-first": Row(
            biased("t = MatMul(w, x) y = com.microsoft.FastGelu(t)", inputs="float[8, 8] x, float[8, 8] w"), False
        ),
    },
    ("com.microsoft::GemmFastGelu",),
)

test_activations = table_tests(GELU, FAST_GELU, QUICK_GELU, BIAS_GELU, APPROXIMATION, GEMM)
