"""rewright: rewrites ONNX graphs in small, named, pluggable steps and checks the numbers after every one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rewright.api import Chain, explain, optimize, reproduce
    from rewright.model.carrier import Model
    from rewright.model.errors import ModelError, PassError, PluginError, RewrightError, UsageError
    from rewright.model.load import load
    from rewright.passes.contract import Pass
    from rewright.passes.graph_pass import GraphPass, ModelPass, graph_pass
    from rewright.passes.pattern_pass import Match, PatternPass
    from rewright.registry.catalog import Catalog
    from rewright.registry.hookspecs import hookimpl
    from rewright.report.model import Report
    from rewright.run import GateError, RunResult

_HOMES = {
    "Catalog": "rewright.registry.catalog",
    "Chain": "rewright.api",
    "GateError": "rewright.run",
    "GraphPass": "rewright.passes.graph_pass",
    "Match": "rewright.passes.pattern_pass",
    "Model": "rewright.model.carrier",
    "ModelError": "rewright.model.errors",
    "ModelPass": "rewright.passes.graph_pass",
    "Pass": "rewright.passes.contract",
    "PassError": "rewright.model.errors",
    "PatternPass": "rewright.passes.pattern_pass",
    "PluginError": "rewright.model.errors",
    "Report": "rewright.report.model",
    "RewrightError": "rewright.model.errors",
    "RunResult": "rewright.run",
    "UsageError": "rewright.model.errors",
    "explain": "rewright.api",
    "graph_pass": "rewright.passes.graph_pass",
    "hookimpl": "rewright.registry.hookspecs",
    "load": "rewright.model.load",
    "optimize": "rewright.api",
    "reproduce": "rewright.api",
}

__all__ = [*_HOMES, "__version__", "verify"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: the worker process imports this package and needs none of it.
    if name == "verify":
        return import_module("rewright.verify")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rewright' has no attribute '{name}'")
