"""The integer weights of one run of a pass: what several operands share is quantized and stored once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from rewright.model.elements import make_constant
from rewright.model.facts import constant_of, producer
from rewright.model.graph import state_of
from rewright.model.view import FIRST_IR_WITH_OPTIONAL_INPUT_LISTING
from rewright.passes.session import PassSession
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.affine import Array, Levels, Quantized, quantized, saturating_columns
from rewright.quant.weights import Weight, weight_of

_TURNS: Final = ("Identity", "Transpose")
_FLOAT_BYTES: Final = 4


class MissedError(Exception):
    """Why a node is not quantized."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Use:
    """A weight as a matrix, the way one operand reads it.

    Attributes:
        weight: where it comes from.
        base: equal for uses of the same stored matrix.
        is_turned: whether the operand is the stored matrix transposed.
        channels: the axis of the stored matrix that has a scale of its own each: columns of a product, rows of a table.
    """

    weight: Weight
    base: Hashable
    is_turned: bool
    channels: int

    @classmethod
    def of(cls, tensor: Any, *, axis: int, transposed: bool = False) -> Use | None:
        """The use of an operand of rank 2; None where it is not constant.

        Args:
            tensor: the operand.
            axis: of the channels, as the op sees the operand.
            transposed: whether the op transposes the operand first.
        """
        weight = weight_of(tensor)
        if weight is None:
            return None
        turns = sum(step.op == "Transpose" for step in weight.steps)
        if weight.source.shape is not None and len(weight.source.shape) == 2 and all(s.op in _TURNS for s in weight.steps):
            identities = sum(step.op == "Transpose" and step.attrs.get("perm") == [0, 1] for step in weight.steps)
            is_turned = bool((turns - identities + transposed) % 2)
            return cls(weight, id(weight.source), is_turned, axis ^ is_turned)
        return cls(weight, weight.key, transposed, axis ^ transposed)

    @property
    def is_stored(self) -> bool:
        """Whether an initializer holds the stored matrix as it is."""
        return (not self.weight.steps or isinstance(self.base, int)) and hasattr(self.weight.source, "values")

    def values(self) -> Array:
        """The stored matrix, floats."""
        if isinstance(self.base, int):
            array = constant_of(self.weight.source)
            if array is not None:
                return array
        return self.weight.values()


@dataclass
class IntegerWeight:
    """A quantized weight in the model.

    Attributes:
        levels, scale, zero_point: constants.
        is_turned: whether ``levels`` is stored transposed against the weight's source.
        error, worst_channel, worst_error: see ``Quantized``.
        bytes_before, bytes_after: of the matrix.
        is_counted: whether a record has these bytes already.
        row_scale, row_zero_point: scale and zero point as (channels, 1), for who picks rows.
    """

    levels: Value
    scale: Value
    zero_point: Value
    is_turned: bool
    error: float
    worst_channel: int | None
    worst_error: float | None
    bytes_before: int
    bytes_after: int
    is_counted: bool = False
    row_scale: Value | None = None
    row_zero_point: Value | None = None

    @property
    def needs_zero_point(self) -> bool:
        """Whether it is not 0 throughout."""
        array = self.zero_point.value
        return array is not None and bool(array.any())


@dataclass
class IntegerWeights:
    """What has been quantized, by stored matrix and axis.

    Attributes:
        keeps_floats: whether the model holds the floats, and ``levels`` of what is made are those.
        at_risk: for each int8 weight that is multiplied, its name, and how many of how many columns may saturate 16 bits.
    """

    session: PassSession
    levels: Levels
    per_channel: bool
    keeps_floats: bool = False
    at_risk: list[tuple[str, int, int]] = field(default_factory=list)
    _made: dict[Hashable, IntegerWeight] = field(default_factory=dict)
    _layouts: dict[Hashable, set[bool]] = field(default_factory=dict)
    _homes: dict[int, Any] = field(default_factory=dict)
    _stored: list[tuple[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for graph in self.session.view.graphs():
            for constant in state_of(graph).initializers.values():
                self._homes[id(constant)] = graph

    def expect(self, use: Use) -> None:
        """Takes note of a layout that will be asked for, so that one stored matrix can serve all."""
        self._layouts.setdefault(self._key(use), set()).add(use.is_turned)

    def _key(self, use: Use) -> Hashable:
        return use.base, use.channels if self.per_channel else None

    def get(self, use: Use, *, multiplied: bool = True) -> IntegerWeight:
        """The weight in integers, made when it is first asked for.

        Raises:
            MissedError: it holds a value that is not finite.
        """
        key = self._key(use)
        made = self._made.get(key)
        if made is None:
            layouts = self._layouts.get(key, {use.is_turned})
            made = self._made[key] = self._make(use, is_turned=layouts == {True}, multiplied=multiplied)
        return made

    def operand(self, use: Use, op: Builder) -> Value:
        """The levels as the op reads them, by a Transpose where they are stored the other way for another op."""
        made = self.get(use)
        if made.is_turned == use.is_turned:
            return made.levels
        turned: Value = op.Transpose(made.levels, perm=[1, 0])
        return turned

    def quantized(self, use: Use, *, multiplied: bool = True) -> Quantized:
        """The numbers, not stored.

        Raises:
            MissedError: the weight holds a value that is not finite.
        """
        found = quantized(use.values(), use.channels if self.per_channel else None, self.levels)
        if found is None:
            raise MissedError(f"the weight '{use.weight.name}' holds values that are not finite")
        if multiplied:
            self.note_risk(use.weight.name, found, use.channels)
        return found

    def _make(self, use: Use, *, is_turned: bool, multiplied: bool) -> IntegerWeight:
        found = self.quantized(use, multiplied=multiplied)
        levels: Array | Value = found.levels
        if self.keeps_floats:
            levels = Value(use.weight.source) if use.is_stored else use.values()
        if is_turned:
            levels = np.ascontiguousarray((use.values() if self.keeps_floats else found.levels).T)
        made = self.stored(use.weight, found, levels, found.scale.shape, _FLOAT_BYTES * found.levels.size)
        made.is_turned = is_turned
        return made

    def stored(
        self, weight: Weight, found: Quantized, levels: Array | Value, shape: tuple[int, ...], nbytes: int
    ) -> IntegerWeight:
        """Constants for a quantized weight of ``nbytes``.

        Args:
            weight: what was quantized.
            found: as what.
            levels: its levels, in the shape that the op wants; with ``keeps_floats`` the floats, or the constant that holds them.
            shape: that the op wants scale and zero point in.
            nbytes: of the floats.
        """
        name = weight.name
        suffix = "as_read" if self.keeps_floats else "quantized"
        return IntegerWeight(
            levels=levels if isinstance(levels, Value) else self.constant(f"{name}_{suffix}", levels, weight),
            scale=self.constant(f"{name}_scale", found.scale.reshape(shape), weight),
            zero_point=self.constant(f"{name}_zero_point", found.zero_point.reshape(shape), weight),
            is_turned=False,
            error=found.error,
            worst_channel=found.worst_channel,
            worst_error=found.worst_error,
            bytes_before=nbytes,
            bytes_after=found.nbytes + (nbytes - int(found.levels.nbytes) if self.keeps_floats else 0),
        )

    def by_row(self, made: IntegerWeight, use: Use) -> tuple[Value, Value | None]:
        """Scale and zero point as (rows, 1), so that those of the rows that are picked broadcast; no zero point where it is 0."""
        if made.row_scale is None:
            name, weight = use.weight.name, use.weight
            made.row_scale = self.constant(f"{name}_row_scale", np.asarray(made.scale.value).reshape(-1, 1), weight)
            if made.needs_zero_point:
                zeros = np.asarray(made.zero_point.value).reshape(-1, 1)
                made.row_zero_point = self.constant(f"{name}_row_zero_point", zeros, weight)
        return made.row_scale, made.row_zero_point

    def note_risk(self, name: str, found: Quantized, columns: int) -> None:
        """Works out whether products of the levels may saturate; ``columns`` is their axis."""
        if self.levels.dtype == "int8" and not self.levels.reduced:
            self.at_risk.append((name, saturating_columns(found.levels, columns), found.levels.shape[columns]))

    def constant(self, name: str, array: Array, weight: Weight) -> Value:
        """A new constant that lives where the weight does, so that two bodies which read it share it."""
        made = make_constant(self.session.names.fresh(name), array)
        feeder = producer(weight.source)
        home = self._homes.get(id(weight.source)) if feeder is None else self.session.editor.graph_of(feeder)
        is_listed = (self.session.view.graph.ir_version or 0) < FIRST_IR_WITH_OPTIONAL_INPUT_LISTING  # then it may not live there
        if home is not None and not isinstance(home, gs.Function) and not is_listed:
            state_of(home).initializers[made.name] = made
            self._stored.append((home, made))
        return Value(made)

    def drop_unused(self) -> None:
        """Takes out of the model what was made and nothing reads, such as zero points that are 0; ONNX Runtime warns of those."""
        for home, made in self._stored:
            if not self.session.editor.is_used(made):
                state_of(home).initializers.pop(made.name, None)
