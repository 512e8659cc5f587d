"""The invariances that a model is probed for: to the future, to padding, to the other rows of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.passes.contract import Exactness
from rewright.verify.budget import QuantizationBudget
from rewright.verify.cached_steps import probe_cached_steps
from rewright.verify.coarseness import coarsest_types
from rewright.verify.inputs import InputSet
from rewright.verify.padding import length_axis, without_padding
from rewright.verify.probes import (
    Bench,
    Lower,
    Outputs,
    Part,
    ProbeEvidence,
    Trial,
    changed,
    first_suiting,
    judge_trials,
    listed,
    token_inputs,
)
from rewright.verify.process import SessionWorker
from rewright.verify.roles import Dim, InputRole, infer_roles
from rewright.verify.symbols import dimension_symbol, symbols_of

_INVARIANCES: Final = ("causality", "padding", "batch")


def run_probes(
    original: Model,
    candidate: Model,
    worker: SessionWorker,
    input_sets: Sequence[InputSet],
    *,
    exactness: Exactness = "reassociating",
    lower: Lower | None = None,
    budget: QuantizationBudget | None = None,
    outputs: Sequence[Outputs] = (),
    candidate_outputs: Sequence[Outputs] = (),
) -> list[ProbeEvidence]:
    """Probe the original and the candidate: causality, padding, batch, and chained steps of a model with a cache.

    Costs a load and three or four small runs of each model, and for a model with a cache a load and a run for each step.

    Args:
        original, candidate: models with the same inputs.
        worker: runs both.
        input_sets: sets that the original runs on; one that suits all probes is used if there is one, and a small one.
        exactness: the least exact promise of the passes between the two.
        lower: replaces ops without a kernel here, before a model is run.
        budget: what quantizing passes may lose.
        outputs, candidate_outputs: what the two compute on each of the input sets, where that is known already.

    Returns:
        One record for each probe that the model offers a place for; a probe without one is "not-run" with the reason.
    """
    if not input_sets:
        return []
    bench = Bench(worker, exactness, lower, budget, coarsest_types(original))
    try:
        roles = infer_roles(original)
    except UsageError as error:
        return [ProbeEvidence(name=name, status="not-run", reason=str(error)) for name in _INVARIANCES]
    sets = sorted(input_sets, key=_preference)
    trials = [
        *causality_trials(original, roles, sets),
        *padding_trials(original, roles, sets),
        *batch_trials(original, roles, sets),
    ]
    known = [
        {id(each.arrays): computed for each, computed in zip(input_sets, found, strict=False)}
        for found in (outputs, candidate_outputs)
    ]
    found = judge_trials(trials, original, candidate, bench, *known)
    missing = [name for name in _INVARIANCES if all(evidence.name != name for evidence in found)]
    found.extend(ProbeEvidence(name=name, status="not-run", reason=_ABSENT[name]) for name in missing)
    steps = probe_cached_steps(original, candidate, roles, sets, bench)
    return [*found, *([steps] if steps is not None else [])]


def _preference(input_set: InputSet) -> tuple[bool, bool, bool, int]:
    """Something in every cache that is read first, then padded before tokens, then several rows, then small."""
    arrays = input_set.arrays.values()
    is_unread = any(array.size == 1 and array.dtype == np.bool_ and not array.any() for array in arrays)
    is_empty = any(array.size == 0 for array in arrays) and not is_unread
    rows = max((array.shape[0] for array in arrays if array.ndim > 1), default=0)
    return is_empty, not _is_padded_before_a_token(input_set), rows < 2, sum(array.size for array in arrays)


_ABSENT: Final = {
    "causality": "no input has tokens along a length of two or more",
    "padding": "no input set has padding that a mask tells from tokens",
    "batch": "no input set has two rows or more",
}


def causality_trials(model: Model, roles: Sequence[InputRole], sets: Sequence[InputSet]) -> Iterator[Trial]:
    """The last token changes: outputs at earlier positions have to stay.

    Inputs with their own length (those of an encoder and of a decoder) are changed in trials of their own.
    """
    chosen = first_suiting(
        sets, lambda each: any(each.arrays[role.name].shape[1] >= 2 for role in token_inputs(roles, each.arrays))
    )
    if chosen is None:
        return
    arrays = chosen.arrays
    for inputs in _by_length(token_inputs(roles, arrays), arrays):
        widest = max(inputs, key=lambda role: arrays[role.name].shape[0])  # others may be one row for the whole batch
        shape = arrays[widest.name].shape
        if shape[1] < 2:
            continue
        earlier = _at(model, widest.name, shape, ~_is_last(shape) & _valid(chosen, roles, widest))
        second = {role.name: changed(role, arrays[role.name], _is_last(arrays[role.name].shape)) for role in inputs}
        yield Trial("causality", _names(inputs), arrays, {**arrays, **second}, earlier, earlier)


def _is_last(shape: tuple[int, ...]) -> np.ndarray:
    """Where the last token is, along the first two axes."""
    return np.broadcast_to(np.arange(shape[1]) == shape[1] - 1, shape[:2])


def _at(model: Model, source: str, shape: tuple[int, ...], positions: np.ndarray) -> Part:
    """The part of an output at the given positions of an input of that shape."""

    def part(name: str, output: np.ndarray) -> np.ndarray | None:
        axis = length_axis(model.proto.graph, source, shape, name, output.shape)
        return None if axis is None else np.asarray(np.moveaxis(output, axis, 1)[positions])

    return part


def _valid(input_set: InputSet, roles: Sequence[InputRole], source: InputRole) -> np.ndarray:
    """Which positions of a token input no mask hides. What a padded position of a decoder sees is arbitrary."""
    valid = np.ones(input_set.arrays[source.name].shape[:2], np.bool_)
    for role in roles:
        if role.name in input_set.padding_masks:
            _, positions = _with_other_padding(role, input_set.arrays[role.name].astype(np.bool_), roles, input_set.arrays)
            valid &= positions.get(source.name, valid)
    return valid


def padding_trials(model: Model, roles: Sequence[InputRole], sets: Sequence[InputSet]) -> Iterator[Trial]:
    """What masked positions hold changes, in tokens and in the past: outputs at valid positions have to stay."""
    # What is padded on the right is in the future, which a decoder does not see without a mask either.
    chosen = first_suiting(sets, _is_padded_before_a_token) or first_suiting(sets, _is_padded)
    if chosen is None:
        return
    by_name = {role.name: role for role in roles}
    for mask in chosen.padding_masks:
        valid = chosen.arrays[mask].astype(np.bool_)
        if valid.all():
            continue
        second, positions = _with_other_padding(by_name[mask], valid, roles, chosen.arrays)
        if second:
            yield _padding_trial(model, chosen, mask, {**chosen.arrays, **second}, positions)


def _is_padded(input_set: InputSet) -> bool:
    return any(not input_set.arrays[name].all() for name in input_set.padding_masks)


def _is_padded_before_a_token(input_set: InputSet) -> bool:
    masks = [input_set.arrays[name].astype(np.bool_) for name in input_set.padding_masks]
    return any(bool((mask[:, 1:] & ~mask[:, :-1]).any()) for mask in masks)


def _with_other_padding(
    mask: InputRole, valid: np.ndarray, roles: Sequence[InputRole], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs with other values where they are masked, and which positions of the token inputs among them are valid."""
    second, positions = {}, {}
    for role in token_inputs(roles, arrays):
        array = arrays[role.name]
        # The mask of a model with a cache covers the past first and then the new tokens.
        past = valid.shape[1] - array.shape[1]
        covered = valid[:, past:] if past >= 0 else valid
        pasts = _pasts(roles, arrays, past)
        if covered.shape == array.shape[:2] and (pasts or past == 0) and (pasts or _may_share(mask.dims[1], role.dims[1])):
            positions[role.name] = covered
            second[role.name] = changed(role, array, ~covered)
            second.update({each.name: _with_other_past(each, arrays[each.name], valid[:, :past]) for each in pasts})
    if not positions:  # the keys and values of an encoder, say, which are all that its mask covers
        whole = [each for each in _pasts(roles, arrays, valid.shape[1]) if _may_share(mask.dims[1], each.dims[2])]
        second.update({each.name: _with_other_past(each, arrays[each.name], valid) for each in whole})
    return second, positions


def _with_other_past(role: InputRole, array: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return changed(role, array, np.broadcast_to(~valid[:, None, :], array.shape[:3]))


def _padding_trial(
    model: Model, chosen: InputSet, mask: str, second: dict[str, np.ndarray], positions: Mapping[str, np.ndarray]
) -> Trial:
    parts = [_at(model, source, chosen.arrays[source].shape, covered) for source, covered in positions.items()]

    def at_valid_positions(name: str, output: np.ndarray) -> np.ndarray:
        found = (part(name, output) for part in parts)
        # pooled, or along another length: all of it
        return next((array for array in found if array is not None), output)

    return Trial("padding", mask, chosen.arrays, second, at_valid_positions, at_valid_positions, needs_change=False)


def batch_trials(model: Model, roles: Sequence[InputRole], sets: Sequence[InputSet]) -> Iterator[Trial]:
    """The last row of the batch by itself: its outputs have to stay."""
    batch = {symbol for symbol, sort in symbols_of(roles).items() if sort == "batch"}
    axes = {role.name: _batch_axis(role, batch) for role in roles}
    chosen = first_suiting(sets, lambda each: len(_batch_sizes(axes, each)) == 1 and max(_batch_sizes(axes, each)) > 1)
    if chosen is None:
        return
    (size,) = _batch_sizes(axes, chosen)
    alone = {
        name: array if axes[name] is None else np.take(array, [size - 1], axis=axes[name])
        for name, array in chosen.arrays.items()
    }
    row = InputSet("row", alone, padding_masks=tuple(name for name in chosen.padding_masks if axes[name] == 0))

    def without_its_padding(name: str, output: np.ndarray) -> np.ndarray:
        excused = without_padding(model.proto.graph, row, name, output.shape)
        return output if excused is None else excused.select(output)

    def of_the_batch(name: str, output: np.ndarray) -> np.ndarray | None:
        axis = next((axis for axis, length in enumerate(output.shape) if length == size), None)
        return None if axis is None else without_its_padding(name, np.take(output, [size - 1], axis=axis))

    subject = _names([role for role in roles if axes[role.name] is not None])
    yield Trial("batch", subject, chosen.arrays, alone, of_the_batch, without_its_padding, needs_change=False)


def _batch_axis(role: InputRole, batch: set[str]) -> int | None:
    """The axis that is the batch: the first one in most inputs, the second one where keys and values are stacked."""
    for axis, dim in enumerate(role.dims[:2]):
        if not isinstance(dim, int) and dimension_symbol(dim, axis) in batch:
            return axis
    return None


def _batch_sizes(axes: Mapping[str, int | None], input_set: InputSet) -> set[int]:
    return {input_set.arrays[name].shape[axis] for name, axis in axes.items() if axis is not None}


def _by_length(inputs: Sequence[InputRole], arrays: Mapping[str, np.ndarray]) -> list[list[InputRole]]:
    """Inputs of one length together: of one name of the dimension, or, unnamed, of one size."""
    groups: dict[object, list[InputRole]] = {}
    for role in inputs:
        groups.setdefault(role.dims[1] or arrays[role.name].shape[1], []).append(role)
    return list(groups.values())


def _may_share(first: Dim, second: Dim) -> bool:
    """Whether two lengths are the same one by their names, as far as these say so."""
    return not isinstance(first, str) or not isinstance(second, str) or first == second


def _pasts(roles: Sequence[InputRole], arrays: Mapping[str, np.ndarray], length: int) -> list[InputRole]:
    """The keys and values, (batch, heads, length, size), of that many tokens."""
    found = [role for role in roles if role.kind == "past" and arrays[role.name].ndim == 4]
    return [role for role in found if length > 0 and arrays[role.name].shape[2] == length]


def _names(roles: Sequence[InputRole]) -> str:
    return listed([role.name for role in roles])
