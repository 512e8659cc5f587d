"""The kit for those who write passes: check a pass in one call, compare two models, build graphs, a conformance suite.

The names are loaded when they are first used, so that pytest, which loads the plugin of this package always, starts as fast
as without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewright.testing.builder import GraphBuilder as GraphBuilder
    from rewright.testing.checking import check_pass as check_pass
    from rewright.testing.checking import refuses as refuses
    from rewright.testing.conformance import PassConformance as PassConformance
    from rewright.testing.parity import assert_parity as assert_parity
    from rewright.testing.sources import parse as parse

_HOMES = {
    "GraphBuilder": "rewright.testing.builder",
    "PassConformance": "rewright.testing.conformance",
    "assert_parity": "rewright.testing.parity",
    "check_pass": "rewright.testing.checking",
    "parse": "rewright.testing.sources",
    "refuses": "rewright.testing.checking",
}

__all__ = ["GraphBuilder", "PassConformance", "assert_parity", "check_pass", "parse", "refuses"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewright.testing' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
