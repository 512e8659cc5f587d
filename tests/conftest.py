"""What tests of several rooms share: the command line, in this process and in one of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from rewright.cli.main import run

pytest_plugins = ["pytester"]  # has to stand in the topmost conftest

ROOT = Path(__file__).parent.parent

# Machines differ in speed, and a failure has to be seen again: no deadlines, no randomness from run to run.
settings.register_profile("rewright", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("rewright")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    def assert_one_error(self, status: int = 2) -> str:
        """Checks the status and that standard error holds one message with a next step; returns standard error."""
        assert self.status == status, self.err
        assert len(re.findall("^error: ", self.err, re.MULTILINE)) == 1, self.err
        assert len(re.findall("^hint: ", self.err, re.MULTILINE)) == 1, self.err
        assert "Traceback" not in self.err
        return self.err


CommandLine = Callable[..., Outcome]


@pytest.fixture
def command_line(capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """`command_line("verify", a, b)` in this process."""

    def execute(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        return Outcome(status, *capfd.readouterr())

    return execute


@pytest.fixture
def process() -> CommandLine:
    """`process("verify", a, b, path=folder)`: `python -m rewright`, as a user runs it, with modules of that folder; slower."""

    def execute(*arguments: str | Path, path: Path | None = None, **variables: str) -> Outcome:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("REWRIGHT_")}
        if path is not None:
            kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), kept.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "rewright", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=kept | variables, capture_output=True, text=True, timeout=120, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return execute
