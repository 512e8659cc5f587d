"""The child's side of ``onnxruntime.transformers``: single fusion classes, each run alone; one model in, one file out.

Neither torch nor sympy is needed: shapes come from the model's ``value_info``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from onnx import ModelProto

from rewright.model.carrier import Model, node_lists
from rewright.model.mixture import mixture
from rewright.model.regions import GraphIndex, Region, regions
from rewright.model.weights import WeightFiles
from rewright.passes.ort.anchor_guard import Guarded, described, guarded, quiet, told
from rewright.passes.ort.fusion_classes import ClassOptions, FusionClass, fusion_class
from rewright.passes.ort.fusion_finish import finished
from rewright.passes.ort.fusion_model import model_class, transformers_module
from rewright.passes.ort.head_sizes import head_sizes
from rewright.passes.ort.proto_weights import MOST_BYTES, ProtoWeights


def run(model: bytes, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Runs fusion classes one after the other, each on what the one before left, and writes the result.

    Args:
        model: a serialized skeleton. Its ``value_info`` is what the classes know of shapes; dimensions of equal names are equal.
        arguments: "root", the folder that the skeleton's external data is relative to, ``Model.SESSION_FOLDER``; "folder", an
            existing one to write to; "classes", keys of ``fusion_classes.FUSION_CLASSES``; "options", fields of
            ``ClassOptions``, whose sizes are found from the shapes around softmaxes where they are 0; "most_bytes", how much
            of the weights may be in memory.

    Returns:
        "path": the file written, whose weights lie in one file beside it; empty where no class changed anything.
        "fired": at how many nodes each class changed something.
        "errors": why a class did nothing at all, by class.
        "left_out": the nodes at which a class raised, with the reason, by class; what it did elsewhere is kept.
        "notes": what onnxruntime.transformers warned of, and a sentence for each class that left out nodes.

    Raises:
        ValueError: a class or an option is unknown, or the installed onnxruntime lacks a class.
    """
    chosen = {name: fusion_class(name) for name in arguments["classes"]}
    options = _with_sizes(ClassOptions(**arguments.get("options", {})), model)
    weights = ProtoWeights(arguments["root"], arguments["folder"], arguments.get("most_bytes") or MOST_BYTES)
    reply: dict[str, Any] = {"path": "", "fired": {}, "errors": {}, "left_out": {}, "notes": []}
    skeleton = model
    with quiet(reply["notes"]):
        for name, entry in chosen.items():
            transformers_module(entry.module)
            skeleton = _after(name, entry, options, skeleton, weights, reply)
    if skeleton != model:
        reply["path"] = str(weights.write(skeleton))
    return reply


def _with_sizes(options: ClassOptions, model: bytes) -> ClassOptions:
    if options.num_heads:
        return options
    num_heads, hidden_size = head_sizes(ModelProto.FromString(model))
    return replace(options, num_heads=num_heads, hidden_size=hidden_size)


def _after(
    name: str, entry: FusionClass, options: ClassOptions, skeleton: bytes, weights: ProtoWeights, reply: dict[str, Any]
) -> bytes:
    """The skeleton after one class; as it was where the class raises as a whole or does nothing."""

    def work() -> bytes:
        proto = weights.parse(skeleton)
        owner = model_class(transformers_module("onnx_model").OnnxModel, weights)
        with finished(proto):
            model = owner(proto)
            for step in entry.clears_first:
                fusion_class(step).make(step, model, options).apply()
            entry.make(name, model, options).apply()
            model.prune_graph()
        return weights.skeleton(proto)

    try:
        changed, seen = guarded(work)
        if entry.clears_first:
            changed = _only_what_is_fused(skeleton, changed, entry)
    except Exception as error:  # what the classes raise has no base of its own
        reply["errors"][name] = described(error)
        return skeleton
    _note(name, seen, reply)
    if changed == skeleton:
        return skeleton
    fired = seen.fired.get(name.partition(":")[0], 0) or abs(_count(changed) - _count(skeleton))  # steps have no anchors to count
    if not fired:
        return skeleton
    reply["fired"][name] = fired
    return changed


def _only_what_is_fused(before: bytes, after: bytes, entry: FusionClass) -> bytes:
    """The skeleton after without the changes that put in no op of the class; as it was before where there is no other."""
    old, new = (GraphIndex(Model(ModelProto.FromString(skeleton), WeightFiles())) for skeleton in (before, after))
    found = regions(old, new)
    undone = [region for region in found if not _puts_in(region, entry.emits)]
    if len(undone) == len(found):
        return before
    kept = mixture(old, new, undone) if undone else None
    return kept.proto.SerializeToString(deterministic=True) if kept is not None else after


def _puts_in(region: Region, emitted: Collection[str]) -> bool:
    added, removed = (
        Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes)
        for nodes in (region.added, region.removed)
    )
    return not (added - removed).keys().isdisjoint(emitted)


def _count(skeleton: bytes) -> int:
    return sum(len(nodes) for _, nodes in node_lists(ModelProto.FromString(skeleton)))


def _note(name: str, seen: Guarded, reply: dict[str, Any]) -> None:
    left_out = seen.left_out.get(name.partition(":")[0])
    if left_out:
        reply["left_out"][name] = left_out
        reply["notes"].append(told(name, left_out))
