"""Two models whose weights are defaults of inputs, compared under other weights.

Gates leave defaults as they are; a pass that has taken one for a constant shows only where a caller gives another value.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from onnx import TensorProto

from rewright.model.carrier import Model
from rewright.passes.contract import Exactness
from rewright.verify.inputs import InputSet, make_input_sets
from rewright.verify.parity import ParityGate
from rewright.verify.process import SessionWorker
from rewright.verify.tolerance import is_floating


def difference_under_other_weights(before: Model, after: Model, exactness: Exactness) -> str:
    """Why the outputs differ where made numbers take the place of float defaults, or an empty string."""
    inputs = {info.name for info in before.proto.graph.input}
    defaults = [tensor for tensor in before.proto.graph.initializer if tensor.name in inputs]
    replaced = {tensor.name: array for tensor in defaults if (array := _other(before, tensor)) is not None}
    if not replaced:
        return ""
    sets = [InputSet(made.name, {**made.arrays, **replaced}, made.description) for made in make_input_sets(before, count=2)]
    with SessionWorker() as worker:
        evidence = ParityGate(before, sets, worker).check(after, exactness)
    return evidence.reason if evidence.status == "failed" else ""


def _other(model: Model, tensor: TensorProto) -> np.ndarray | None:
    """Numbers of the default's shape and dtype that are not its own; positive, for a root or a logarithm may read them."""
    array = model.tensor(tensor)
    if not is_floating(array.dtype):
        return None  # axes, shapes and indices have few values that are legal
    rng = np.random.default_rng(crc32(tensor.name.encode()))
    made: np.ndarray = (0.5 + rng.random(array.shape)).astype(array.dtype)
    return made
