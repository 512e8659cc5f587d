"""Typed errors. Each message says what happened and where; the hint says what to do next."""

from __future__ import annotations


class RewrightError(Exception):
    """Base of every error that rewright raises on purpose.

    Attributes:
        message: what happened, and where.
        hint: what the user can do next; may be empty.
        exit_status: the status with which the command line ends on this error.
    """

    exit_status = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class ModelError(RewrightError):
    """A model cannot be read or written."""


class ScratchError(ModelError):
    """The folder for temporary files cannot take what a pass made: no fault of the pass, and no later pass would fare better."""


class UsageError(RewrightError):
    """A pass, option, chain, level or input that the caller named is wrong."""


class SelectionError(UsageError):
    """A name or a pattern that selects nodes fits none of the model: the run cannot do what was asked for, and ends."""


class PluginError(RewrightError):
    """A plugin is broken, or two plugins claim the same name."""


class PassError(RewrightError):
    """A pass broke its contract; the message names the pass and who must act."""

    exit_status = 1
