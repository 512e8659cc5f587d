"""A classifier of transformers, exported by Optimum, optimized and verified by rewright, in a pipeline as before.

Usage: python text_classification.py MODEL SAVE_DIR, with `pip install "rewright[hf]"`; MODEL is a name on the Hub or a folder.
"""

import sys

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

from rewright.integrations import huggingface

SENTENCES = ["what a lovely morning!", "the train is late again.", "nobody knows."]


def main(source: str, save_dir: str) -> None:
    """Optimizes ``source`` into ``save_dir`` and shows what both say about a few sentences."""
    exported = ORTModelForSequenceClassification.from_pretrained(source, export=True)
    result = huggingface.optimize(exported, save_dir, level="O2")
    result.report.show()

    optimized = ORTModelForSequenceClassification.from_pretrained(save_dir)
    tokenizer = AutoTokenizer.from_pretrained(save_dir)
    for name, model in (("exported", exported), ("optimized", optimized)):
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
        for sentence, answer in zip(SENTENCES, classify(SENTENCES, batch_size=len(SENTENCES)), strict=True):
            print(f"{name}: {sentence} {answer['label']} {answer['score']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
