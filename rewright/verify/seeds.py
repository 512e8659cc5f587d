"""Seeds for the ops that draw random numbers, so that an original and its candidate draw the same ones.

The seed of a value follows from its name: what keeps its name in the candidate gets the same seed there. Seeds are set in a
throw-away copy. ONNX Runtime's kernels count on from their seed from run to run, so that a model with random ops is comparable
only if every input set gets a session of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from zlib import crc32

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, inliner

from rewright.model.carrier import Model, bodies, node_lists
from rewright.verify.process import Optimization, SessionRun, SessionWorker
from rewright.verify.uses import Uses

_FLOAT_SEED: Final = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_TRAINING_MODE: Final = {
    ("", "Dropout"): 2,
    ("com.microsoft", "BitmaskDropout"): 2,
    ("com.microsoft", "BiasDropout"): 4,
    ("com.microsoft", "BitmaskBiasDropout"): 4,
}
"""Ops that draw only if this input is true, and whose seed is an integer."""

_NAMES: Final = {f"ai.onnx::{name}" for name in _FLOAT_SEED} | {
    f"{domain or 'ai.onnx'}::{name}" for domain, name in _TRAINING_MODE
}
_SEEDS: Final = 1_000_003
"""Seeds stay below this prime; float32, the seed's type in most ops, holds every integer of that size."""


def draws(model: Model) -> bool:
    """Whether some node of the model, of its bodies or of its functions draws random numbers."""
    return next(_random_nodes(model), None) is not None


def random_values(model: Model) -> frozenset[tuple[str, str]]:
    """Every random value of a model as (op type, name); ask this of what `pin_seeds` returns."""
    return frozenset((node.op_type, node.output[0]) for node in _random_nodes(model) if node.output)


def drawing_outputs(model: Model) -> frozenset[str]:
    """What the nodes of the main graph make that draw random numbers: themselves, in a body, or in a function that they call."""
    drawn = {node.output[0] for node in _random_nodes(model) if node.output}
    if not drawn:
        return frozenset()
    drawing_functions: set[tuple[str, str]] = set()

    def is_drawing(node: NodeProto) -> bool:
        pending = [node]
        while pending:
            each = pending.pop()
            if (each.domain, each.op_type) in drawing_functions or (each.output and each.output[0] in drawn):
                return True
            pending.extend(inner for body in bodies(each) for inner in body.node)
        return False

    for _ in model.proto.functions:  # at most as many rounds as a chain of calls is long
        known = len(drawing_functions)
        for function in model.proto.functions:
            if any(map(is_drawing, function.node)):
                drawing_functions.add((function.domain, function.name))
        if len(drawing_functions) == known:
            break
    return frozenset(name for node in model.proto.graph.node if is_drawing(node) for name in node.output if name)


def pin_seeds(model: Model, salt: str = "") -> Model:
    """A copy in which every random op has a seed that follows from its output's name and from `salt`.

    Seeds that the model sets itself are kept: a pass that changes one has changed the model. A model that draws nothing is
    returned as it is.
    """
    if not draws(model):
        return model
    pinned = model.with_proto(_copy(model.proto))
    for node in _random_nodes(pinned):
        if not any(attribute.name == "seed" and not attribute.ref_attr_name for attribute in node.attribute):
            _pin(node, salt)
    return pinned


def run_pinned(
    worker: SessionWorker,
    model: Model,
    feeds: Sequence[Mapping[str, np.ndarray]],
    optimization: Optimization = "ORT_DISABLE_ALL",
    salt: str = "",
) -> SessionRun:
    """Run a model on every feed, as `SessionWorker.run` does; where it draws, with pinned seeds and a session for each feed.

    Raises:
        SessionError: see `SessionWorker.run`.
    """
    pinned = pin_seeds(model, salt)
    if pinned is model or len(feeds) < 2:
        return worker.run(pinned, feeds, optimization=optimization)
    runs = [worker.run(pinned, [feed], optimization=optimization) for feed in feeds]
    return SessionRun(sum(run.load_seconds for run in runs), tuple(result for run in runs for result in run.results))


def _copy(proto: ModelProto) -> ModelProto:
    """Functions are inlined in it, so that a value has one name whether the inlining has happened before or not."""
    if proto.functions:
        return inliner.inline_local_functions(proto, convert_version=False)
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _pin(node: NodeProto, salt: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != "seed"]
    seed = 1 + crc32(f"{salt}/{node.output[0]}".encode()) % (_SEEDS - 1)
    attribute = helper.make_attribute("seed", float(seed) if node.op_type in _FLOAT_SEED else seed)
    del node.attribute[:]
    node.attribute.extend([*kept, attribute])


def _random_nodes(model: Model) -> Iterator[NodeProto]:
    if _NAMES.isdisjoint(model.op_counts()):
        return
    uses = Uses(model)
    for owner, nodes in node_lists(model.proto):
        scope = "" if isinstance(owner, GraphProto) else f"{owner.domain}::{owner.name}"
        for node in nodes:
            is_generator = node.domain in ("", "ai.onnx") and node.op_type in _FLOAT_SEED
            if is_generator or _may_train(node, scope, uses):
                yield node


def _may_train(node: NodeProto, scope: str, uses: Uses) -> bool:
    """Whether a Dropout's training mode is given and is not known to be off."""
    position = _TRAINING_MODE.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
    if position is None or len(node.input) <= position or not node.input[position]:
        return False
    mode = uses.constant((scope, node.input[position]))
    return mode is None or bool(mode.any())
