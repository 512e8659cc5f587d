"""The entry point: parses the command line, runs the command, and ends with its exit status."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, NoReturn

import typer

import rewright
from rewright.cli import console
from rewright.cli.bench import bench
from rewright.cli.bisect import bisect
from rewright.cli.check import check
from rewright.cli.compare import verify
from rewright.cli.explain import explain
from rewright.cli.failures import INTERRUPTED, UNUSABLE, abandon_output, guarded, status_of, status_of_usage
from rewright.cli.listings import chains, passes, plugins
from rewright.cli.new_plugin import new_plugin
from rewright.cli.optimize import optimize
from rewright.cli.quantize import quantize
from rewright.cli.reproduce import reproduce
from rewright.cli.sensitivity import sensitivity

app = typer.Typer(name="rewright", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def main() -> NoReturn:
    """Runs the command line of this process; the console script's entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names in a model may hold anything
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, to their developers
    signal.signal(signal.SIGTERM, _end)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit status; raises nothing."""
    try:
        status = typer.main.get_command(app).main(args=list(arguments), prog_name="rewright", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return status_of_usage(error)
    except BaseException as error:
        if isinstance(error, OSError):
            abandon_output()
        return status_of(error)
    if status == INTERRUPTED:  # typer makes a status of KeyboardInterrupt
        return status_of(KeyboardInterrupt())
    return status if isinstance(status, int) else 0


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    """Ends in order, so that temporary files and the worker process go."""
    sys.exit(128 + signum)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> int:
    """Rewrites ONNX graphs in small, named, pluggable steps, and checks the numbers after every one.

    Exit status: 0 done and verified; 1 a check failed, or a difference was found; 2 wrong usage or unreadable input.
    """
    if version:
        console.write(f"rewright {rewright.__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        console.write(context.get_help())
        raise typer.Exit(UNUSABLE)
    return 0


for _command in (
    optimize,
    quantize,
    verify,
    check,
    explain,
    passes,
    chains,
    plugins,
    new_plugin,
    bisect,
    reproduce,
    bench,
    sensitivity,
):
    app.command()(guarded(_command))
