"""The model after a pass with some of its regions undone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from onnx import ModelProto, NodeProto

from rewright.model.carrier import Model
from rewright.model.elements import normal_domain
from rewright.model.regions import GraphIndex, Region, changed_constants, changed_functions, functions_of, reads


def mixture(before: GraphIndex, after: GraphIndex, undone: Collection[Region]) -> Model | None:
    """The model after a pass with some of its regions undone; None if the rest cannot do without them.

    Opset imports are those of the model after. What the kept regions read of the undone ones stays. A constant of which both
    values are needed keeps its name for the old one.
    """
    return _Mixture(before, after, undone).model()


class _Mixture:
    def __init__(self, before: GraphIndex, after: GraphIndex, undone: Collection[Region]) -> None:
        self.before, self.after = before, after
        self._old = {name for region in undone for node in region.removed for name in node.output if name}
        self._dropped = {after.producer[name] for region in undone for node in region.added for name in node.output if name}
        self._ordered: list[NodeProto] = []
        self._kept: set[int] = set()  # places in that order of nodes of the model after
        self._done: set[tuple[bool, int]] = set()

    def model(self) -> Model | None:
        keys = [key for index in range(len(self.after.nodes)) for key in self._places_of(index)]
        keys += [key for name in self.after.outputs if (key := self._maker(name)) is not None]
        for key in keys:
            if not self._place(key):
                return None
        names = [name for node in self._ordered for name in node.output if name]
        if len(names) != len(set(names)):
            return None
        return self._assemble()

    def _places_of(self, index: int) -> list[tuple[bool, int]]:
        """What stands where a node of the model after stands: itself, or what it had replaced."""
        restored = [name for name in self.after.nodes[index].output if name in self._old]
        if restored:
            return [(True, self.before.producer[name]) for name in restored]
        return [] if index in self._dropped else [(False, index)]

    def _maker(self, name: str) -> tuple[bool, int] | None:
        """Who makes a value in the mixture: (whether it is the model before, index)."""
        if name in self._old:
            return True, self.before.producer[name]
        if name in self.after.producer:
            return False, self.after.producer[name]
        if name in self.after.constants or name in self.after.inputs or name not in self.before.producer:
            return None
        return True, self.before.producer[name]

    def _place(self, start: tuple[bool, int]) -> bool:
        """Appends a node after what it needs; False if the two models together form a cycle."""
        pending = [start]
        entered: set[tuple[bool, int]] = set()
        while pending:
            key = pending[-1]
            if key in self._done:
                pending.pop()
                continue
            node = self._node(key)
            needed = [maker for name in reads(node) if (maker := self._maker(name)) is not None and maker not in self._done]
            if not needed:
                self._done.add(key)
                if not key[0]:
                    self._kept.add(len(self._ordered))
                self._ordered.append(node)
                pending.pop()
            elif key in entered:
                return False
            else:
                entered.add(key)
                pending.extend(reversed(needed))
        return True

    def _node(self, key: tuple[bool, int]) -> NodeProto:
        is_old, index = key
        return (self.before if is_old else self.after).nodes[index]

    def _without_clashes(self, clashing: Collection[str]) -> dict[str, str] | None:
        """New names for what kept nodes read of constants whose old values are read too; None if that cannot be told apart."""
        new_names: dict[str, str] = {}
        if any(name in self.after.inputs for name in clashing):
            return None
        for place in self._kept if clashing else ():
            node = self._ordered[place]
            read = [name for name in reads(node) if name in clashing]
            if any(name not in node.input for name in read):  # a body reads it
                return None
            if read:
                copy = NodeProto()
                copy.CopyFrom(node)
                for position, name in enumerate(node.input):
                    if name in clashing:
                        copy.input[position] = new_names.setdefault(name, self._fresh(name))
                self._ordered[place] = copy
        return new_names

    def _fresh(self, name: str) -> str:
        number = 1
        while self.before.knows(f"{name}_{number}") or self.after.knows(f"{name}_{number}"):
            number += 1
        return f"{name}_{number}"

    def _assemble(self) -> Model | None:
        source, old = self.after.model.proto, self.before.model.proto
        restored = [self.before.nodes[index] for is_old, index in self._done if is_old]
        lost = changed_constants(self.before, self.after)
        clashing = {name for node in restored for name in reads(node) if name in lost} if lost else set()
        new_names = self._without_clashes(clashing)
        if new_names is None:
            return None
        calls = {(normal_domain(node.domain), node.op_type) for node in restored}
        functions = functions_of(old)
        if any(key in functions for key in calls & changed_functions(old, source)):
            return None
        proto = ModelProto()
        proto.CopyFrom(source)
        del proto.graph.node[:]
        proto.graph.node.extend(self._ordered)
        _restore(proto, self.before, clashing, new_names)
        read = {name for node in self._ordered for name in reads(node)} | set(self.after.outputs)
        missing = [name for name in read if name not in self.after.constants and name in self.before.constants]
        proto.graph.initializer.extend(self.before.constants[name] for name in sorted(missing) if name not in self.after.producer)
        made = {name for node in self._ordered for name in node.output}
        # what a region that is undone has folded, and what the pass has brought in for it
        needed = read | set(self.before.constants)
        _keep(proto.graph.initializer, lambda tensor: tensor.name in needed and tensor.name not in made)
        again = {name for node in restored for name in node.output}
        _keep(proto.graph.value_info, lambda value: value.name not in again)  # what it says may be of another type
        described = {value.name for value in proto.graph.value_info}
        proto.graph.value_info.extend(
            value for value in old.graph.value_info if value.name in made and value.name not in described
        )
        imported = {normal_domain(entry.domain) for entry in proto.opset_import}
        used = {normal_domain(node.domain) for node in restored}
        proto.opset_import.extend(
            entry
            for entry in old.opset_import
            if normal_domain(entry.domain) in used and normal_domain(entry.domain) not in imported
        )
        return self.after.model.with_proto(proto)


def _restore(proto: ModelProto, before: GraphIndex, clashing: Collection[str], new_names: Mapping[str, str]) -> None:
    """Gives constants their old values, and those of the model after the new names."""
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name in clashing]:
        if tensor.name in new_names:
            proto.graph.initializer.add().CopyFrom(tensor)
            proto.graph.initializer[-1].name = new_names[tensor.name]
        tensor.CopyFrom(before.constants[tensor.name])


def _keep(items: Any, is_kept: Callable[[Any], bool]) -> None:
    kept = [item for item in items if is_kept(item)]
    if len(kept) < len(items):
        del items[:]
        items.extend(kept)
