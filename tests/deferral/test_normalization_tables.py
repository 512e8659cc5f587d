"""layer-norm, rms-norm, their sums with a residual, and embeddings: the same graphs through each backend."""

from deferral_table import Row, Table, graph, table_tests

VECTOR = "{1.0, 0.5, 1.5, -0.75, 1.25, 0.9, 1.1, -1.0}"
NUMBERS = (
    f"float[8] g = {VECTOR}, float[8] b = {{0.1, -0.2, 0.3, 0.0, -0.1, 0.2, 0.5, -0.4}}, float[8] v = {VECTOR}, "
    f"float[1, 1, 8] g3 = {VECTOR}, float[1] single = {{1.5}}, float two = {{2.0}}, float three = {{3.0}}, float one = {{1.0}}, "
    "float small = {1e-5}, float smaller = {1e-12}, float large = {0.1}, int64[1] last = {-1}, int64[1] middle = {1}, "
    "float[8, 8] w = {" + ", ".join(str(round(((7 * n) % 11 - 5) / 10, 1)) for n in range(64)) + "}"
)
WITH_ROOT = "float[N, S, 8] y, float[N, S, 1] z"
TWO = "float[N, S, 8] y, float[N, S, 8] z"


def norm(body, **given):
    return graph(body, NUMBERS, **given)


AFFINE = "n = Mul(q, g) y = Add(n, b)"


def layer_norm(mean="axes = [-1]", variance=None, power="Pow(d, two)", epsilon="small", scaled=AFFINE, after=""):
    variance = variance or mean
    return (
        f"m = ReduceMean<{mean}>(x) d = Sub(x, m) p = {power} k = ReduceMean<{variance}>(p) e = Add(k, {epsilon}) r = Sqrt(e) "
        f"q = Div(d, r) {scaled} {after}"
    )


AT_18 = (
    "m = ReduceMean(x, {axes}) d = Sub(x, m) p = Pow(d, two) k = ReduceMean(p, {axes}) e = Add(k, small) r = Sqrt(e) "
    "q = Div(d, r) n = Mul(q, g) y = Add(n, b)"
)
SQUARE = {"inputs": "float[8, 8] x", "outputs": "float[8, 8] y"}
CUBE = {"inputs": "float[2, 8, 8] x", "outputs": "float[2, 8, 8] y"}
RANK_1 = {"inputs": "float[8] x", "outputs": "float[8] y"}

LAYER_NORM = Table(
    "layer-norm",
    {
        "torch": Row(norm(layer_norm()), ort=True),
        "axes-as-input": Row(norm(AT_18.format(axes="last"), opset=18), ort=True),
        "small-epsilon": Row(norm(layer_norm(epsilon="smaller")), ort=True),
        "product": Row(norm(layer_norm(power="Mul(d, d)"))),
        "no-bias": Row(norm(layer_norm(scaled="y = Mul(q, g)"))),
        "scale-of-rank-3": Row(norm(layer_norm(scaled="n = Mul(q, g3) y = Add(n, b)")), None),
        "two-subtractions": Row(norm(layer_norm(power="Pow(d2, two)").replace("p =", "d2 = Sub(x, m) p =")), ort=True),
        "another-axis": Row(
            norm(layer_norm("axes = [1]"), **CUBE),
            False,
            ort=False,
        ),
        "another-axis-as-input": Row(norm(AT_18.format(axes="middle"), opset=18, **CUBE), False, ort=False),
        "variance-over-another-axis": Row(norm(layer_norm(variance="axes = [1]"), **CUBE), False, ort=False),
        "axes-dropped": Row(norm(layer_norm("axes = [-1], keepdims = 0"), **SQUARE), False, ort=False),
        "the-cube": Row(norm(layer_norm(power="Pow(d, three)")), False, ort=False),
        "large-epsilon": Row(norm(layer_norm(epsilon="large")), None),
        "one-factor": Row(norm(layer_norm(scaled="n = Mul(q, single) y = Add(n, b)")), None),
        "the-quotient-is-used-elsewhere": Row(norm(layer_norm(after="z = Neg(q)"), outputs=TWO), None),
        "the-root-is-an-output": Row(
            norm(layer_norm().replace("r =", "z =").replace("(d, r)", "(d, z)"), outputs=WITH_ROOT),
            False,
        ),
        "the-factor-is-an-input": Row(
            norm(layer_norm(scaled="n = Mul(q, f) y = Add(n, b)"), inputs="float[N, S, 8] x, float[N, S, 8] f"), None
        ),
        "rank-1": Row(norm(layer_norm(), **RANK_1), None),
    },
    ("LayerNormalization",),
)


def rms_norm(
    power="Pow(x, two)", mean="axes = [-1], keepdims = 1", inverse="i = Div(one, r) q = Mul(x, i)", scaled="y = Mul(g, q)"
):
    return f"p = {power} k = ReduceMean<{mean}>(p) e = Add(k, small) r = Sqrt(e) {inverse} {scaled}"


RMS_NORM = Table(
    "rms-norm",
    {
        "quotient": Row(norm(rms_norm(inverse="q = Div(x, r)"))),
        "one-over": Row(norm(rms_norm())),
        "reciprocal": Row(norm(rms_norm(inverse="i = Reciprocal(r) q = Mul(x, i)"))),
        "product": Row(norm(rms_norm(power="Mul(x, x)"))),
        "keepdims-by-default": Row(norm(rms_norm(mean="axes = [-1]"))),
        "another-axis": Row(norm(rms_norm(mean="axes = [1], keepdims = 1"), **CUBE), False),
        "another-axis-of-a-product": Row(norm(rms_norm("Mul(x, x)", "axes = [1], keepdims = 1"), **CUBE), False),
        "axes-dropped": Row(norm(rms_norm(mean="axes = [-1], keepdims = 0"), **SQUARE), False),
        "of-another-value": Row(
            norm(rms_norm().replace("Mul(x, i)", "Mul(f, i)"), inputs="float[N, S, 8] x, float[N, S, 8] f"), False
        ),
        "the-inverse-is-an-output": Row(norm(rms_norm(inverse="z = Div(one, r) q = Mul(x, z)"), outputs=WITH_ROOT), False),
        "the-quotient-is-used-elsewhere": Row(norm(rms_norm() + " z = Neg(q)", outputs=TWO), None),
        "the-factor-is-an-input": Row(norm(rms_norm(scaled="y = Mul(q, f)"), inputs="float[N, S, 8] x, float[N, S, 8] f"), None),
        # Fused, it fails when it runs.
        "expanding": Row(norm(rms_norm(), inputs="float[1, 1] x", outputs="float[1, 8] y"), None, alone=True),
    },
    ("SimplifiedLayerNormalization", "RMSNormalization"),
)

EPSILON = "<epsilon = 1e-5>"
RESIDUAL = "float[N, S, 8] x, float[N, S, 8] skip"


def skip_norm(ops="LayerNormalization<epsilon = 1e-5>(s, g, b)", total="a = Relu(x) s = Add(a, skip)", after="", **given):
    return norm(f"{total} y = {ops} {after}", **{"inputs": RESIDUAL, **given})


SKIP_LAYER_NORM = Table(
    "skip-layer-norm",
    {
        "sum": Row(skip_norm(), ort=True),
        "the-sum-is-used-elsewhere": Row(skip_norm(after="z = Neg(s)", outputs=TWO)),
        "the-sum-is-an-output": Row(
            skip_norm("LayerNormalization<epsilon = 1e-5>(z, g, b)", "a = Relu(x) z = Add(a, skip)", outputs=TWO)
        ),
        "without-epsilon": Row(skip_norm("LayerNormalization(s, g, b)")),
        "without-a-bias": Row(skip_norm("LayerNormalization<epsilon = 1e-5>(s, g)")),
        "of-the-batch": Row(skip_norm(inputs="float[N, S, 8] x, float[1, S, 8] skip")),
        "the-same-twice": Row(skip_norm(total="a = Relu(x) s = Add(a, a)", inputs="float[N, S, 8] x")),
        "with-a-biased-product": Row(skip_norm(total="t = MatMul(x, w) a = Add(t, v) s = Add(a, skip)"), ort=True),
        "another-axis": Row(
            skip_norm(
                "LayerNormalization<axis = 1, epsilon = 1e-5>(s, w, w)",
                inputs="float[N, 8, 8] x, float[N, 8, 8] skip",
                outputs="float[N, 8, 8] y",
            ),
            False,
            ort=False,
        ),
        "another-length": Row(skip_norm(inputs="float[N, S, 8] x, float[N, S, 1] skip"), False, ort=False),
        "both-expand": Row(skip_norm(inputs="float[N, 1, 8] x, float[1, S, 8] skip"), False, ort=False),
        "rank-4": Row(
            skip_norm(inputs="float[N, 2, S, 8] x, float[N, 2, S, 8] skip", outputs="float[N, 2, S, 8] y"), False, ort=False
        ),
        "the-mean-is-an-output": Row(
            norm(
                "a = Relu(x) s = Add(a, skip) y, z = LayerNormalization<epsilon = 1e-5>(s, g, b)",
                inputs=RESIDUAL,
                outputs=WITH_ROOT,
            ),
            None,
        ),
    },
    ("com.microsoft::SkipLayerNormalization",),
)

SIMPLE = "SimplifiedLayerNormalization<axis = -1, epsilon = 1e-5, stash_type = 1>(s, g)"
SKIP_RMS_NORM = Table(
    "skip-rms-norm",
    {
        "sum": Row(skip_norm(SIMPLE)),
        "the-sum-is-used-elsewhere": Row(skip_norm(SIMPLE, after="z = Neg(s)", outputs=TWO)),
        "without-epsilon": Row(skip_norm("SimplifiedLayerNormalization<axis = -1, stash_type = 1>(s, g)")),
        "of-the-batch": Row(skip_norm(SIMPLE, inputs="float[N, S, 8] x, float[1, S, 8] skip")),
        "another-axis": Row(
            skip_norm(
                "SimplifiedLayerNormalization<axis = 1, epsilon = 1e-5, stash_type = 1>(s, w)",
                inputs="float[N, 8, 8] x, float[N, 8, 8] skip",
                outputs="float[N, 8, 8] y",
            ),
            False,
            ort=False,
        ),
        "another-length": Row(skip_norm(SIMPLE, inputs="float[N, S, 8] x, float[N, S, 1] skip"), False, ort=False),
        "rank-2": Row(skip_norm(SIMPLE, inputs="float[N, 8] x, float[N, 8] skip", outputs="float[N, 8] y"), None),
    },
    ("com.microsoft::SkipSimplifiedLayerNormalization",),
)


FUSED = "com.microsoft.SkipLayerNormalization<epsilon = 1e-3>"


def with_bias(total="t = MatMul(x, w) p = Add(t, v)", fused=f"y = {FUSED}(p, skip, g, b)", **given):
    return norm(f"{total} {fused}", **{"inputs": RESIDUAL, **given})


BIAS_SKIP_LAYER_NORM = Table(
    "bias-skip-layer-norm",
    {
        "first": Row(with_bias()),
        "bias-first": Row(with_bias("t = MatMul(x, w) p = Add(v, t)")),
        "second": Row(with_bias(fused=f"y = {FUSED}(skip, p, g, b)")),
        "the-sum-is-an-output": Row(with_bias(fused=f"y, , , z = {FUSED}(p, skip, g, b)", outputs=TWO)),
        "has-a-bias": Row(with_bias(fused=f"y = {FUSED}(p, skip, g, b, v)"), False),
        "the-biased-is-used-elsewhere": Row(with_bias(fused=f"y = {FUSED}(p, skip, g, b) z = Neg(p)", outputs=TWO), False),
        "one-element": Row(with_bias("t = MatMul(x, w) p = Add(t, single)"), False, ort=False),
        "an-input": Row(with_bias("t = MatMul(x, w) p = Add(t, f)", inputs=f"{RESIDUAL}, float[8] f"), False, ort=False),
    },
)


def table(name, rows, step):
    values = (str(round(((n * step) % 13 - 6) / 7, 3)) for n in range(8 * rows))
    return f"float[{rows}, 8] {name} = {{{', '.join(values)}}}"


def row_of(name, numbers):
    return f"int64[1, 12] {name} = {{{', '.join(map(str, numbers))}}}"


EMBEDDINGS = [
    table("words", 20, 5),
    table("places", 12, 3),
    table("types", 2, 7),
    row_of("every", range(12)),
    row_of("backwards", range(11, -1, -1)),
    "int64[1] zero = {0}, int64[1] first = {1}, int64 none = {0}, int64 step = {1}, int64 length_axis = {1}",
    NUMBERS,
]
TOKENS = "int64[N, S] ids, int64[N, S] type_ids"
SLICED = (
    "h = Shape(ids) o = Gather(h, length_axis) l = Unsqueeze(o, zero) place_ids = Slice(every, zero, l, first) "
    "p = Gather(places, place_ids)"
)
RANGED = (
    "h = Shape(ids) l = Gather(h, length_axis) o = Range(none, l, step) u = Unsqueeze(o, zero) place_ids = Expand(u, h) "
    "p = Gather(places, place_ids)"
)


# ONNX Runtime looks for the products of an attention behind the normalisation.
ATTENDED = "q = MatMul(n, w) r = MatMul(n, w) c = MatMul(n, w) d = Add(q, r) e = Add(d, c) y = Add(e, n)"


def embedded(positions=SLICED, total="a = Add(k, t) s = Add(a, p)", segment="t = Gather(types, type_ids)", **given):
    normed = "n = LayerNormalization<epsilon = 1e-12>(s, g, b)"
    body = f"k = Gather(words, ids) {positions} {segment} {total} {normed} {given.pop('attended', ATTENDED)}"
    return graph(body, ", ".join(EMBEDDINGS), **{"inputs": TOKENS, **given})


def without_types(positions, **given):
    attended = f"n_shape = Shape(n) {ATTENDED.replace('y =', 'f =')} y = Reshape(f, n_shape)"
    return embedded(positions, "s = Add(k, p)", "", inputs="int64[N, S] ids", attended=attended, **given)


EMBED_LAYER_NORM = Table(
    "embed-layer-norm",
    {
        "bert": Row(embedded(), ort=True),
        "positions-first": Row(embedded(total="a = Add(k, p) s = Add(a, t)")),
        "distilbert": Row(without_types(RANGED), ort=True),
        "positions-are-an-input": Row(embedded("p = Gather(places, place_ids)", inputs=f"{TOKENS}, int64[N, S] place_ids"), None),
        "backwards": Row(embedded(SLICED.replace("every", "backwards")), ort=False),
        "positions-from-one": Row(
            without_types(RANGED.replace("o = Range(none, l, step)", "m = Add(l, step) o = Range(step, m, step)")), None
        ),
        "the-words-are-used-elsewhere": Row(embedded(total="a = Add(k, t) s = Add(a, p) z = Neg(k)", outputs=TWO), None),
        "words-twice": Row(embedded(total="a = Add(k, k) s = Add(a, p)", segment="", inputs="int64[N, S] ids")),
        "the-product": Row(embedded(total="a = Mul(k, t) s = Add(a, p)"), False),
    },
    ("com.microsoft::EmbedLayerNormalization",),
)

test_normalizations = table_tests(LAYER_NORM, RMS_NORM, SKIP_LAYER_NORM, SKIP_RMS_NORM, BIAS_SKIP_LAYER_NORM, EMBED_LAYER_NORM)
