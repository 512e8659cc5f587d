"""attention, multi-head-attention, group-query-attention, rotary-embedding: the same graphs through each backend."""

from blocks import LOWEST, Block
from deferral_table import Row, Table, table_tests
from rotary_spelling import Rotary
from sharing import Sharing


def block(fires=True, ort=None, **knobs):
    return Row(Block(**knobs).model, fires, ort)


BLOCKS = {
    "bert": block(mask="additive", ort=True),
    "without-a-mask": block(),
    "left-out-biases": block(biases="", mask="additive"),
    "added-where": block(mask="add-where", fill=LOWEST),
    "distilbert": block(mask="select-masked", fill=LOWEST),
    "an-input-that-is-added": block(mask="input"),
    "a-bias-for-each-head": block(mask="bias"),
    "causal": block(causal="k<=q", fill=LOWEST),
    "causal-and-padded": block(causal="k<=q", mask="additive"),
    "scores-times-1": block(scale=1.0, mask="additive"),
    "scores-by-8": block(scale=1 / 8),
    "scores-by-3-and-a-mask": block(scale=1 / 3, mask="additive"),
    "scale-of-the-query": block(scale=0.9, scale_at="query", mask="additive"),
    "scale-of-query-and-key": block(scale=0.2, scale_op="Mul", scale_at="both", mask="additive"),
    "scale-of-an-input": block(False, False, scale_from="input", mask="additive"),
    "softmax-over-heads": block(False, False, softmax_axis=1),
    "softmax-over-queries": block(False, False, softmax_axis=2, mask="additive"),
    "mask-of-the-queries": block(None, mask="queries"),
    "mask-of-the-first-row": block(None, mask="vector"),
    "mask-that-is-multiplied": block(False, False, mask="multiplied"),
    "small-fill": block(None, mask="additive", fill=-1.5),
    "after-a-small-fill": block(mask="additive"),  # ONNX Runtime's class remembers the fill of the one before
    "above-the-diagonal": block(None, causal="k>=q"),
    "below-the-diagonal": block(None, causal="k<q"),
    "a-window": block(None, causal="window"),
    "heads-are-not-split": block(False, False, split="unsplit", mask="additive"),
    "heads-are-interleaved": block(None, split="interleaved", mask="additive"),
    "keys-are-not-split": block(False, False, key_layout="unsplit", mask="additive"),
    "heads-are-not-merged": block(None, merge="straight", mask="additive"),
    "masked-heads": block(None, head_mask=(0.5, 1.0), mask="additive"),
    "probabilities-are-an-output": block(False, mask="additive", outputs=("probabilities",)),
    "scores-are-an-output": block(False, mask="additive", outputs=("scores",)),
    "keys-and-values-are-outputs": block(None, mask="additive", outputs=("key", "value")),
}

CROSSED = {
    "cross": block(None, cross=True),
    "cross-and-mask": block(None, cross=True, mask="additive"),
    "cross-on-other-scale": block(None, cross=True, scale=0.3, biases=""),
    "packed": block(qkv="split", mask="additive"),
}

# What goes into the products need not be projections.
UNSPLIT = {
    "heads-are-not-split": block(None, split="unsplit", mask="additive"),
    "keys-are-not-split": block(None, key_layout="unsplit", mask="additive"),
}

AGAIN = ["bert", "without-a-mask", "added-where", "causal", "scores-by-8", "softmax-over-heads", "mask-that-is-multiplied"]
AGAIN += [
    "heads-are-interleaved",
    "small-fill",
    "after-a-small-fill",
    "probabilities-are-an-output",
    "keys-and-values-are-outputs",
]

ATTENTION = Table("attention", BLOCKS, ("com.microsoft::Attention",))
MULTI_HEAD = Table(
    "multi-head-attention",
    {**{name: BLOCKS[name] for name in AGAIN}, **CROSSED, **UNSPLIT},
    ("com.microsoft::MultiHeadAttention", "Attention"),
)

GROUPED = Table(
    "group-query-attention",
    {
        "shared": Row(Sharing().model()),
        "shared-by-all": Row(Sharing(groups=1).model()),
        "causal": Row(Sharing(mask="k<=q").model()),
        "window": Row(Sharing(mask="window2").model()),
        "masked": Row(Sharing(mask="additive").model(), None),
        "in-turns": Row(Sharing(repeat="tile").model(), False),
        "each-its-own": Row(Sharing(groups=4).model(), None),
    },
    ("com.microsoft::GroupQueryAttention",),
)


def rotary(fires=True, ort=None, **knobs):
    return Row(Rotary(**knobs).model(), fires, ort)


ROTARY = Table(
    "rotary-embedding",
    {
        "computed": rotary(),
        "of-given-positions": rotary(caches="per batch"),
        "gathered": rotary(caches="gathered"),
        "neighbours": rotary(pairing="neighbours"),
        "scaled": rotary(scaling=0.8),
        "in-part": rotary(rotated=4),
        "two-parts": rotary(form="split"),
        "sign": rotary(False, False, change="sign"),
        "no-exchange": rotary(None, False, change="no exchange"),
        "swapped-caches": rotary(None, change="swapped caches"),
        "halves-differ": rotary(False, False, change="halves differ"),
        "gathered-halves-differ": rotary(False, False, caches="gathered", change="halves differ"),
        "inner-output": rotary(False, change="inner output"),
    },
    ("com.microsoft::RotaryEmbedding", "RotaryEmbedding"),
)

test_attentions = table_tests(ATTENTION, MULTI_HEAD, GROUPED, ROTARY)
