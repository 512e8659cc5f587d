"""Chained steps of a model with a cache: what it hands out as present is its past in the next step, as when text is generated.

A rotary embedding that counts from the wrong position, or a present that is stored before it is rotated, may agree on one step
with a made-up past. It cannot agree on the steps that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewright.model.carrier import Model
from rewright.verify.cache_lengths import is_of_an_encoder
from rewright.verify.cache_pairs import CachePair, cache_pairs
from rewright.verify.inputs import InputSet
from rewright.verify.probes import MARGIN, Bench, Feed, Outputs, ProbeEvidence, listed, token_inputs
from rewright.verify.process import SessionError, SetResult, first_line
from rewright.verify.roles import Dim, InputRole

STEPS: Final = 3
_NAME: Final = "cached-steps"


@dataclass(frozen=True)
class Lengths:
    """How many tokens are in the cache, and how many are new in this step."""

    past: int
    new: int

    @property
    def total(self) -> int:
        """What the cache holds after the step."""
        return self.past + self.new


def probe_cached_steps(
    original: Model, candidate: Model, roles: Sequence[InputRole], sets: Sequence[InputSet], bench: Bench
) -> ProbeEvidence | None:
    """Run both models for some steps from the first set on, each on its own cache, and compare all outputs of every step.

    None for a model without pairs of past and present.
    """
    pairs = cache_pairs(original)
    if not pairs or not sets:
        return None
    # Both branches of a merged decoder are compared elsewhere; here the one that reads the cache is meant.
    flags = [role.name for role in roles if role.kind == "flag"]
    chosen = next((each for each in sets if all(each.arrays[name].all() for name in flags)), sets[0])
    subject = listed([pair.past for pair in pairs])
    evidence = ProbeEvidence(name=_NAME, subject=subject, status="not-run")
    reading = {name: np.ones_like(chosen.arrays[name]) for name in flags}
    wanted_feed, got_feed = {**chosen.arrays, **reading}, {**chosen.arrays, **reading}
    worst = 0.0
    for step in range(STEPS):
        wanted = _run(original, wanted_feed, bench)
        if wanted.error:
            if step < 2:
                evidence.reason = f"the original cannot be run in step {step + 1}: {first_line(wanted.error)}"
            break
        got = _run(candidate, got_feed, bench)
        evidence.figures = {"steps": float(step + 1), "max_abs": worst}
        problem, moved = _compare(wanted, got, bench)
        worst = evidence.figures["max_abs"] = max(worst, moved)
        if problem:
            evidence.status, evidence.reason = "broken", f"step {step + 1}: {problem}"
            return evidence
        if step > 0:
            evidence.status = "held"
        lengths = _lengths(pairs, roles, wanted_feed, wanted.outputs)
        if lengths is None:
            evidence.reason = "the present does not fit the past"
            break
        wanted_feed = next_feed(pairs, roles, wanted_feed, wanted.outputs, lengths, step)
        got_feed = next_feed(pairs, roles, got_feed, got.outputs, lengths, step)
    return evidence


def _run(model: Model, feed: Feed, bench: Bench) -> SetResult:
    try:
        return bench.run(model, [feed]).results[0]
    except SessionError as error:
        return SetResult({}, error.message)


def _compare(wanted: SetResult, got: SetResult, bench: Bench) -> tuple[str, float]:
    """What differs, in words, and the largest absolute difference."""
    if got.error:
        return f"the result cannot be run: {first_line(got.error)}", 0.0
    worst, problem = 0.0, ""
    for name, reference in wanted.outputs.items():
        if name not in got.outputs or got.outputs[name].shape != reference.shape:
            return f"output '{name}' has another shape", worst
        is_equal, moved = bench.agree(name, reference, got.outputs[name], margin=MARGIN)
        worst = max(worst, moved)
        if not is_equal and not problem:
            problem = f"output '{name}' differs by {moved:.1e}"
    return problem, worst


def _lengths(pairs: Sequence[CachePair], roles: Sequence[InputRole], feed: Feed, outputs: Outputs) -> Lengths | None:
    """The lengths of the step that was run, from the first pair that grew; a cache of fixed size does not grow."""
    tokens = token_inputs(roles, feed)
    new = feed[tokens[0].name].shape[1] if tokens else 1
    for pair in pairs:
        past, present = feed[pair.past], outputs.get(pair.present)
        if present is None or present.ndim != past.ndim:
            return None
        grown = [axis for axis in range(past.ndim) if past.shape[axis] != present.shape[axis]]
        if present.size and len(grown) == 1:
            axis = grown[0]
            return Lengths(past.shape[axis], present.shape[axis] - past.shape[axis])
    return Lengths(0, new)


def next_feed(
    pairs: Sequence[CachePair],
    roles: Sequence[InputRole],
    feed: Feed,
    outputs: Outputs,
    lengths: Lengths,
    step: int,
) -> dict[str, np.ndarray]:
    """The feed of the next step: the present as the past, one new token where the length is open, masks and positions grown."""
    presents = {pair.past: outputs[pair.present] for pair in pairs if pair.present in outputs}
    tokens = token_inputs(roles, feed)
    is_open = bool(tokens) and not isinstance(tokens[0].dims[1], int)
    following = Lengths(lengths.total, 1 if is_open else lengths.new)
    length_name = tokens[0].dims[1] if tokens else None
    fed: dict[str, np.ndarray] = {}
    for role in roles:
        array = feed[role.name]
        if role.name in presents:
            present = presents[role.name]
            # Some exports give out an empty cross-attention cache in all steps but the first; the old one then stays.
            fed[role.name] = present if present.size and present.ndim == array.ndim else array
        elif role.kind in ("mask", "additive-mask"):
            fed[role.name] = _grown_mask(role, array, lengths, following)
        elif role.kind == "position":
            fed[role.name] = _grown_positions(role, array, following.new)
        elif role.kind in ("index", "integer", "float") and _has_new_length(role, array, length_name, lengths):
            fed[role.name] = _new_tokens(role, array, following.new, step)
        else:
            fed[role.name] = array
    return fed


def _has_new_length(role: InputRole, array: np.ndarray, length_name: Dim, lengths: Lengths) -> bool:
    """Whether the second axis counts the new tokens: by its name, or, unnamed, by its size."""
    if array.ndim < 2 or array.ndim > 3 or isinstance(role.dims[1], int):
        return False
    if isinstance(length_name, str) or isinstance(role.dims[1], str):
        return role.dims[1] == length_name
    return bool(array.shape[1] == lengths.new)


def _new_tokens(role: InputRole, array: np.ndarray, count: int, step: int) -> np.ndarray:
    if role.kind == "float":
        return np.ascontiguousarray(array[:, :count])
    rng = np.random.default_rng([step, count])
    high = 2 if role.bound is None else role.bound
    return rng.integers(role.low, max(high, role.low + 1), (array.shape[0], count)).astype(array.dtype)


def _grown_mask(role: InputRole, array: np.ndarray, lengths: Lengths, following: Lengths) -> np.ndarray:
    """Every axis that counted the new tokens, or all of them, does so again; what is new is valid.

    A mask of another length, such as that of an encoder, stays.
    """
    counts = {lengths.total: following.total, lengths.new: following.new}
    axes = [axis for axis in range(1, array.ndim) if not isinstance(role.dims[axis], int) and array.shape[axis] in counts]
    if not axes or (axes[-1] != array.ndim - 1) or _is_of_an_encoder(role):
        return array
    shape = tuple(counts[size] if axis in axes else size for axis, size in enumerate(array.shape))
    grown = np.full(shape, 0 if role.kind == "additive-mask" else 1).astype(array.dtype)
    if array.ndim == 2:
        kept = min(array.shape[1], grown.shape[1])
        if array.shape[1] == lengths.total:
            grown[:, :kept] = array[:, :kept]
    return grown


def _is_of_an_encoder(role: InputRole) -> bool:
    return any(map(is_of_an_encoder, (role.name, *map(str, role.dims))))


def _grown_positions(role: InputRole, array: np.ndarray, count: int) -> np.ndarray:
    """The positions after the last one of each row."""
    if array.ndim == 0:
        return np.asarray(array + 1, array.dtype)
    grown = array[..., -1:] + 1 + np.arange(count)
    if role.bound is not None:
        grown = np.minimum(grown, role.bound - 1)
    return grown.astype(array.dtype)
