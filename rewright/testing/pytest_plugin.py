"""The pytest plugin ``rewright``: fixtures, and with ``--rewright-report FILE`` a report on every check of the session.

Pytest loads this module wherever rewright is installed, so it imports nothing of ours before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from rewright.registry.catalog import Catalog
    from rewright.testing.builder import GraphBuilder
    from rewright.testing.checking import CheckedRun

_WORKER_KEY: Final = "rewright_checks"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("rewright").addoption(
        "--rewright-report",
        metavar="FILE",
        default=None,
        help="write what every check_pass of the session did and measured: .html is a page, anything else is JSON",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--rewright-report"):
        config.pluginmanager.register(CheckCollector(config), "rewright-report")


@pytest.fixture(scope="session")
def rewright_catalog() -> Catalog:
    """The catalog of built-in and installed passes."""
    from rewright.registry.catalog import default_catalog

    return default_catalog()


@pytest.fixture
def check_pass() -> Callable[..., Any]:
    """``rewright.testing.check_pass``."""
    from rewright.testing.checking import check_pass as check

    return check


@pytest.fixture
def assert_parity() -> Callable[..., Any]:
    """``rewright.testing.assert_parity``."""
    from rewright.testing.parity import assert_parity as check

    return check


@pytest.fixture
def graph_builder() -> type[GraphBuilder]:
    """``rewright.testing.GraphBuilder``."""
    from rewright.testing.builder import GraphBuilder

    return GraphBuilder


@pytest.fixture
def rewright_tmp(tmp_path: Path) -> Callable[..., Path]:
    """``rewright_tmp(source, name="model.onnx", external_data=False)``: a model written to the test's own folder; its path."""

    def write(source: Any, name: str = "model.onnx", external_data: bool = False) -> Path:
        from rewright.testing.sources import model_of

        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        model_of(source).save(path, external_data)
        return path

    return write


class CheckCollector:
    """Collects the checks of a session, its xdist workers' included, and writes the report at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.target = Path(config.getoption("--rewright-report"))
        self.checks: list[dict[str, Any]] = []
        self.problem = ""
        self._current = ""

    @property
    def is_worker(self) -> bool:
        return hasattr(self.config, "workerinput")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Notes which test it is whose checks come next."""
        self._current = item.nodeid
        return (yield)

    def pytest_sessionstart(self) -> None:
        from rewright.testing.checking import OBSERVERS

        OBSERVERS.append(self._observe)

    def _observe(self, checked: CheckedRun) -> None:
        report = json.loads(checked.result.report.to_json())
        self.checks.append({"test": self._current, "asked": checked.asked, "problems": list(checked.problems), "report": report})

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Takes over what an xdist worker has collected; a worker that died has left nothing."""
        self.checks += json.loads(getattr(node, "workeroutput", {}).get(_WORKER_KEY, "[]"))

    def pytest_sessionfinish(self) -> None:
        from rewright.testing.checking import OBSERVERS

        OBSERVERS.remove(self._observe)
        if self.is_worker:
            self.config.workeroutput[_WORKER_KEY] = json.dumps(self.checks)  # type: ignore[attr-defined]
            return
        from rewright.testing.session_report import write

        try:
            write(self.checks, self.target)
        except OSError as error:
            self.problem = error.strerror or str(error)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        wrong = sum(bool(check["problems"]) for check in self.checks)
        sites = sum(len(record["sites"]) for check in self.checks for record in check["report"]["passes"])
        line = f"rewright: {len(self.checks)} checks of passes, {sites} sites, {wrong} with problems"
        where = f"no report, {self.target} cannot be written: {self.problem}" if self.problem else f"report: {self.target}"
        terminalreporter.write_line(f"{line}; {where}", red=bool(wrong or self.problem))
