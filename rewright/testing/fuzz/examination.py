"""One graph under every chain: each level, each pass by itself, some passes in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from onnx import ModelProto

from rewright.registry.catalog import Catalog
from rewright.testing.fuzz.checks import Examiner, Finding
from rewright.testing.strategies import ROOMS, DType, models

_LONGEST = 6
_FUSED: Final = ("normalizations", "activations", "attention", "embeddings", "rotary", "residual-norm", "linear")
_DTYPES: Final[tuple[DType, ...]] = ("float32", "float32", "float32", "float16", "float64")


class _Enough(BaseException):
    """Ends generation; hypothesis catches Exceptions."""


class _BrokenError(BaseException):
    """The fuzzer itself is broken, which hypothesis would take for a counterexample."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def examine(examiner: Examiner, model: ModelProto, passes: Sequence[str], number: int) -> Iterator[tuple[ModelProto, Finding]]:
    """What is wrong, each with the model that the chain was run on.

    Args:
        model: the graph.
        passes: names of passes and levels to try.
        number: of the graph; it decides about the order of passes and about inputs.
    """
    levels = [name for name in passes if name in examiner.catalog.levels]
    alone = [name for name in passes if name not in examiner.catalog.levels]
    for level in _without_prefixes(levels, examiner.catalog):
        yield from _judged(examiner, model, level, number, is_idempotent=True)
    prepared = examiner.prepared(model) if alone else None
    if prepared is not None:
        for name in alone:
            yield from _judged(examiner, prepared, name, number, is_idempotent=True)
    choices = random.Random(number)
    some = [choices.choice(passes) for _ in range(choices.randint(2, _LONGEST))]
    yield from _judged(examiner, model, ", ".join(some), number, is_idempotent=False)


def _judged(
    examiner: Examiner, model: ModelProto, chain: str, number: int, *, is_idempotent: bool
) -> Iterator[tuple[ModelProto, Finding]]:
    finding = examiner.judge(model, chain, is_idempotent=is_idempotent, seed=number)
    if finding is not None:
        yield model, finding


def _without_prefixes(levels: Sequence[str], catalog: Catalog) -> list[str]:
    """Levels that no other one begins with: the gates between passes judge those on the way."""
    texts = {level: catalog.levels[level] for level in levels}
    return [level for level in levels if texts[level] and not any(_begins_with(text, level) for text in texts.values())]


def _begins_with(text: str, level: str) -> bool:
    return text.partition(",")[0].strip() == level


def generate(number: int, take: Callable[[ModelProto], bool]) -> None:
    """Generates graphs from a seed, until ``take`` gives False for one. The same seed gives the same graphs.

    The graphs of one seed are made of a few kinds of parts only, others for each seed: what has a chance of each kind has little
    of any, and meets few of the pairs (swarm testing, Groce et al. 2012).

    Args:
        number: the seed.
        take: called with each graph.
    """

    choices = random.Random(number)
    parts = [*choices.sample(sorted(ROOMS), choices.randint(1, 3)), *choices.sample(_FUSED, choices.randint(1, 2))]
    most, dtypes = choices.choice((2, 4, 7)), choices.sample(_DTYPES, choices.randint(1, 3))

    @seed(number)
    @settings(
        max_examples=1_000_000,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(models(parts=parts, max_parts=most, dtypes=dtypes))
    def run(model: ModelProto) -> None:
        try:
            goes_on = take(model)
        except Exception as error:
            raise _BrokenError(error) from error
        if not goes_on:
            raise _Enough

    try:
        run()
    except _Enough:
        return
    except _BrokenError as broken:
        raise broken.error from broken
