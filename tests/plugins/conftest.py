"""Builds the plugin distributions of this folder as wheels and installs them into folders of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def plugin_site(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`plugin_site("acme-rewright", ...)`: a folder with those plugins installed, to put on PYTHONPATH."""
    wheels: dict[str, Path] = {}
    sites: dict[tuple[str, ...], Path] = {}

    def wheel(name: str) -> Path:
        if name not in wheels:
            folder = tmp_path_factory.mktemp(f"{name}-wheel")
            _pip("wheel", "--no-build-isolation", "--wheel-dir", folder, HERE / name)
            (wheels[name],) = folder.glob("*.whl")
        return wheels[name]

    def site(*names: str) -> Path:
        if names not in sites:
            folder = tmp_path_factory.mktemp("site")
            _pip("install", "--target", folder, *map(wheel, names))
            sites[names] = folder
        return sites[names]

    return site


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_python(site, "-c", code)`: Python in a process of its own, with that folder's plugins installed."""

    def run(site: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        root = HERE.parents[1]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("REWRIGHT_")}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, (site, root))), **variables}
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


def _pip(verb: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
