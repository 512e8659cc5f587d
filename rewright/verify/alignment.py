"""Which values of two models stand for each other where names do not tell: by their numbers, then by their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

import numpy as np

from rewright.verify.comparison import vacuity
from rewright.verify.tolerance import is_floating
from rewright.verify.trace import Seen

Agree = Callable[[Seen, Seen], bool]

_TELLING: Final = 8
"""Elements from which on equal numbers are no coincidence."""
_HEAD: Final = 16
_LONGEST: Final = 4_000
"""Values up to which sequences are aligned; the time grows with the square."""


@dataclass(frozen=True)
class Value:
    """A value of one model: its name, the op that makes it, and what was seen of it."""

    name: str
    op: str
    seen: Seen


def same_numbers(wanted: Iterable[Value], among: Sequence[Value], agree: Agree) -> dict[str, str]:
    """For each value that is found again in another model, the name that it has there.

    Values of few elements, of one element repeated, and integers are not looked for: they may be equal by chance.

    Args:
        wanted: the values to look for.
        among: the values of the other model, in the order of computation; the first that agrees is taken.
        agree: whether two values of one dtype and shape are equal within the tolerance.
    """
    grouped: dict[tuple[np.dtype, tuple[int, ...]], list[Value]] = {}
    for value in among:
        if _is_telling(value.seen):
            grouped.setdefault((value.seen.dtype, value.seen.shape), []).append(value)
    groups = {key: _Group(values) for key, values in grouped.items()}
    found = {}
    for value in wanted:
        group = groups.get((value.seen.dtype, value.seen.shape))
        if group is None or not _is_telling(value.seen):
            continue
        same = next((other for other in group.like(value.seen) if agree(value.seen, other.seen)), None)
        if same is not None:
            found[value.name] = same.name
    return found


def same_place(reference: Sequence[Value], candidate: Sequence[Value], settled: Mapping[str, str]) -> dict[str, str]:
    """The candidate's names of values that stand at the same place: made by the same op, of the same dtype and shape.

    Args:
        reference, candidate: values in the order of computation.
        settled: pairs that are known to belong together, which hold the two sequences together. They are not in the result.
    """
    if max(len(reference), len(candidate)) > _LONGEST:
        return {}
    owners = {other: name for name, other in settled.items()}
    tokens = [(value.name, settled[value.name]) if value.name in settled else _kind(value) for value in reference]
    others = [(owners[value.name], value.name) if value.name in owners else _kind(value) for value in candidate]
    blocks = SequenceMatcher(None, tokens, others, autojunk=False).get_matching_blocks()
    pairs = [(reference[one + step], candidate[other + step]) for one, other, size in blocks for step in range(size)]
    return {old.name: new.name for old, new in pairs if old.name not in settled}


class _Group:
    """The candidate's values of one dtype and shape; their first elements are compared all at once."""

    def __init__(self, values: Sequence[Value]) -> None:
        self.values = values
        self.heads = np.stack([_head(value.seen) for value in values])

    def like(self, seen: Seen) -> list[Value]:
        """Those that may agree; far fewer than there are."""
        scale = max(1.0, float(np.max(np.abs(_head(seen)), initial=0.0, where=np.isfinite(_head(seen)))))
        near = np.isclose(self.heads, _head(seen), rtol=0.1, atol=0.1 * scale, equal_nan=True).all(axis=1)
        return [value for value, is_near in zip(self.values, near.tolist(), strict=True) if is_near]


def _is_telling(seen: Seen) -> bool:
    return seen.sample.size >= _TELLING and is_floating(seen.dtype) and not vacuity(seen.sample)


def _head(seen: Seen) -> np.ndarray:
    return np.asarray(np.abs(seen.sample[:_HEAD]), dtype=np.float64)  # of a complex number, its magnitude


def _kind(value: Value) -> tuple[str, str, tuple[int, ...]]:
    return value.op, value.seen.dtype.name, value.seen.shape
