"""rewright: rewrites ONNX graphs in small, named, pluggable steps and checks the numbers after every one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rewright.api import Chain as Chain
    from rewright.api import compare_backends as compare_backends
    from rewright.api import explain as explain
    from rewright.api import optimize as optimize
    from rewright.api import reproduce as reproduce
    from rewright.bisection.search import bisect as bisect
    from rewright.measure.bench import bench as bench
    from rewright.model.carrier import Model as Model
    from rewright.model.errors import (
        ModelError as ModelError,
    )
    from rewright.model.errors import (
        PassError as PassError,
    )
    from rewright.model.errors import (
        PluginError as PluginError,
    )
    from rewright.model.errors import (
        RewrightError as RewrightError,
    )
    from rewright.model.errors import (
        UsageError as UsageError,
    )
    from rewright.model.load import load as load
    from rewright.passes.contract import Pass as Pass
    from rewright.passes.deferral import Deferral as Deferral
    from rewright.passes.graph_pass import GraphPass as GraphPass
    from rewright.passes.graph_pass import ModelPass as ModelPass
    from rewright.passes.graph_pass import graph_pass as graph_pass
    from rewright.passes.pattern_pass import Match as Match
    from rewright.passes.pattern_pass import PatternPass as PatternPass
    from rewright.passes.session import PassSession as PassSession
    from rewright.pattern.values import Value as Value
    from rewright.registry.catalog import Catalog as Catalog
    from rewright.registry.hookspecs import hookimpl as hookimpl
    from rewright.report.model import Report as Report
    from rewright.run import GateError as GateError
    from rewright.run import RunResult as RunResult
    from rewright.tuning.quantize import quantize as quantize
    from rewright.tuning.sensitivity import sensitivity as sensitivity

_HOMES = {
    "Catalog": "rewright.registry.catalog",
    "Chain": "rewright.api",
    "Deferral": "rewright.passes.deferral",
    "GateError": "rewright.run",
    "GraphPass": "rewright.passes.graph_pass",
    "Match": "rewright.passes.pattern_pass",
    "Model": "rewright.model.carrier",
    "ModelError": "rewright.model.errors",
    "ModelPass": "rewright.passes.graph_pass",
    "Pass": "rewright.passes.contract",
    "PassError": "rewright.model.errors",
    "PassSession": "rewright.passes.session",
    "PatternPass": "rewright.passes.pattern_pass",
    "PluginError": "rewright.model.errors",
    "Report": "rewright.report.model",
    "RewrightError": "rewright.model.errors",
    "RunResult": "rewright.run",
    "UsageError": "rewright.model.errors",
    "Value": "rewright.pattern.values",
    "bench": "rewright.measure.bench",
    "bisect": "rewright.bisection.search",
    "compare_backends": "rewright.api",
    "explain": "rewright.api",
    "graph_pass": "rewright.passes.graph_pass",
    "hookimpl": "rewright.registry.hookspecs",
    "load": "rewright.model.load",
    "optimize": "rewright.api",
    "quantize": "rewright.tuning.quantize",
    "reproduce": "rewright.api",
    "sensitivity": "rewright.tuning.sensitivity",
}

__all__ = [
    "Catalog",
    "Chain",
    "Deferral",
    "GateError",
    "GraphPass",
    "Match",
    "Model",
    "ModelError",
    "ModelPass",
    "Pass",
    "PassError",
    "PassSession",
    "PatternPass",
    "PluginError",
    "Report",
    "RewrightError",
    "RunResult",
    "UsageError",
    "Value",
    "__version__",
    "bench",
    "bisect",
    "compare_backends",
    "explain",
    "graph_pass",
    "hookimpl",
    "load",
    "optimize",
    "quantize",
    "reproduce",
    "sensitivity",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Loaded when first used: the worker process imports this package and needs none of it.
    if name == "verify":
        return import_module("rewright.verify")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rewright' has no attribute '{name}'")
