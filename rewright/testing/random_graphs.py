"""A pass on generated models. Needs hypothesis."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

import onnx
from hypothesis import HealthCheck, Phase, given, settings

from rewright.passes.contract import Pass
from rewright.testing import strategies
from rewright.testing.checking import examine

SHRINKING_SECONDS: Final = 10.0
"""How long a smaller model that fails is looked for; hypothesis itself would take minutes, for each trial is a verified run."""


class _EnoughError(BaseException):
    """Ends hypothesis' search; it takes any Exception for a failure of the test."""


def leaves_unharmed(
    configured: Pass,
    count: int,
    parts: Collection[str] | None = None,
    *,
    before: str = "",
    shrinking_seconds: float = SHRINKING_SECONDS,
) -> None:
    """Checks that whatever a pass does to ``count`` generated models passes the gates and is done once.

    Args:
        configured: the pass.
        count: how many models, the same ones every time.
        parts: what they are made of, as in ``strategies.models``.
        before: chain text that is run first.
        shrinking_seconds: how long a smaller model is looked for once one has failed.

    Raises:
        AssertionError: a model is harmed; the message has the text of the smallest one.
    """
    failures: list[tuple[int, str, str]] = []
    deadline = float("inf")

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,  # a failure has to be seen again
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.models(parts=parts))
    def is_unharmed(model: onnx.ModelProto) -> None:
        nonlocal deadline
        if time.monotonic() > deadline:
            raise _EnoughError
        checked = examine(configured, model, sites=None, before=before, verify="model", must_prove=False)
        if checked.problems:
            deadline = min(deadline, time.monotonic() + shrinking_seconds)
            failures.append((len(model.graph.node), checked.message, onnx.printer.to_text(model)))
            raise AssertionError

    try:
        is_unharmed()
    except (AssertionError, _EnoughError):
        if not failures:
            raise
    if failures:
        _, message, text = min(failures)
        raise AssertionError(f"on a generated model, {message}\nthe model:\n{text}")
