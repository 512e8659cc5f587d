"""The op contract: inputs, attributes and kernels of a non-standard op, and its meaning as a body of standard ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import FunctionProto, NodeProto

Body = Callable[[NodeProto, int, int], FunctionProto | None]
"""(node, opset of the standard domain, elem type of the input that the contract is typed by) -> the op's meaning for that node.

The function's inputs and outputs are those that the node gives; an optional one that it omits is not among them. None: the
node asks for something that the contract does not describe (a cache, a packed form); it is left as it is."""


@dataclass(frozen=True)
class Attribute:
    """An attribute of the op and the schema's default; ``required`` where there is none."""

    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class OpContract:
    """What rewright relies on when it emits an op.

    Attributes:
        domain, op: the op.
        inputs: names in order; optional ones end in "?".
        outputs: names in order; optional ones end in "?".
        attributes: by name.
        kernels: numpy dtype names by target; a target that is absent has no kernel.
        body: the op's meaning in standard ONNX ops, for the attributes and inputs of one node.
        source: where the facts come from.
        typed_by: index of the input whose element type the kernels are chosen by, and which the first output has.
    """

    domain: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernels: Mapping[str, tuple[str, ...]]
    body: Body = field(repr=False)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    source: str = ""
    typed_by: int = 0


CONTRACTS: dict[str, OpContract] = {}
"""Every contract by "domain::Op"; filled when rewright.ops is imported."""


def register(contract: OpContract) -> OpContract:
    """Adds a contract; plugins may call it for the ops that their passes emit."""
    CONTRACTS[f"{contract.domain}::{contract.op}"] = contract
    return contract
