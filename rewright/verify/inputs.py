"""Input sets that a model can be run on, made from the roles of its inputs.

Every set differs from the others in its sizes, in how its masks are padded and in the scale of its numbers, because each
of these hides faults that another one shows: a dropped mask is invisible where nothing is padded, a wrong epsilon where
the variance is large, a wrong Reshape at batch 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from zlib import crc32

import numpy as np
from onnx import TensorProto

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.verify.cache_lengths import agreeing_lengths, has_cache_branch, past_symbols
from rewright.verify.roles import InputRole, infer_roles
from rewright.verify.symbols import FALLBACKS, Fallback, fallback_sizes, resolve, sizes, symbols_of, with_sides

Origin = Literal["made", "given", "plugin"]
"""Who an input set is from: made here from the model's own inputs, given by the user, or by a plugin's hook."""

Padding = Literal["right", "left", "none", "scattered"]
Scale = Literal["normal", "low-variance", "large", "tiny", "heavy-tailed"]

DEFAULT_COUNT: Final = 4
MAXIMUM_ELEMENTS: Final = 2**26
"""Elements of one made input; a hostile or mistaken dimension is refused before anything is allocated."""

LOW_VARIANCE_OFFSET: Final = 1e-2
LOW_VARIANCE_DEVIATION: Final = 1e-3
"""Rows whose variance, 1e-6, is below every usual epsilon, so that a wrong epsilon shows as a factor.

The mean of ten deviations tells a LayerNormalization from an RMS norm. It is not larger because the reference itself
then loses the digits: at a mean of 3, ONNX Runtime's exact kernels disagree with float64 by 5e-5, its fused one by 2e-4;
at 0.01 by 1e-6.
"""

LARGE: Final = 30.0
TINY: Final = 1e-3
_MASKED: Final = -1e4
_FIRST_IR_WITH_DEFAULTS: Final = 4
_WITH_OTHER_DEFAULTS: Final = 2
_IN_BOTH_BRANCHES: Final = 2
"""Padded on the right, and on the left."""

_EMPTY_CACHE: Final = "empty-cache"
_LARGEST_DEFAULT: Final = 2**16
_PERTURBED: Final = 0.1
_REPLACED: Final = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16})
_INTEGERS_BELOW: Final = 10
_NOTHING_PADDED: Final = 2
"""The recipe, by its place among ``_RECIPES``, of inputs that are nothing special."""

_STRINGS: Final = np.array(["a", "be", "sea", "deep"], dtype=object)


@dataclass(frozen=True)
class InputSet:
    """One feed for the model.

    Attributes:
        name: how reports refer to it.
        arrays: the feed, by input name.
        description: what it exercises, with the sizes of its symbols.
        padding_masks: the inputs among `arrays` that are (batch, length) padding masks, 1 where a token is valid.
        origin: who it is from.
        expected: outputs that came with it, by name; the original is held against them.
    """

    name: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    description: str = ""
    padding_masks: tuple[str, ...] = ()
    origin: Origin = "given"
    expected: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class _Recipe:
    padding: Padding
    scale: Scale


# A normal run takes the first four; a strict one takes more.
_RECIPES: Final = (
    _Recipe("right", "normal"),
    _Recipe("left", "low-variance"),
    _Recipe("none", "normal"),
    _Recipe("right", "large"),
    _Recipe("scattered", "heavy-tailed"),
    _Recipe("left", "tiny"),
    _Recipe("scattered", "normal"),
    _Recipe("none", "low-variance"),
)


def make_input_sets(model: Model, seed: int = 0, count: int = DEFAULT_COUNT) -> list[InputSet]:
    """`count` input sets for the model.

    The same model, seed and count give the same arrays on every machine. A model without inputs gets one empty set.

    Raises:
        UsageError: an input is not a tensor, is too large, or has a size that cannot be computed.
    """
    roles = infer_roles(model)
    if not roles:
        replaced = _replaced_defaults(model, seed)
        others = (
            [InputSet("other-defaults", replaced, "other values for inputs with a default", origin="made")] if replaced else []
        )
        return [InputSet("fixed", {}, "nothing has to be fed", origin="made"), *others]
    symbols = symbols_of(roles)
    made = []
    for name, trial, flag in _trials(roles, count):
        reads_cache = flag or not has_cache_branch(roles)
        past = 0 if name == _EMPTY_CACHE else None
        chosen = with_sides(roles, sizes(symbols, trial))
        shapes = _shapes(roles, agreeing_lengths(roles, symbols, chosen, reads_cache=reads_cache, past=past))
        if shapes is not None:
            _refuse_large(shapes)
            made.append(_input_set(name, roles, shapes, trial, seed, flag))
    replaced = _replaced_defaults(model, seed)
    if replaced and len(made) > 1:
        place = min(_WITH_OTHER_DEFAULTS, len(made) - 1)
        described = f"{made[place].description}, other values for inputs with a default"
        made[place] = replace(made[place], arrays={**made[place].arrays, **replaced}, description=described)
    if not made:
        dims = "; ".join(f"{role.name}: {list(role.dims)}" for role in roles)
        raise UsageError(f"no sizes fit the model's symbolic dimensions ({dims}).", "Give inputs of your own.")
    return made


def _trials(roles: list[InputRole], count: int) -> list[tuple[str, int, bool]]:
    """The name of each set, which recipe and sizes it takes, and what flags are in it.

    A merged decoder is padded on both sides in both of its branches; any other model with a cache has an empty one too, as in
    the first step of a generation.
    """
    trials = [(f"set-{trial}", trial, trial % 2 == 0) for trial in range(count)]
    if has_cache_branch(roles):
        return [*trials, *((f"{name}-other-branch", trial, not flag) for name, trial, flag in trials[:_IN_BOTH_BRANCHES])]
    return [*trials, (_EMPTY_CACHE, 0, True)] if past_symbols(roles) else trials


def _replaced_defaults(model: Model, seed: int) -> dict[str, np.ndarray]:
    """Other values for small floating-point inputs that have a default: a rewrite must not take that for a constant.

    Before IR version 4 every initializer is listed as an input; those are weights.
    """
    graph = model.proto.graph
    listed = {value.name for value in graph.input}
    found: dict[str, np.ndarray] = {}
    for tensor in graph.initializer if model.proto.ir_version >= _FIRST_IR_WITH_DEFAULTS else ():
        if tensor.name in listed and tensor.data_type in _REPLACED and 0 < math.prod(tensor.dims) <= _LARGEST_DEFAULT:
            default = np.asarray(model.tensor(tensor))
            noise = np.random.default_rng([seed, crc32(tensor.name.encode())]).standard_normal(default.shape)
            found[tensor.name] = (default * (1 + _PERTURBED * noise) + _PERTURBED * noise).astype(default.dtype)
    return found


def make_fallback_sets(model: Model, seed: int = 0) -> Iterator[InputSet]:
    """Further sets, of other sizes, for a model that cannot run on those of `make_input_sets`; made one at a time.

    There are none for a model whose inputs all have fixed sizes.
    """
    roles = infer_roles(model)
    symbols = symbols_of(roles)
    others = max((len(role.sides) for role in roles), default=0)
    tried = [with_sides(roles, fallback_sizes(symbols, each), which) for which in range(1, others) for each in FALLBACKS[:4]]
    tried += [fallback_sizes(symbols, each) for each in FALLBACKS]
    for trial, chosen in enumerate(tried if symbols else ()):
        flag = trial % 2 == 0
        reads_cache = flag or not has_cache_branch(roles)
        shapes = _shapes(roles, agreeing_lengths(roles, symbols, chosen, reads_cache=reads_cache))
        if shapes is not None and max(map(math.prod, shapes.values())) <= MAXIMUM_ELEMENTS:
            yield _input_set(f"fallback-{trial}", roles, shapes, trial, seed, flag)


def make_sized_set(model: Model, chosen: Mapping[str, int], default: Fallback, seed: int = 0) -> InputSet | None:
    """One set with nothing padded, of sizes that were asked for; None where these do not go together.

    Args:
        model: whose inputs are made.
        chosen: sizes by the names of the symbolic dimensions.
        default: the sizes of the others.
        seed: of the values.

    Raises:
        UsageError: the model has no symbolic dimension of such a name.
    """
    roles = infer_roles(model)
    symbols = symbols_of(roles)
    for name in chosen:
        if name not in symbols:
            known = f"Its dimensions without a fixed size: {', '.join(symbols)}." if symbols else "All its sizes are fixed."
            raise UsageError(f"the model has no dimension '{name}'.", known)
    if not roles:
        return InputSet("fixed", {}, "nothing has to be fed", origin="made")
    wanted = agreeing_lengths(roles, symbols, {**with_sides(roles, fallback_sizes(symbols, default)), **chosen}, reads_cache=True)
    shapes = _shapes(roles, wanted)
    if shapes is None:
        return None
    _refuse_large(shapes)
    return _input_set("made", roles, shapes, _NOTHING_PADDED, seed, True)


def _shapes(roles: list[InputRole], chosen: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
    """Every input's shape; None when an expression among the dimensions has no positive value for these sizes."""
    shapes = {role.name: resolve(role.dims, chosen, least=0 if role.kind == "past" else 1) for role in roles}
    found = {name: shape for name, shape in shapes.items() if shape is not None}
    return found if len(found) == len(shapes) else None


def _refuse_large(shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        elements = math.prod(shape)
        if elements > MAXIMUM_ELEMENTS:
            raise UsageError(
                f"input '{name}' of shape {list(shape)} has {elements} elements, more than {MAXIMUM_ELEMENTS}.",
                "Give inputs of your own.",
            )


def _input_set(
    name: str, roles: list[InputRole], shapes: Mapping[str, tuple[int, ...]], trial: int, seed: int, flag: bool
) -> InputSet:
    recipe = _RECIPES[trial % len(_RECIPES)]
    arrays = {}
    for role in roles:
        rng = np.random.default_rng([seed, crc32(role.name.encode()), trial])
        shape = shapes[role.name]
        arrays[role.name] = np.full(shape, flag) if role.kind == "flag" else _values(role, shape, recipe, trial, rng)
    masks = tuple(role.name for role in roles if role.kind == "mask" and arrays[role.name].ndim == 2)
    return InputSet(name, arrays, _description(roles, recipe, shapes, bool(masks)), masks, "made")


def _description(roles: list[InputRole], recipe: _Recipe, shapes: Mapping[str, tuple[int, ...]], has_masks: bool) -> str:
    sized: dict[str, int] = {}
    for role in roles:
        named = zip(role.dims, shapes[role.name], strict=True)
        sized.update({dim: size for dim, size in named if isinstance(dim, str)})
    parts = [f"{symbol}={size}" for symbol, size in sized.items()]
    if has_masks:
        parts.append({"none": "nothing padded"}.get(recipe.padding, f"{recipe.padding} padding"))
    if any(role.dtype.kind not in "iubO" for role in roles):
        parts.append(f"{recipe.scale} floats")
    return ", ".join(parts)


def _values(role: InputRole, shape: tuple[int, ...], recipe: _Recipe, trial: int, rng: np.random.Generator) -> np.ndarray:
    match role.kind:
        case "index":
            low = role.low
            high = 2 if role.bound is None else role.bound
            return rng.integers(low, max(high, low + 1), shape).astype(role.dtype)
        case "position":
            return _positions(role, shape, rng)
        case "mask":
            return _mask(shape, recipe.padding, rng).astype(role.dtype)
        case "additive-mask":
            return np.where(_mask(shape, recipe.padding, rng), 0.0, _MASKED).astype(role.dtype)
        case "integer":
            return rng.integers(0, _INTEGERS_BELOW, shape).astype(role.dtype)
        case "shape":
            return _shape_operand(role, shape, trial)
        case "text":
            return rng.choice(_STRINGS, shape)
        case _:
            return _floats(shape, recipe.scale, rng).astype(role.dtype)


def _positions(role: InputRole, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Consecutive positions along the last axis, each row from its own start."""
    if not shape:
        return np.asarray(role.low, dtype=role.dtype)
    start = rng.integers(role.low, role.low + 3, (*shape[:-1], 1))
    positions = start + np.arange(shape[-1])
    if role.bound is not None:
        positions = np.minimum(positions, role.bound - 1)
    return positions.astype(role.dtype)


def _mask(shape: tuple[int, ...], padding: Padding, rng: np.random.Generator) -> np.ndarray:
    """A boolean mask with at least one valid token in each row; the axes between batch and length share it.

    The first of several rows stays whole, as the longest text of a padded batch does.
    """
    if len(shape) < 2:
        return np.ones(shape, dtype=np.bool_)
    rows, length = shape[0], shape[-1]
    valid = rng.integers(1, length, rows) if length > 1 else np.ones(rows, dtype=np.int64)
    if rows > 1:
        valid[0] = length
    position = np.arange(length)
    if padding == "right":
        mask = position < valid[:, None]
    elif padding == "left":
        mask = position >= length - valid[:, None]
    elif padding == "scattered":
        mask = rng.permuted(np.tile(position, (rows, 1)), axis=1) < valid[:, None]
    else:
        mask = np.ones((rows, length), dtype=np.bool_)
    return np.broadcast_to(mask.reshape(rows, *itertools.repeat(1, len(shape) - 2), length), shape)


def _shape_operand(role: InputRole, shape: tuple[int, ...], trial: int) -> np.ndarray:
    """What is legal wherever a shape is asked for: -1 and ones for Reshape, ones or twos elsewhere."""
    values = np.full(shape, 1 if role.reshapes else 1 + trial % 2, dtype=role.dtype)
    if role.reshapes and values.size and role.dtype.kind == "i":
        values.flat[0] = -1
    return values


def _floats(shape: tuple[int, ...], scale: Scale, rng: np.random.Generator) -> np.ndarray:
    if scale == "heavy-tailed":
        return np.clip(rng.standard_t(2.0, shape), -LARGE, LARGE)
    values = np.asarray(rng.standard_normal(shape))
    match scale:
        case "low-variance":
            return LOW_VARIANCE_OFFSET + LOW_VARIANCE_DEVIATION * values
        case "large":
            return LARGE * values
        case "tiny":
            return TINY * values
    return values
