"""The cells of the tables: which float types, from which opset on, and why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from rewright.ops.contract import CONTRACTS, OpContract
from rewright.ops.installed import DTYPES
from rewright.testing.backends.trials import OPSETS, Trial

SHORT: Final[Mapping[str, str]] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
NONE: Final = "no"
ALL: Final = "all"

_NO_KERNEL: Final = re.compile(r"the target '\w+' has no kernel for \S+( on \w+)?")
_OPSET: Final = re.compile(r", and the model is at (opset )?\d+$")


@dataclass
class Reasons:
    """The footnotes below a table."""

    texts: list[str] = field(default_factory=list)

    def mark(self, reason: str) -> str:
        """The number of a reason, which is noted if it is new."""
        if reason not in self.texts:
            self.texts.append(reason)
        return f"[{self.texts.index(reason) + 1}]"


def contract_of(op: str) -> OpContract | None:
    """The contract of an op that is written "com.microsoft.Gelu", "com.microsoft::Gelu" or "Gelu"."""
    domain, _, name = op.replace("::", ".").removeprefix("ai.onnx.").rpartition(".")
    return CONTRACTS.get(f"{domain}::{name}")


def types(names: Iterable[str]) -> str:
    """The float types in their order; one word for all, and for none."""
    wanted = set(names)
    found = [dtype for dtype in DTYPES if dtype in wanted]
    if len(found) == len(DTYPES):
        return ALL
    return " ".join(SHORT[dtype] for dtype in found) or NONE


def kernels(ops: Iterable[str], target: str) -> list[str]:
    """The float types for which the target runs one of the ops; an op without contract is standard, and runs everywhere."""
    contracts = [contract_of(op) for op in ops]
    found = {name for item in contracts for name in (DTYPES if item is None else item.kernels.get(target, ()))}
    return [dtype for dtype in DTYPES if dtype in found]


def summary(trials: Mapping[str, Sequence[Trial]]) -> str:
    """For which float types a pass fires: "f32; f16 from opset 20"."""
    found: dict[str, list[str]] = {}
    for dtype, entries in trials.items():
        if any(trial.ops for trial in entries):
            found.setdefault(_bounds(entries), []).append(dtype)
    parts = [f"{types(names)}{bounds}" for bounds, names in found.items()]
    return "; ".join(parts) or NONE


def _bounds(trials: Sequence[Trial]) -> str:
    fires = [bool(trial.ops) for trial in trials]
    first, last = fires.index(True), len(fires) - 1 - fires[::-1].index(True)
    since = f" from opset {trials[first].opset}" if trials[first].opset > OPSETS[0] else ""
    until = f" below opset {trials[last + 1].opset}" if last + 1 < len(trials) else ""
    return since + until


def outcome(trials: Sequence[Trial], reasons: Reasons) -> str:
    """What the pass puts in, from the lowest opset on: "no kernel; from opset 20 `Gelu`"."""
    if not trials:
        return "no such model"
    texts = [(trial.opset, _said(trial, reasons)) for trial in trials]
    groups = [(text, next(iter(items))[0]) for text, items in groupby(texts, key=lambda item: item[1])]
    return "; ".join(f"from opset {opset} {text}" if opset > OPSETS[0] else text for text, opset in groups)


def _said(trial: Trial, reasons: Reasons) -> str:
    if trial.ops:
        return ", ".join(f"`{op}`" for op in trial.ops)
    if _NO_KERNEL.fullmatch(trial.reason):
        return "no kernel"
    return f"{NONE} {reasons.mark(_OPSET.sub('', trial.reason))}"
