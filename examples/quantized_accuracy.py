"""What each way to quantize costs a classifier that was really trained: it is trained, exported, quantized and tested here.

Usage: python quantized_accuracy.py [--task digits|letters] [--exporter torchscript|dynamo] [--folder DIR] [--only TEXT]
with `pip install "rewright[hf]"`. One task is to read the digits that scikit-learn brings along, images of 8 x 8 that a small
vision transformer sees in patches of 2 x 2; the other is to say which of eight letters a text holds most of, for a small BERT.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import rich.box
import rich.console
import rich.table
import torch
import transformers as hf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import rewright
from rewright.ops.lowering import lower

Arrays = Mapping[str, np.ndarray]

LEVELS = ("O0", "O2")
METHODS = ("minmax", "entropy", "percentile", "distribution")
BATCH, CALIBRATION_SETS, CALIBRATION_BATCH = 32, 8, 32


@dataclass(frozen=True)
class Task:
    """Inputs by name and right answers, to train on and to test on, and a model that has not seen them."""

    model: Any
    train: Arrays
    train_labels: np.ndarray
    test: Arrays
    test_labels: np.ndarray
    epochs: int


@dataclass(frozen=True)
class Way:
    """One way to quantize.

    Attributes:
        kind: "float32", "int8", "int4", "float16" or "bfloat16", which says what it may cost.
        steps: chain text; ``DATA`` stands for the folder with calibration data.
        target: where the result runs; bfloat16 is for GPUs.
    """

    kind: str
    steps: str
    target: str = "cpu"


@dataclass(frozen=True)
class Row:
    """What one way gives, on the test split.

    Attributes:
        accuracy: share of right answers.
        sqnr: 10 log10(sum y^2 / sum (y - y')^2) of the logits, in dB; infinite for the float model itself.
        quantized, candidates: how many nodes were quantized, of how many that the passes are for.
    """

    way: Way
    chain: str
    accuracy: float
    sqnr: float
    bytes: int
    quantized: int
    candidates: int
    verdict: str


def ways() -> list[Way]:
    """All that is compared. Weights of 4 bits are in blocks of 32, a scale for each."""
    static = "quantize-static{calibration=DATA, "
    weights = "quantize-weights{bits="
    made = [Way("float32", ""), Way("int8", "quantize-dynamic"), Way("int8", "quantize-dynamic{weight=uint8}")]
    made += [Way("int8", f"{static}method={method}}}") for method in METHODS]
    made += [Way("int8", f"{static}format=qoperator}}")]
    made += [Way("int8", "smooth-quant{calibration=DATA}, quantize-static{calibration=DATA}")]
    made += [Way("int8", f"{weights}8}}")]
    made += [Way("int4", f"{weights}4{more}}}") for more in ("", ", symmetric=false", ", algorithm=hqq, symmetric=false")]
    made += [Way("int4", f"{weights}4, algorithm=gptq, calibration=DATA}}")]
    return [*made, Way("float16", "float16"), Way("bfloat16", "bfloat16", "cuda")]


def digits() -> Task:
    """1797 images of 8 x 8, four tenths of them to test on; a vision transformer with 16 patches of 2 x 2."""
    found = load_digits()
    images = (found.images[:, None] / 8.0 - 1.0).astype(np.float32)
    split = train_test_split(images, found.target, test_size=0.4, random_state=0, stratify=found.target)
    train, test, train_labels, test_labels = split
    config = hf.ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
    )
    made = hf.ViTForImageClassification(config)
    return Task(made, {"pixel_values": train}, train_labels, {"pixel_values": test}, test_labels, epochs=20)


def letters() -> Task:
    """Texts of 8 to 24 letters; which of the first eight is there most often? A BERT with a mask over the padding."""
    generator = np.random.default_rng(0)
    count, longest, padding = 6000, 24, 0
    rows, masks, answers = [], [], []
    while len(rows) < count:
        length = int(generator.integers(8, longest + 1))
        row = np.where(generator.random(length) < 0.8, generator.integers(1, 9, length), generator.integers(9, 27, length))
        times = np.bincount(row, minlength=27)[1:9]
        if np.sort(times)[-1] == np.sort(times)[-2]:
            continue  # no answer
        rows.append(np.pad(row, (0, longest - length), constant_values=padding))
        masks.append((np.arange(longest) < length).astype(np.int64))
        answers.append(int(times.argmax()))
    inputs = {"input_ids": np.stack(rows).astype(np.int64), "attention_mask": np.stack(masks)}
    config = hf.BertConfig(
        vocab_size=27,
        num_labels=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=longest,
    )
    cut, labels = 4 * count // 5, np.asarray(answers)
    train, test = ({name: array[part] for name, array in inputs.items()} for part in (slice(cut), slice(cut, None)))
    return Task(hf.BertForSequenceClassification(config), train, labels[:cut], test, labels[cut:], epochs=8)


def trained(task: Task) -> torch.nn.Module:
    """The model of a task after training; the same every time on one machine."""
    torch.manual_seed(0)
    task.model.init_weights()
    task.model.train()
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.from_numpy(array) for name, array in task.train.items()}
    labels = torch.from_numpy(task.train_labels)
    optimizer = torch.optim.AdamW(task.model.parameters(), weight_decay=0.01)
    steps = task.epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps)
    for _ in range(task.epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            logits = task.model(**{name: tensor[rows] for name, tensor in inputs.items()}).logits
            loss = torch.nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return task.model.eval()


def export(task: Task, model: torch.nn.Module, path: Path, exporter: str) -> None:
    """Writes the model with a free batch size; its one output is the logits."""
    names = list(task.train)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(**dict(zip(names, inputs, strict=True))).logits

    example = tuple(torch.from_numpy(array[:2]) for array in task.train.values())
    named: dict[str, Any] = {"input_names": names, "output_names": ["logits"]}
    if exporter == "dynamo":
        batch = torch.export.Dim("batch", min=1)
        shapes = {"inputs": tuple({0: batch} for _ in names)}
        torch.onnx.export(
            Logits(), example, path, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False, **named
        )
    else:
        axes = {name: {0: "batch"} for name in (*names, "logits")}
        torch.onnx.export(Logits(), example, path, dynamo=False, opset_version=17, dynamic_axes=axes, **named)


def write_calibration(task: Task, folder: Path) -> None:
    """Some of the training data, a file for each batch: what ``calibration`` takes, and what steps are verified on."""
    folder.mkdir(exist_ok=True)
    for index in range(CALIBRATION_SETS):
        rows = slice(index * CALIBRATION_BATCH, (index + 1) * CALIBRATION_BATCH)
        np.savez(folder / f"{index}.npz", **{name: array[rows] for name, array in task.train.items()})


def logits_of(path: Path, inputs: Arrays) -> np.ndarray:
    """What a model says about the inputs, run as users run it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))[0]


def measure(path: Path, task: Task, data: Path, levels: Sequence[str] = LEVELS, only: str = "") -> Iterator[Row]:
    """Quantizes each way, on the export as it is and after O2; on the test split each result is held against the export."""
    wanted = logits_of(path, task.test)
    verifying = [data / "0.npz", data / "1.npz"]
    for way in ways():
        for level in levels:
            chain = ", ".join(part for part in (level, way.steps) if part)
            if only not in chain:
                continue
            ran = rewright.Chain(chain.replace("DATA", f'"{data}"')).run(
                path, target=way.target, inputs=[dict(np.load(each)) for each in verifying]
            )
            output = path.with_name("quantized.onnx")
            ran.save(output)
            runnable = output
            if way.target != "cpu":  # what has no kernel here is run through its definition, bfloat16 between casts
                runnable = path.with_name("runnable.onnx")
                lower(ran.model).save(runnable)
            yield _row(way, chain, ran.report, output.stat().st_size, task, wanted, logits_of(runnable, task.test))


def _row(way: Way, chain: str, report: Any, size: int, task: Task, wanted: np.ndarray, got: np.ndarray) -> Row:
    noise = float(np.square(wanted.astype(np.float64) - got).sum())
    signal = float(np.square(wanted.astype(np.float64)).sum())
    coverage = {} if report.quantization is None else report.quantization.coverage
    counts = [(each.quantized, each.total) for each in coverage.values()]
    done, total = (sum(numbers) for numbers in zip(*counts, strict=True)) if counts else (0, 0)
    accuracy = float((got.argmax(-1) == task.test_labels).mean())
    sqnr = 10.0 * np.log10(signal / noise) if noise else np.inf
    return Row(way, chain, accuracy, float(sqnr), size, done, total, report.verdict)


def table(rows: list[Row], title: str) -> rich.table.Table:
    """One line for each row."""
    made = rich.table.Table(title=title, box=rich.box.MARKDOWN, title_justify="left")
    for name in ("chain", "accuracy", "SQNR", "kB", "quantized", "verdict"):
        made.add_column(name, justify="left" if name in ("chain", "verdict") else "right", no_wrap=True)
    for row in rows:
        cells = (
            f"{100 * row.accuracy:.2f} %",
            f"{row.sqnr:.1f} dB",
            f"{row.bytes / 1000:.0f}",
            f"{row.quantized} of {row.candidates}" if row.candidates else "",
            row.verdict,
        )
        made.add_row(row.chain, *cells)
    return made


TASKS = {"digits": digits, "letters": letters}


def prepare(task_name: str, exporter: str, folder: Path) -> tuple[Task, Path, Path]:
    """The task, the trained and exported model, and the folder with calibration data."""
    torch.manual_seed(0)
    task = TASKS[task_name]()
    path, data = folder / f"{task_name}.onnx", folder / f"{task_name}.calibration"
    export(task, trained(task), path, exporter)
    write_calibration(task, data)
    return task, path, data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--exporter", choices=("torchscript", "dynamo"), default="torchscript")
    parser.add_argument("--folder", type=Path, help="where the models stay; by default nowhere")
    parser.add_argument("--only", default="", help="only chains that hold this text")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if given.folder is None else given.folder
        folder.mkdir(parents=True, exist_ok=True)
        task, path, data = prepare(given.task, given.exporter, folder)
        rows = list(measure(path, task, data, only=given.only))
    title = f"{given.task}, exported by {given.exporter}, {len(task.test_labels)} test samples"
    rich.console.Console(width=150).print(table(rows, title))


if __name__ == "__main__":
    main()
