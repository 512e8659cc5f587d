"""Small models with random weights and their tokenizers, made here: nothing is downloaded.

The weights are drawn wide enough that what a model says depends on what it reads, and narrow enough that rounding is not
blown up from layer to layer: a product of 32 terms keeps the size of its input at a standard deviation of about 0.18.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LAYERS, HEADS, SIZE, INNER, LONGEST = 2, 4, 32, 64, 64
SPREAD = 0.22

SENTENCES = (
    "the river carries cold water from the hills to the old town.",
    "rain!",
    "every morning the baker opens her small shop and sells warm bread to the people of the valley, who like it.",
    "who painted the red boat in the harbour?",
    "winter nights are long, and the stars look near.",
    "he lost his keys.",
)
NAMES = ("river", "harbour", "baker", "winter", "star")


def tokenizer(*, pairs: str | None = None, padding_side: str = "right", **options: Any) -> hf.PreTrainedTokenizerFast:
    """A byte-level tokenizer whose merges come from ``SENTENCES``; ``pairs`` is the template for two texts, if there is one."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet))
    if pairs is not None:
        marks = [(mark, made.token_to_id(mark)) for mark in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair=pairs, special_tokens=marks)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        padding_side=padding_side,
        model_max_length=LONGEST - 4,
        **options,
    )


def _encoder(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 360,
        "hidden_size": SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": LONGEST,
        "initializer_range": SPREAD,
        "pad_token_id": 0,
    } | more


def _labels() -> dict[str, Any]:
    return {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}


def _bert(**more: Any) -> hf.BertConfig:
    return hf.BertConfig(**_encoder(**more))


def _roberta(**more: Any) -> hf.RobertaConfig:
    return hf.RobertaConfig(**_encoder(**more))


def _distilbert(**more: Any) -> hf.DistilBertConfig:
    sizes = {"dim": SIZE, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER, "max_position_embeddings": LONGEST}
    return hf.DistilBertConfig(vocab_size=360, pad_token_id=0, initializer_range=SPREAD, **sizes, **more)


def _electra(**more: Any) -> hf.ElectraConfig:
    return hf.ElectraConfig(**_encoder(embedding_size=SIZE, **more))


def _albert(**more: Any) -> hf.AlbertConfig:
    return hf.AlbertConfig(**_encoder(embedding_size=16, **more))


def _mpnet(**more: Any) -> hf.MPNetConfig:
    return hf.MPNetConfig(**_encoder(**more))


def _vit(**more: Any) -> hf.ViTConfig:
    sizes = {key: value for key, value in _encoder().items() if not key.startswith(("vocab", "max", "pad"))}
    return hf.ViTConfig(image_size=32, patch_size=8, **sizes, **more)


def _gpt2() -> hf.GPT2Config:
    sizes = {"n_embd": SIZE, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": LONGEST}
    return hf.GPT2Config(vocab_size=360, initializer_range=SPREAD, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)


def _llama() -> hf.LlamaConfig:
    return hf.LlamaConfig(**_encoder(num_key_value_heads=2, bos_token_id=1, eos_token_id=2))


def _gpt_neo() -> hf.GPTNeoConfig:
    """Every other layer looks back only ``window_size`` tokens; the masks are slices of a buffer for the longest sequence."""
    sizes = {"hidden_size": SIZE, "num_layers": LAYERS, "num_heads": HEADS, "max_position_embeddings": LONGEST}
    kinds = {"attention_types": [[["global", "local"], LAYERS // 2]], "window_size": 6}
    return hf.GPTNeoConfig(vocab_size=360, initializer_range=SPREAD, bos_token_id=1, eos_token_id=2, **sizes, **kinds)


def _bart() -> hf.BartConfig:
    sizes = {f"{part}_{what}": value for part in ("encoder", "decoder") for what, value in _HALF.items()}
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    return hf.BartConfig(
        vocab_size=360, d_model=SIZE, max_position_embeddings=LONGEST, init_std=SPREAD, scale_embedding=True, **sizes, **marks
    )


_HALF = {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": INNER}


def _t5(form: str) -> hf.T5Config:
    """The first T5 has ReLU, T5 1.1 gates with a tanh Gelu. Not tied: a start token that is padding would predict itself."""
    sizes = {"d_model": SIZE, "d_kv": SIZE // HEADS, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS}
    marks = {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    return hf.T5Config(vocab_size=360, feed_forward_proj=form, tie_word_embeddings=False, **sizes, **marks)


def _image_processor() -> hf.ViTImageProcessor:
    return hf.ViTImageProcessor(size={"height": 32, "width": 32})


def _text() -> hf.PreTrainedTokenizerFast:
    return tokenizer(pairs="<s> $A </s> $B:1 </s>:1")


def _text_without_types() -> hf.PreTrainedTokenizerFast:
    return tokenizer(pairs="<s> $A </s> </s> $B </s>", model_input_names=["input_ids", "attention_mask"])


def _text_to_go_on() -> hf.PreTrainedTokenizerFast:
    return tokenizer(padding_side="left", model_input_names=["input_ids", "attention_mask"])


@dataclass(frozen=True)
class Recipe:
    """A model, what comes before it (a tokenizer, an image processor), and the task that it is exported for.

    Attributes:
        attentions: attention layers in each file of the export.
        exporting: more arguments of Optimum's exporter.
        is_taught: whether it learns ``SENTENCES`` by heart, so that it is as sure of its labels as a real classifier is.
    """

    task: str
    model: Callable[[], Any]
    before: Callable[[], Any]
    attentions: dict[str, int] = field(default_factory=lambda: {"model.onnx": LAYERS})
    exporting: dict[str, Any] = field(default_factory=dict)
    is_taught: bool = False

    def make(self, folder: Path) -> None:
        """Writes the PyTorch model and its tokenizer or processor, as a user has them before the export."""
        torch.manual_seed(20)
        made = self.model().eval()
        _spread_vectors(made)
        if self.is_taught:
            _teach(made, self.before())
        made.save_pretrained(folder)
        self.before().save_pretrained(folder)


def _spread_vectors(model: torch.nn.Module) -> None:
    """Biases and the weights of norms, which begin as zeros and ones: a pass that loses one must not go unseen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 1.0 if name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.1 * torch.randn_like(parameter))


def _teach(model: torch.nn.Module, before: hf.PreTrainedTokenizerFast) -> None:
    """Trains a classifier until it gives every sentence its own label, of those that there are."""
    batch = before(list(SENTENCES), return_tensors="pt", padding=True)
    wanted = torch.arange(len(SENTENCES)) % len(NAMES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, labels=wanted).loss.backward()
        optimizer.step()


_SEQ2SEQ = {"encoder_model.onnx": LAYERS, "decoder_model.onnx": 2 * LAYERS, "decoder_with_past_model.onnx": 2 * LAYERS}
_MERGED = _SEQ2SEQ | {"decoder_model_merged.onnx": 4 * LAYERS}
_SEPARATE = {"no_post_process": True}
_TEXT2TEXT = "text2text-generation-with-past"

RECIPES = {
    "bert-classes": Recipe("text-classification", lambda: hf.BertForSequenceClassification(_bert(**_labels())), _text),
    "bert-taught": Recipe(
        "text-classification", lambda: hf.BertForSequenceClassification(_bert(**_labels())), _text, is_taught=True
    ),
    "distilbert-taught": Recipe(
        "text-classification",
        lambda: hf.DistilBertForSequenceClassification(_distilbert(**_labels())),
        _text_without_types,
        is_taught=True,
    ),
    "distilbert-classes": Recipe(
        "text-classification", lambda: hf.DistilBertForSequenceClassification(_distilbert(**_labels())), _text_without_types
    ),
    "albert-classes": Recipe("text-classification", lambda: hf.AlbertForSequenceClassification(_albert(**_labels())), _text),
    "electra-tokens": Recipe("token-classification", lambda: hf.ElectraForTokenClassification(_electra(**_labels())), _text),
    "roberta-answers": Recipe("question-answering", lambda: hf.RobertaForQuestionAnswering(_roberta()), _text_without_types),
    "mpnet-features": Recipe("feature-extraction", lambda: hf.MPNetModel(_mpnet()), _text_without_types),
    "roberta-masks": Recipe("fill-mask", lambda: hf.RobertaForMaskedLM(_roberta()), _text_without_types),
    "vit-classes": Recipe("image-classification", lambda: hf.ViTForImageClassification(_vit(**_labels())), _image_processor),
    "gpt2-goes-on": Recipe("text-generation-with-past", lambda: hf.GPT2LMHeadModel(_gpt2()), _text_to_go_on),
    "llama-goes-on": Recipe("text-generation-with-past", lambda: hf.LlamaForCausalLM(_llama()), _text_to_go_on),
    "gpt-neo-goes-on": Recipe("text-generation-with-past", lambda: hf.GPTNeoForCausalLM(_gpt_neo()), _text_to_go_on),
    "bart": Recipe(_TEXT2TEXT, lambda: hf.BartForConditionalGeneration(_bart()), _text_without_types, _SEQ2SEQ, _SEPARATE),
    "bart-merged": Recipe(_TEXT2TEXT, lambda: hf.BartForConditionalGeneration(_bart()), _text_without_types, _MERGED),
    "t5": Recipe(_TEXT2TEXT, lambda: hf.T5ForConditionalGeneration(_t5("relu")), _text_without_types, _SEQ2SEQ, _SEPARATE),
    "t5-merged": Recipe(_TEXT2TEXT, lambda: hf.T5ForConditionalGeneration(_t5("gated-gelu")), _text_without_types, _MERGED),
}
