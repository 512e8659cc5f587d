#!/usr/bin/env python3
"""Make the test zoo: small real exports of random-weight transformers models.

Usage: make_zoo.py [--only GLOB] [--out FOLDER] [--check]

It needs torch, transformers, onnx, onnxscript and onnxruntime (README.md names the versions); the tests need none of
this, they read the files that it made. Every file is NAME.EXPORTER+OPSET.ATTENTION.onnx, where EXPORTER is `ts`
(TorchScript) or `dyn` (dynamo) and ATTENTION is the implementation that the model was built with. Each export is
checked before it is written: the checker passes, and ONNX Runtime without optimizations agrees with torch at two
shapes, with right- and left-padded masks.

`--check` exports nothing and checks the files that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import hashlib
import io
import logging
import pathlib
import unittest.mock
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from transformers import masking_utils

FOLDER = pathlib.Path(__file__).resolve().parent
VOCABULARY, POSITIONS, LAYERS = 100, 32, 2
HIDDEN, HEADS, INTERMEDIATE = 32, 4, 64
SHAPES = ((2, 7), (3, 11))
TOLERANCE = 1e-4
# Long, and of no use to a rewriter. The other keys stay: that passes keep metadata is one of the things tested.
DROPPED_METADATA = {"pkg.torch.onnx.stack_trace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.fx_node"}

Feeds = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model: its transformers class, its configuration, and the names of what goes in and comes out."""

    model: str
    config: str
    outputs: tuple[str, ...]
    options: dict[str, object]
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")


def encoder(**options: object) -> dict[str, object]:
    """The names that BERT's many descendants share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": POSITIONS,
        **options,
    }


WITH_TYPES = ("input_ids", "attention_mask", "token_type_ids")
KINDS = {
    "bert": Kind("BertForSequenceClassification", "BertConfig", ("logits",), encoder(num_labels=3), WITH_TYPES),
    "distilbert": Kind(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        ("logits",),
        {
            "vocab_size": VOCABULARY,
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": INTERMEDIATE,
            "max_position_embeddings": POSITIONS,
        },
    ),
    # Head size 12: no power of two, so that the scale is not exact.
    "roberta": Kind("RobertaModel", "RobertaConfig", ("last_hidden_state", "pooler_output"), encoder(hidden_size=48)),
    # One layer's weights, used twice.
    "albert": Kind("AlbertModel", "AlbertConfig", ("last_hidden_state", "pooler_output"), encoder(embedding_size=16), WITH_TYPES),
    "electra": Kind(
        "ElectraForTokenClassification",
        "ElectraConfig",
        ("logits",),
        encoder(embedding_size=16, num_labels=5),
        WITH_TYPES,
    ),
    "mpnet": Kind(
        "MPNetModel",
        "MPNetConfig",
        ("last_hidden_state", "pooler_output"),
        encoder(max_position_embeddings=POSITIONS + 2),
    ),
    "modernbert": Kind(
        "ModernBertModel",
        "ModernBertConfig",
        ("last_hidden_state",),
        encoder(
            # One layer of each kind: global, and local with a window of two tokens either side.
            global_attn_every_n_layers=2,
            local_attention=4,
            reference_compile=False,
            pad_token_id=1,
            bos_token_id=2,
            cls_token_id=2,
            eos_token_id=3,
            sep_token_id=3,
        ),
    ),
    "t5_enc": Kind(
        "T5EncoderModel",
        "T5Config",
        ("last_hidden_state",),
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": 8,
            "d_ff": INTERMEDIATE,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
        },
    ),
    "bart_enc": Kind(
        "BartModel",  # its encoder alone is exported
        "BartConfig",
        ("last_hidden_state",),
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "encoder_layers": LAYERS,
            "decoder_layers": 1,
            "encoder_attention_heads": HEADS,
            "encoder_ffn_dim": INTERMEDIATE,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "clip_text": Kind(
        "CLIPTextModel",
        "CLIPTextConfig",
        ("last_hidden_state", "pooler_output"),
        encoder(pad_token_id=1, bos_token_id=0, eos_token_id=2),
    ),
    "gpt2": Kind(
        "GPT2LMHeadModel",
        "GPT2Config",
        ("logits",),
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": POSITIONS,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    # Grouped queries: four heads share two of keys and values; head size 16, so that heads x size is not the width.
    "llama": Kind(
        "LlamaForCausalLM",
        "LlamaConfig",
        ("logits",),
        encoder(num_key_value_heads=2, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    ),
    "vit": Kind(
        "ViTModel",
        "ViTConfig",
        ("last_hidden_state", "pooler_output"),
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": INTERMEDIATE,
            "image_size": 16,
            "patch_size": 4,
        },
        ("pixel_values",),
    ),
}

ZOO = (
    "bert.ts14.eager",
    "bert.ts17.sdpa",
    "bert.dyn18.sdpa",
    "bert.dyn20.eager",
    "bert.dyn23.sdpa",
    "distilbert.ts17.eager",
    "distilbert.dyn20.eager",
    "roberta.ts17.sdpa",
    "albert.ts17.sdpa",
    "electra.dyn20.eager",
    "mpnet.ts17.eager",
    "modernbert.dyn20.eager",
    "t5_enc.ts17.eager",
    "bart_enc.dyn20.eager",
    "clip_text.ts17.sdpa",
    "gpt2.ts17.eager",
    "gpt2.dyn18.sdpa",
    "llama.ts17.eager",
    "llama.dyn18.sdpa",
    "vit.ts17.sdpa",
    "vit.dyn20.eager",
    "vit.dyn23.sdpa",
)


def build(name: str, attention: str) -> torch.nn.Module:
    """The model, in evaluation mode, with weights that depend on the name alone: all exports of a kind share them."""
    kind = KINDS[name]
    config = getattr(transformers, kind.config)(**kind.options, attn_implementation=attention)
    config.use_cache = False
    torch.manual_seed(0)
    model = getattr(transformers, kind.model)(config).eval()
    fill(model, seed=sum(name.encode()))
    return model.encoder if name == "bart_enc" else model


def fill(model: torch.nn.Module, seed: int) -> None:
    """Weights as training leaves them: no bias is zero, no gain is one, and every layer changes what it is given.

    transformers starts biases at 0, gains at 1 and matrices at 0.02, which hides a dropped bias, a wrong epsilon or an
    attention that is fused wrongly behind near-zero numbers and near-uniform probabilities.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.2 * noise if path.endswith("bias") else 1 + 0.2 * noise)
            elif id(parameter) in embeddings or parameter.dim() == 3:
                parameter.copy_(0.5 * noise)
            else:
                # GPT-2's Conv1D stores (in, out), a Linear (out, in): the smaller axis serves both.
                fan_in = parameter[0].numel() if parameter.dim() == 4 else min(parameter.shape)
                parameter.copy_(1.2 * noise / fan_in**0.5)


def make_feeds(kind: Kind, batch: int, sequence: int, pad_left: bool) -> Feeds:
    """One input set; the last row is padded by three tokens."""
    generator = torch.Generator().manual_seed(batch * sequence)
    if kind.inputs == ("pixel_values",):
        return {"pixel_values": torch.randn((batch, 3, 16, 16), generator=generator)}
    mask = torch.ones((batch, sequence), dtype=torch.int64)
    mask[-1, slice(0, 3) if pad_left else slice(sequence - 3, None)] = 0
    feeds = {
        "input_ids": torch.randint(4, VOCABULARY, (batch, sequence), generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(2, (batch, sequence), generator=generator),
    }
    return {name: feeds[name] for name in kind.inputs}


def broadcast_mask(mask_function: Callable[..., torch.Tensor], bh_indices: bool = True) -> Callable[..., torch.Tensor]:
    """What transformers does with vmap, by broadcasting: TorchScript cannot trace vmap, and Optimum does it so, too."""

    def call(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        shaped = (
            batch[:, None, None, None],
            head[None, :, None, None],
            query[None, None, :, None],
            key[None, None, None, :],
        )
        return mask_function(*shaped).expand(batch.shape[0], 1, query.shape[0], key.shape[0])

    return call


@contextlib.contextmanager
def traceable_masks() -> Iterator[None]:
    patch = unittest.mock.patch.object
    with (
        patch(masking_utils, "_vmap_for_bhqkv", broadcast_mask),
        patch(masking_utils, "TransformGetItemToIndex", contextlib.nullcontext),
    ):
        yield


def export_torchscript(model: torch.nn.Module, kind: Kind, opset: int) -> onnx.ModelProto:
    feeds = make_feeds(kind, *SHAPES[0], pad_left=False)
    buffer = io.BytesIO()
    forward = model.forward

    def forward_inputs(*tensors: torch.Tensor) -> object:
        # The exporter would pass every other argument, too, and make an input of `logits_to_keep=0`.
        return forward(**dict(zip(feeds, tensors, strict=True)))

    with traceable_masks(), unittest.mock.patch.object(model, "forward", forward_inputs), torch.no_grad():
        torch.onnx.export(
            model,
            tuple(feeds.values()),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=list(feeds),
            output_names=list(kind.outputs),
            dynamic_axes={name: axes(name) for name in feeds} | output_axes(kind),
            do_constant_folding=True,
        )
    return onnx.load_from_string(buffer.getvalue())


def axes(name: str) -> dict[int, str]:
    return {0: "batch"} if name == "pixel_values" else {0: "batch", 1: "sequence"}


def output_axes(kind: Kind) -> dict[str, dict[int, str]]:
    per_token = "pixel_values" not in kind.inputs and kind.model != "BertForSequenceClassification"
    first, *others = kind.outputs
    return {first: {0: "batch", 1: "sequence"} if per_token else {0: "batch"}} | {name: {0: "batch"} for name in others}


def export_dynamo(model: torch.nn.Module, kind: Kind, opset: int) -> onnx.ModelProto:
    feeds = make_feeds(kind, *SHAPES[0], pad_left=False)
    dims = {"batch": torch.export.Dim("batch", max=64), "sequence": torch.export.Dim("sequence", max=POSITIONS - 2)}
    shapes = {name: {i: dims[dim] for i, dim in axes(name).items()} for name in feeds}
    with torch.no_grad():
        program = torch.onnx.export(
            model,
            (),
            kwargs=feeds,
            dynamo=True,
            opset_version=opset,
            input_names=list(feeds),
            output_names=list(kind.outputs),
            dynamic_shapes=shapes,
            verbose=False,
        )
    return program.model_proto


def shorten(model: onnx.ModelProto) -> None:
    """Drop doc strings and the longest metadata; the graph itself stays as exported."""
    graph = model.graph
    del graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        kept = [entry for entry in item.metadata_props if entry.key not in DROPPED_METADATA]
        del item.metadata_props[:]
        item.metadata_props.extend(kept)


def check(model: onnx.ModelProto, reference: torch.nn.Module, kind: Kind) -> float:
    """The largest difference from torch over two shapes and both paddings; raises when the export is not usable."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    if sorted(names) != sorted(kind.inputs):
        raise ValueError(f"inputs are {names}, not {list(kind.inputs)}")
    worst = 0.0
    for batch, sequence in SHAPES:
        for pad_left in (False, True):
            feeds = make_feeds(kind, batch, sequence, pad_left)
            with torch.no_grad():
                expected = [tensor.numpy() for tensor in reference(**feeds).to_tuple()]
            actual = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
            for output, got, want in zip(kind.outputs, actual, expected, strict=True):
                spread = float(np.std(want, axis=0).mean())
                if got.shape != want.shape or not np.isfinite(got).all() or not 0.05 < spread < 50:
                    raise ValueError(f"{output}: shape {got.shape}, torch {want.shape}, spread over rows {spread:.3g}")
                worst = max(worst, float(np.abs(got - want)[attended(feeds, want)].max()))
    if worst > TOLERANCE:
        raise ValueError(f"differs from torch by {worst:.3g}")
    return worst


def attended(feeds: Feeds, output: np.ndarray) -> np.ndarray:
    """Where an output means something.

    In a causal model a padding token before the first real one sees nothing: torch's sdpa gives zeros there, its ONNX
    export (which adds the lowest float) the mean of all values. Only attended positions are compared.
    """
    everywhere = np.ones(output.shape, dtype=bool)
    if "attention_mask" not in feeds or output.shape[:-1] != feeds["attention_mask"].shape:
        return everywhere
    return everywhere & (feeds["attention_mask"].numpy() == 1)[..., None]


def parse(stem: str) -> tuple[str, str, int, str]:
    name, exporter, attention = stem.split(".")
    version = exporter.lstrip("tsdyn")
    return name, exporter.removesuffix(version), int(version), attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="names to make, e.g. 'bert.*'")
    parser.add_argument("--out", default=FOLDER, type=pathlib.Path, metavar="FOLDER", help="where the files go")
    parser.add_argument("--check", action="store_true", help="check the files that are there, export nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    total, failed = 0, []
    for stem in fnmatch.filter(ZOO, args.only):
        name, exporter, opset, attention = parse(stem)
        kind, path = KINDS[name], args.out / f"{stem}.onnx"
        try:
            module = build(name, attention)
            if args.check:
                model = onnx.load(path)
            else:
                model = (export_torchscript if exporter == "ts" else export_dynamo)(module, kind, opset)
                shorten(model)
            error = check(model, module, kind)
        except Exception as problem:  # one export that fails must not hide what happens to the others
            failed.append(stem)
            print(f"{stem:26s} FAILED {type(problem).__name__}: {str(problem)[:300]}")
            continue
        data = model.SerializeToString(deterministic=True)
        if not args.check:
            path.write_bytes(data)
        total += len(data)
        digest = hashlib.sha256(data).hexdigest()[:12]
        print(f"{stem:26s} {len(data):8d} bytes {len(model.graph.node):4d} nodes  error {error:.1e}  sha256 {digest}")
    print(f"{total} bytes together, {len(failed)} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
