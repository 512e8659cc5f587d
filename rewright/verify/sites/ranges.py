"""Which values of a model can take any floating-point number.

A boundary value may be replaced by numbers of our own only if nothing upstream limits what it can be: the output of a MatMul can
be anything, that of a Softmax cannot, and a rewrite is right to rely on it.
"""

from __future__ import annotations

from typing import Final

from onnx import NodeProto

from rewright.model.carrier import Model
from rewright.model.elements import normal_domain
from rewright.model.errors import UsageError
from rewright.model.regions import GraphIndex
from rewright.verify.roles import infer_roles

_ANY_OPERAND: Final = frozenset({"Add", "Sub", "Sum", "Mean", "Concat", "Einsum"})
_PRODUCTS: Final = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_TELLING_LITTLE: Final = frozenset(
    {
        "Shape", "Size", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf",
        "ArgMax", "ArgMin", "NonZero", "Range", "ConstantOfShape", "Sign",
    }
)  # fmt: skip
"""Ops of whose operands too little is left for a product of the output to be any number."""

_NOT_SQUARED: Final = frozenset({"Mul", "Div"})
_FIRST_OPERAND: Final = frozenset(
    {
        "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Slice", "Split", "Identity", "Cast", "Tile", "Flatten", "Pad",
        "Dropout", "Neg", "ReduceMean", "ReduceSum", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "Resize",
        "AveragePool", "GlobalAveragePool", "RotaryEmbedding", "CastLike", "BiasAdd", "BiasSplitGelu",
    }
)  # fmt: skip
_NORMALISATIONS: Final = frozenset(
    {
        "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "BatchNormalization", "InstanceNormalization",
        "GroupNormalization", "GroupNorm", "SkipGroupNorm",
    }
)  # fmt: skip
_ATTENTIONS: Final = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention", "GemmFastGelu"})

MIXING: Final = _NORMALISATIONS | _ATTENTIONS | _PRODUCTS
"""Ops whose output is for all that a rewrite can know independent of what they read."""


class FreeValues:
    """Answers for the values of one model; each is looked at once."""

    def __init__(self, index: GraphIndex, inputs: frozenset[str]) -> None:
        self._index = index
        self._known: dict[str, bool] = dict.fromkeys(inputs, True)
        self._varies: dict[str, bool] = dict.fromkeys(inputs, True)

    def takes_any(self, name: str) -> bool:
        """Whether the value can be any number, as far as the ops that make it tell."""
        pending = [name]
        while pending:
            current = pending[-1]
            if current in self._known:
                pending.pop()
                continue
            node = self._index.node_of(current)
            operands = self._operands(node) if node is not None else None
            if operands is None or isinstance(operands, bool):
                self._known[current] = bool(operands)
                pending.pop()
                continue
            missing = [operand for operand in operands if operand not in self._known]
            if missing and not any(self._known.get(operand, False) for operand in operands):
                pending.append(missing[0])
                continue
            self._known[current] = any(self._known[operand] for operand in operands if operand in self._known)
            pending.pop()
        return self._known[name]

    def _varies_freely(self, names: list[str]) -> bool:
        """Whether something free has a part in one of the values, whatever was done to it: an activation limits what it gives,
        and the product of that with weights is again any number.
        """
        pending, seen = list(names), set(names)
        path: list[str] = []
        while pending:
            name = pending.pop()
            if self._varies.get(name, False):
                self._varies.update(dict.fromkeys(names, True))
                return True
            node = self._index.node_of(name)
            if name in self._varies or node is None or node.op_type in _TELLING_LITTLE:
                continue
            path.append(name)
            if node.op_type in _NORMALISATIONS or node.op_type in _ATTENTIONS or picks_weights(node, self._index):
                self._varies.update(dict.fromkeys((name, *names), True))
                return True
            fresh = [read for read in node.input if read and read not in seen and read not in self._index.constants]
            seen.update(fresh)
            pending.extend(fresh)
        self._varies.update(dict.fromkeys((*path, *names), False))
        return False

    def _operands(self, node: NodeProto) -> list[str] | bool:
        """The operands of which one must be free for the output to be free; or the answer itself."""
        op, inputs = node.op_type, [name for name in node.input if name]
        if op in _NORMALISATIONS or op in _ATTENTIONS:
            return True
        if normal_domain(node.domain) not in ("", "com.microsoft"):
            return False
        if op in _PRODUCTS:
            return self._varies_freely([name for name in inputs if name not in self._index.constants])
        if op in _ANY_OPERAND:
            return [name for name in inputs if name not in self._index.constants]
        if op in _NOT_SQUARED:
            return [name for name in inputs if name not in self._index.constants] if len(set(inputs)) == len(inputs) else False
        if op in _FIRST_OPERAND:
            return inputs[:1]
        if op == "Where":
            return inputs[1:]
        if op == "Gather":
            return True if picks_weights(node, self._index) else inputs[:1]
        return False


def picks_weights(node: NodeProto, index: GraphIndex) -> bool:
    """Whether a node picks rows of a table of weights by numbers that are not known: an embedding."""
    if node.op_type != "Gather" or node.domain:
        return False
    table = index.constants.get(node.input[0])
    return table is not None and len(table.dims) > 1 and node.input[1] not in index.constants


def free_inputs(model: Model) -> frozenset[str]:
    """The graph inputs that hold plain numbers; not masks, positions, or indices."""
    try:
        roles = infer_roles(model)
    except UsageError:
        return frozenset()
    return frozenset(role.name for role in roles if role.kind in ("float", "past", "image", "waveform"))


def index_inputs(model: Model) -> dict[str, tuple[int, int]]:
    """The graph inputs that pick rows of a table of known height: the first legal row, and one more than the last."""
    try:
        roles = infer_roles(model)
    except UsageError:
        return {}
    return {role.name: (role.low, role.bound) for role in roles if role.kind == "index" and role.bound is not None}
