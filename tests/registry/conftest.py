"""A small catalog of passes that do nothing, so that chains can be tested without a model."""

from __future__ import annotations

from typing import ClassVar

import pytest

from rewright.passes.contract import Backend, Pass
from rewright.registry.catalog import Catalog
from rewright.registry.discovery import Contribution, PluginRecord


class FoldConstants(Pass):
    name = "fold"

    max_bytes: int = 1024
    exclude: tuple[str, ...] = ()


class Gelu(Pass):
    name = "gelu"
    after = ("fold",)
    backends: ClassVar[tuple[Backend, ...]] = ("standalone", "ort")

    tolerance: float = 1e-4
    approximate: str = "none"


class BiasGelu(Pass):
    name = "bias-gelu"
    after = ("gelu",)
    backends: ClassVar[tuple[Backend, ...]] = ("standalone", "ort")


class Attention(Pass):
    name = "attention"
    requires = ("fold",)

    heads: int


class Clean(Pass):
    name = "clean"


LEVELS = {"O0": "", "O1": "bias-gelu, gelu, fold", "O2": "O1, clean"}


@pytest.fixture
def catalog() -> Catalog:
    record = PluginRecord("test", "test-passes", "1.0")
    return Catalog([Contribution.of(record, [FoldConstants, Gelu, BiasGelu, Attention, Clean], LEVELS)])
