"""Tables of graphs that go through every backend of a pass: each computes what it did, and what was not rewritten has a reason.

The graphs of a table stand side by side in one model, so that a wrong rewrite of one has to be undone without its neighbours.
What comes out is judged here by running both models on ONNX Runtime, without rewright's own gates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from onnx import ModelProto
from onnx.parser import parse_model
from side_by_side import differs, feeds_for, ops_behind, run_sets, side_by_side

import rewright
from rewright.passes.deferral import Deferral
from rewright.registry.catalog import default_catalog
from rewright.report.model import PassReport
from rewright.run import RunResult

BACKENDS = ("standalone", "ort", "auto")


def graph(
    body: str,
    constants: str = "",
    inputs: str = "float[N, S, 8] x",
    outputs: str = "float[N, S, 8] y",
    opset: int = 17,
) -> ModelProto:
    """A model from the text of its nodes; constants as "float one = {1.0}"."""
    held = f"<{constants}>" if constants else ""
    head = f'<ir_version: {8 if opset < 20 else 10}, opset_import: ["": {opset}, "com.microsoft": 1]>'
    return parse_model(f"{head} g ({inputs}) => ({outputs}) {held} {{ {body} }}")


@dataclass(frozen=True)
class Row:
    """One graph.

    Attributes:
        fires: whether rewright's own rewrite takes it; auto takes at least that. None where either is right,
            and no reason has to be given.
        ort: whether ONNX Runtime's does, and is right; None where either is right.
        alone: not side by side with the others, since it keeps ONNX Runtime from working at all.
    """

    model: ModelProto
    fires: bool | None = True
    ort: bool | None = None
    alone: bool = False

    @property
    def opset(self) -> int:
        return next(entry.version for entry in self.model.opset_import if not entry.domain)


@dataclass(frozen=True)
class Table:
    """The graphs of one pass, by name.

    Attributes:
        becomes: the ops that the pass makes, of which one more shows that it fired; empty if any change shows that.
        options: further options of the pass, as chain text.
        explains: whether rewright's own rewrite says why it leaves what it looked at.
        absolute: by how much numbers may differ whatever their size.
    """

    name: str
    rows: dict[str, Row]
    becomes: tuple[str, ...] = ()
    options: str = ""
    explains: bool = True
    absolute: float = 1e-5

    @property
    def deferral(self) -> Deferral | None:
        return default_catalog().get(self.name).ort

    @property
    def backends(self) -> tuple[str, ...]:
        return tuple(default_catalog().get(self.name).backends)

    def chain(self, backend: str) -> str:
        return f"{self.name}{{backend={backend}{', ' if self.options else ''}{self.options}}}"

    def groups(self) -> Iterator[dict[str, Row]]:
        """The rows that stand side by side: those of one opset."""
        together: dict[Any, dict[str, Row]] = {}
        for key, row in self.rows.items():
            together.setdefault(key if row.alone else row.opset, {})[key] = row
        yield from together.values()

    def complaints(self, backend: str) -> list[str]:
        """What is wrong about the rows with this backend."""
        return [complaint for group in self.groups() for complaint in Judged(self, group, backend).complaints()]


class Judged:
    """The outcome of one model of a table with one backend."""

    def __init__(self, table: Table, rows: dict[str, Row], backend: str) -> None:
        self.table, self.rows, self.backend = table, rows, backend
        self.model = side_by_side({key: row.model for key, row in rows.items()})
        before = self.model.SerializeToString(deterministic=True)
        self.result: RunResult = rewright.optimize(self.model, chain=table.chain(backend), verify="model")
        assert self.model.SerializeToString(deterministic=True) == before
        self.records: list[PassReport] = self.result.report.passes

    def complaints(self) -> Iterator[str]:
        after = self.result.model.proto
        if self.result.report.verdict not in ("passed", "passed-with-rollbacks"):
            yield f"{self.backend}: the verdict is {self.result.report.verdict}: {self.result.report.reason}"
        for field in ("input", "output"):
            if list(getattr(after.graph, field)) != list(getattr(self.model.graph, field)):
                yield f"{self.backend}: the model's {field}s are others"
        sets = feeds_for(self.model)
        expected, actual = run_sets(self.model, sets), run_sets(self.result.model, sets)
        for key, row in self.rows.items():
            for complaint in self._about(key, row, differs(expected, actual, f"{key}/", self.table.absolute)):
                yield f"{self.backend}, {key}: {complaint}"

    def _about(self, key: str, row: Row, difference: str) -> Iterator[str]:
        if difference:
            yield f"WRONG: {difference}"
        fired, reasons = self.fired(key), self.reasons(key)
        has_own, has_ort = self.backend in ("standalone", "auto"), self.backend in ("ort", "auto")
        if not fired and ((row.fires and has_own) or (row.ort and has_ort)):
            yield f"was not rewritten: {reasons}"
        if fired and ((row.fires is False and not has_ort) or (row.ort is False and not has_own)):
            yield f"was rewritten to {ops_behind(self.result.model.proto, f'{key}/')}"
        if not fired and not reasons and self.needs_reason(key, row):
            yield "was not rewritten, and nothing says why"

    def needs_reason(self, key: str, row: Row) -> bool:
        """Whether the backend has to say why it has left this graph: ONNX Runtime's, where the graph has what it anchors on."""
        if row.fires is None:
            return False
        if self.backend == "standalone":
            return self.table.explains
        anchors = self.table.deferral.anchors if self.table.deferral is not None else ()
        return any(op in anchors for op in ops_behind(self.result.model.proto, f"{key}/"))

    def fired(self, key: str) -> bool:
        before, after = (Counter(ops_behind(model, f"{key}/")) for model in (self.model, self.result.model.proto))
        if not self.table.becomes:
            return before != after
        return any(after[op] > before[op] for op in self.table.becomes)

    def reasons(self, key: str) -> list[str]:
        """What the report says about this graph, or about the whole pass."""
        found = []
        for record in self.records:
            found += [item.reason for item in record.rejections if item.node.startswith(f"{key}/")]
            sites = {site.id: site for site in record.sites}
            for change in record.undone:
                about = [change.at, change.reason, *(name for site in change.sites for name in sites[site].removed)]
                if any(f"{key}/" in text for text in about):
                    found.append(change.reason)
            found += [*record.notes, *([record.reason] if record.status in ("rolled-back", "failed") else [])]
        return found


def table_tests(*tables: Table) -> Any:
    """The test of some tables: each with each backend that the pass has, and a reason where it has only its own."""

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("table", tables, ids=lambda table: table.name)
    def test(table: Table, backend: str) -> None:
        if backend in table.backends:
            complaints = table.complaints(backend)
            assert not complaints, "\n".join(complaints)
            return
        assert table.deferral is None or table.deferral.declines
        with pytest.raises(rewright.UsageError, match="backend"):
            rewright.Chain(table.chain(backend))

    return test
