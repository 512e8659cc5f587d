"""Keeps what goes wrong at one place of a model from costing a fusion class of ``onnxruntime.transformers`` the other places.

A class visits its anchors one by one, and an exception at one of them ends it, often with half a change made. Here the anchors
that raise are collected, and the work is done once more on the untouched model without them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from rewright.passes.ort.fusion_model import transformers_module

Result = TypeVar("Result")

_MOST_ROUNDS: Final = 4
_MOST_WARNINGS: Final = 8


@dataclass
class Guarded:
    """What happened in the round that counts.

    Attributes:
        left_out: the anchors that raised, by the name of the class: the name of the node, and what was raised.
        fired: at how many anchors each class changed something.
    """

    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)


def guarded(work: Callable[[], Result]) -> tuple[Result, Guarded]:
    """What ``work`` returns, which applies fusion classes to a model that it makes; anchors that raise are left out.

    Raises:
        Exception: what ``work`` raises although every anchor that raised is left out.
    """
    skipped: dict[str, dict[str, str]] = {}
    for _ in range(_MOST_ROUNDS):
        now = Guarded(left_out={name: dict(anchors) for name, anchors in skipped.items()})
        problem: Exception | None = None
        with _watched(now):
            try:
                result = work()
            except Exception as error:  # what a class of another project raises has no base of its own
                problem = error
        if now.left_out == skipped:
            if problem is not None:
                raise problem
            return result, now
        skipped = now.left_out
    raise RuntimeError(f"nodes that raise turned up in each of {_MOST_ROUNDS} rounds")


@contextlib.contextmanager
def _watched(now: Guarded) -> Iterator[None]:
    """While it lasts, every fusion class goes past the anchors that are left out, and past those that raise."""
    base = transformers_module("fusion_base").Fusion
    apply = base.apply

    def watched_apply(fusion: Any) -> None:
        name = type(fusion).__name__
        skipped = now.left_out.get(name, {})
        raised: dict[str, str] = {}
        fuse = fusion.fuse

        def watched_fuse(node: Any, *maps: Any) -> None:
            anchor = node.name or next(filter(None, node.output), "")
            if anchor in skipped:
                return
            before = _state(fusion, node)
            try:
                fuse(node, *maps)
            except Exception as error:  # what the classes raise has no base of its own
                raised[anchor] = described(error)
            if _state(fusion, node) != before:
                now.fired[name] = now.fired.get(name, 0) + 1
                fusion.model.forget_makers_after(fusion.nodes_to_remove[before[1] :], fusion.nodes_to_add[before[0] :])

        fusion.fuse = watched_fuse
        fusion.model.remember_makers(True)
        try:
            apply(fusion)
        finally:
            fusion.fuse = fuse
            fusion.model.remember_makers(False)
            if raised:
                now.left_out.setdefault(name, {}).update(raised)

    base.apply = watched_apply
    try:
        yield
    finally:
        base.apply = apply


def _state(fusion: Any, node: Any) -> tuple[Any, ...]:
    """What a change at an anchor changes."""
    counted = sum(fusion.fused_count.values()), getattr(fusion, "count", 0)
    return (
        len(fusion.nodes_to_add),
        len(fusion.nodes_to_remove),
        counted,
        list(node.input),
        list(node.output),
        len(node.attribute),
    )


def told(name: str, left_out: Mapping[str, str]) -> str:
    """A sentence on the nodes that the class ``name`` has left out."""
    first, reason = next(iter(left_out.items()))
    others = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    return f"{name} raised at {first}{others}, which it therefore left alone: {reason}"


def described(error: BaseException) -> str:
    """The kind of the error, its first line, and where in ``onnxruntime.transformers`` it was raised."""
    text = str(error).strip().partition("\n")[0]
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    folder = os.path.dirname(str(transformers_module("fusion_base").__file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.dirname(frame.filename) == folder]
    return f"{message} (in {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else message


@contextlib.contextmanager
def quiet(notes: list[str]) -> Iterator[None]:
    """Keeps what is printed and logged meanwhile from the streams; warnings become notes, each once."""
    handler = _Notes(notes)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.removeHandler(handler)


class _Notes(logging.Handler):
    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().partition("\n")[0]
        if text not in self._notes and len(self._notes) < _MOST_WARNINGS:
            self._notes.append(text)
