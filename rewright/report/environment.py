"""What a run depended on: versions, providers, processor, plugins."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rewright.report.model import EnvironmentReport, PluginReport

_DISTRIBUTIONS = ("rewright", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "protobuf", "pluggy", "pydantic")


def environment(plugins: Iterable[Any] = ()) -> EnvironmentReport:
    """The environment of this process; ``plugins`` are the catalog's plugin records."""
    import onnxruntime

    return EnvironmentReport(
        versions=dict(_installed()),
        providers=list(onnxruntime.get_available_providers()),
        cpu=_cpu(),
        plugins=[
            PluginReport(
                name=record.name,
                distribution=record.distribution or "",
                version=record.version or "",
                status=record.status,
                error=record.error or "",
            )
            for record in plugins
        ],
    )


@cache
def _installed() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
