"""From errors to exit statuses: one clear message for each, and a traceback only where it is asked for.

0 done, 1 a gate failed or a difference was found, 2 wrong usage or unreadable input, 130 interrupted, 141 the reader went away.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from rewright.cli import console
from rewright.model.errors import ModelError, PassError, PluginError, RewrightError, UsageError

DONE = 0
DIFFERENT = 1
UNUSABLE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

TRACEBACK_VARIABLE = "REWRIGHT_TRACEBACK"

_NEXT_STEPS: tuple[tuple[type[RewrightError], str], ...] = (
    (ModelError, "Check the file, and export it again if it is damaged."),
    (PluginError, "`rewright plugins` shows the state of each plugin."),
    (PassError, "Report it to the developer of the pass; `rewright passes NAME` names the owner."),
    (UsageError, "`rewright passes` lists the passes, `rewright passes NAME` the options of one."),
)

Parameters = ParamSpec("Parameters")


def guarded(command: Callable[Parameters, int]) -> Callable[Parameters, int]:
    """The command, with every exception turned into a message and an exit status."""

    @functools.wraps(command)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> int:
        try:
            return command(*arguments, **options)
        except (typer.TyperException, KeyboardInterrupt):
            raise  # both have their message in `main.run`
        except BaseException as error:
            return status_of(error)

    return run


def status_of(error: BaseException) -> int:
    """Prints the message for an error and returns the status to exit with."""
    if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        abandon_output()
        return BROKEN_PIPE
    if isinstance(error, KeyboardInterrupt):
        console.error("interrupted.", "Outputs are written whole or not at all; run the command again.")
        return INTERRUPTED
    if isinstance(error, RewrightError):
        default = next((step for kind, step in _NEXT_STEPS if isinstance(error, kind)), _NEXT_STEPS[-1][1])
        # a hint may be the place in a text alone, which stands on the lines after the first
        has_step = error.hint.partition("\n")[0].strip()
        console.error(error.message, error.hint if has_step else default + error.hint)
        return error.exit_status
    if isinstance(error, SystemExit):  # a signal's handler, or a plugin
        return error.code if isinstance(error.code, int) else UNUSABLE
    if isinstance(error, MemoryError):
        console.error("out of memory.", "Free some memory, or verify less: `--verify structure` runs no inference.")
    elif isinstance(error, OSError):
        place = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
        console.error(f"{error.strerror or error}{place}.", "Check the path, its permissions and the free space.")
    else:
        console.error(
            f"a bug in rewright: {type(error).__name__}: {error}",
            f"Set {TRACEBACK_VARIABLE}=1 to see where, and report it with the command and the model.",
        )
    return UNUSABLE


def status_of_usage(error: typer.TyperException) -> int:
    """Like `status_of`, for a command line that typer cannot parse."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "rewright"
    console.error(error.format_message(), f"`{command} --help` shows how it is used.")
    return UNUSABLE


def abandon_output() -> None:
    """Lets nothing more be written to a standard output that cannot take it, at the interpreter's exit least of all."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # it is no file, as in a test
        return
