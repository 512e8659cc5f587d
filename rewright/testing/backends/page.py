"""The page docs/backends.md: every pass of a catalog with its backends, targets and float types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rewright.ops.installed import DTYPES, registered_dtypes
from rewright.passes.contract import Pass, Target
from rewright.passes.deferral import Deferral
from rewright.registry.catalog import Catalog
from rewright.report.files import template
from rewright.testing.backends.cells import ALL, NONE, SHORT, Reasons, contract_of, kernels, outcome, summary, types
from rewright.testing.backends.trials import DEFERRED_AT, OPSETS, STANDARD_SINCE, TARGETS, deferred, tried, tried_passes

VERSIONS: Final = ("1.31", "1.32")
"""The versions of ONNX Runtime that the page holds for."""

COMMAND: Final = "python -m rewright.testing.backends --no-plugins > docs/backends.md"
"""What writes the page anew."""


@dataclass(frozen=True)
class PassRow:
    """For which float types a pass fires by itself, a cell for each target, and who else carries it out."""

    name: str
    standalone: Sequence[str]
    ort: str
    is_tried: bool


@dataclass(frozen=True)
class TrialTable:
    """What a pass put into its example: by target, a cell for each float type."""

    name: str
    rows: Mapping[str, Sequence[str]]
    reasons: Sequence[str]


@dataclass(frozen=True)
class DeferralRow:
    """What ONNX Runtime runs for a pass, what that may put in, and for which float types it did, a cell for each target."""

    name: str
    optimizers: str
    classes: str
    makes: str
    kept: Sequence[str]


@dataclass(frozen=True)
class OpRow:
    """For which float types the targets run an op, a cell for each, and where that is from."""

    op: str
    kernels: Sequence[str]
    source: str


def page(catalog: Catalog) -> str:
    """The whole page in Markdown.

    The fusion passes of rewright are tried; what is said of others that put in ops of their own follows from the op contracts.
    """
    passes = [catalog.get(name) for name in catalog]
    tried_ones = [item.name for item in passes if item.name in tried_passes()]
    text = template("rewright.testing", "backends.md").render(
        passes=[_pass_row(item) for item in passes],
        tables=[_trial_table(name) for name in tried_ones],
        deferrals=[_deferral_row(item) for item in passes if "ort" in item.backends and item.ort is not None],
        ops=[*_contract_rows(passes), *_standard_rows()],
        targets=TARGETS,
        dtypes=list(DTYPES),
        short=SHORT,
        versions=" and ".join(VERSIONS),
        opsets=OPSETS,
        deferred_at=DEFERRED_AT,
        command=COMMAND,
    )
    return text.rstrip("\n") + "\n"


def _pass_row(item: type[Pass]) -> PassRow:
    is_tried = item.name in tried_passes()
    return PassRow(item.name, [_standalone(item, target) for target in TARGETS], _carriers(item), is_tried)


def _standalone(item: type[Pass], target: Target) -> str:
    if "standalone" not in item.backends:
        return NONE
    if item.name in tried_passes():
        return summary({dtype: tried(item.name, target, dtype) for dtype in DTYPES})
    return types(kernels(item.emits, target)) if item.emits else ALL


def _carriers(item: type[Pass]) -> str:
    """Who carries the pass out for the backend ort, or why nobody does."""
    if item.ort is None:
        if item.carrier:
            return f"`{item.carrier}`"
        return "it is ONNX Runtime's" if "ort" in item.backends else "no counterpart"
    return f"declines: {item.ort.declines}" if item.ort.declines else _code((*item.ort.optimizers, *item.ort.classes))


def _trial_table(name: str) -> TrialTable:
    reasons = Reasons()
    rows: dict[str, list[str]] = {
        target: [outcome(tried(name, target, dtype), reasons) for dtype in DTYPES] for target in TARGETS
    }
    return TrialTable(name, rows, reasons.texts)


def _deferral_row(item: type[Pass]) -> DeferralRow:
    ort = item.ort or Deferral()
    kept = [_kept(item.name, ort, target) for target in TARGETS]
    makes = _code(op.replace("::", ".") for op in ort.makes)
    return DeferralRow(item.name, _code(ort.optimizers) or "none", _code(ort.classes) or "none", makes or "nothing new", kept)


def _kept(name: str, ort: Deferral, target: Target) -> str:
    if not ort.makes:
        return ALL
    able = kernels(ort.makes, target)
    if name not in tried_passes():
        return types(able)
    return types(dtype for dtype in able if deferred(name, target, dtype))


def _contract_rows(passes: Iterable[type[Pass]]) -> Iterator[OpRow]:
    """The ops outside the standard that passes put in."""
    for op in dict.fromkeys(op.replace("::", ".").removeprefix("ai.onnx.") for item in passes for op in item.emits):
        contract = contract_of(op)
        if contract is None:
            yield OpRow(op, ["unknown"] * len(TARGETS), "no contract")
        else:
            yield OpRow(op, [types(kernels([op], target)) for target in TARGETS], contract.source.partition(":")[0])


def _standard_rows() -> Iterator[OpRow]:
    """The standard ops that passes put in, with what the installed ONNX Runtime has kernels for."""
    for op, since in STANDARD_SINCE.items():
        cells = [types(registered_dtypes("", op, opset=since)) if target == "cpu" else "standard" for target in TARGETS]
        yield OpRow(op, cells, f"ONNX {op}-{since}")


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
