"""Which nodes a target cannot run: what the opset lacks, what the op's types do not admit, and where there is no kernel.

Fused ops are judged by their contracts, for every target. Standard ops are judged by ONNX's schemas, and for the target ``cpu``
by the kernels that the installed onnxruntime registers; those of other targets are not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from rewright.model.elements import normal_domain
from rewright.ops.contract import CONTRACTS
from rewright.ops.targets import unsupported
from rewright.passes.session import label
from rewright.verify.static.evidence import Certainty, Finding, Kind
from rewright.verify.static.interval import DType, format_of
from rewright.verify.static.ranges import Ranges

_PROVIDER: Final = "CPUExecutionProvider"
_NEWEST: Final = 2**31 - 1
_CASTED: Final = "float16"
"""The type that onnxruntime computes in float32, between Casts, where an op has no kernel for it."""

_SERVED: Final = {"tensor(float)", f"tensor({_CASTED})", "tensor(int64)", "tensor(int32)", "tensor(bool)"}
"""Types that onnxruntime has kernels of the simple ops for, or puts Casts around them."""

Signature = tuple[str | None, ...]
"""The element types of the inputs, as "tensor(float)"; None where one is unknown, "" where the input is omitted."""


@dataclass(frozen=True)
class _Verdict:
    kind: Kind
    certainty: Certainty
    message: str


def unsupported_nodes(ranges: Ranges, target: str, precision: DType | None = None) -> tuple[list[Finding], list[str]]:
    """The nodes of the model that the target cannot run, one finding for each kind of node.

    Args:
        ranges: knows the element types.
        target: "cpu", "cuda", "dml" or "portable".
        precision: what every wider floating-point value would become; None leaves the types as they are.

    Returns:
        the findings, and what could not be looked at.
    """
    found: dict[tuple[Any, ...], Finding] = {}
    functions = {(normal_domain(function.domain), function.name) for function in ranges.view.functions}
    for graph in ranges.view.graphs():
        opsets = {domain: ranges.view.opset_of(graph, domain) for domain in {normal_domain(node.domain) for node in graph.nodes}}
        for node in graph.nodes:
            domain = normal_domain(node.domain)
            if (domain, node.op) in functions or (domain, node.op) == ("", "Constant"):
                continue
            types = tuple(_type_of(ranges, tensor, precision) for tensor in node.inputs)
            key = (domain, node.op, opsets[domain], types)
            if key in found:
                found[key].nodes += 1
            elif (verdict := _judged(domain, node.op, opsets[domain], types, target)) is not None:
                found[key] = Finding(
                    kind=verdict.kind, certainty=verdict.certainty, node=label(node), op=node.op, message=verdict.message
                )
    notes = []
    if target in ("cuda", "dml"):
        notes.append(f"kernels of the target '{target}' are known for fused ops only")
    if target == "cpu" and not _kernels():
        notes.append("the installed onnxruntime does not say which kernels it has")
    return list(found.values()), notes


def _type_of(ranges: Ranges, tensor: Any, precision: DType | None) -> str | None:
    """The element type of an operand in the model, or in the one that ``precision`` makes of it."""
    if not tensor.name:
        return ""
    dtype = ranges.dtype(tensor)
    if dtype is None:
        return None
    if precision is not None and (held := format_of(dtype)).is_float and held.largest > format_of(precision).largest:
        dtype = precision
    try:
        return _text(dtype)
    except (KeyError, ValueError):
        return None


@cache
def _text(dtype: DType) -> str:
    name = onnx.TensorProto.DataType.Name(helper.np_dtype_to_tensor_dtype(dtype)).lower()
    return f"tensor({name})"


@lru_cache(maxsize=4096)
def _judged(domain: str, op: str, opset: int, types: Signature, target: str) -> _Verdict | None:
    contract = CONTRACTS.get(f"{domain}::{op}")
    if contract is not None and (domain or target in contract.kernels):
        kind = types[contract.typed_by] if contract.typed_by < len(types) else None
        reason = unsupported(domain, op, _dtype(kind), target)
        # what is not known is not held against a node
        return _Verdict("kernel", "certain", reason) if reason is not None and kind else None
    if domain not in ("", "ai.onnx.ml"):
        if target == "portable":
            return _Verdict("schema", "certain", f"{domain}.{op} is not a standard op")
        if not domain.startswith("com.microsoft"):
            return _Verdict("kernel", "possible", f"{domain}.{op} is of a domain of its own: the runtime has to bring it")
    wrong = _against_schema(domain, op, opset, types) if domain in ("", "ai.onnx.ml") else None
    if wrong is not None and not (target == "cpu" and _has_kernel(domain, op, opset, types) is None):
        return wrong
    return _against_kernels(domain, op, opset, types) if target == "cpu" and _kernels() else None


def _dtype(text: str | None) -> DType | None:
    if not text:
        return None
    number = onnx.TensorProto.DataType.Value(text.removeprefix("tensor(").removesuffix(")").upper())
    return np.dtype(helper.tensor_dtype_to_np_dtype(number))


def _schema(domain: str, op: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _against_schema(domain: str, op: str, opset: int, types: Signature) -> _Verdict | None:
    schema = _schema(domain, op, opset)
    if schema is None:
        return _Verdict("schema", "certain", f"opset {opset} has no {op}")
    if schema.deprecated:
        return _Verdict("schema", "certain", f"{op} is deprecated in opset {opset}")
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    for formal, given in _paired(schema, types):
        admitted = allowed.get(formal.type_str)
        if given and admitted is not None and given not in admitted:
            return _Verdict("schema", "certain", f"{op} of opset {opset} does not take {_spoken(given)} as '{formal.name}'")
    return None


def _paired(schema: Any, types: Signature) -> Iterator[tuple[Any, str | None]]:
    """The formal inputs with the types that are given; a variadic one takes all that are left."""
    for index, given in enumerate(types):
        if index < len(schema.inputs):
            yield schema.inputs[index], given
        elif schema.inputs and schema.inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic:
            yield schema.inputs[-1], given


def _spoken(text: str) -> str:
    return text.removeprefix("tensor(").removesuffix(")")


def _against_kernels(domain: str, op: str, opset: int, types: Signature) -> _Verdict | None:
    missing = _has_kernel(domain, op, opset, types)
    if missing is None:
        return None
    schema = _schema(domain, op, opset)
    if schema is not None and (schema.has_function or schema.has_context_dependent_function):
        # onnxruntime takes the op apart before it would put Casts around it
        apart = f"the target 'cpu' runs {op} as the ops of its definition: no kernel{missing}"
        if all(kind in _SERVED for kind in types if kind):
            return _Verdict("kernel", "note", apart)
        return _Verdict("kernel", "possible", f"{apart}, nor perhaps for those")
    wider = tuple("tensor(float)" if kind == f"tensor({_CASTED})" else kind for kind in types)
    if wider != types and _has_kernel(domain, op, opset, wider) is None:
        return _Verdict("kernel", "note", f"the target 'cpu' computes {op} in float32 between Casts: no kernel{missing}")
    return _Verdict("kernel", "certain", f"the target 'cpu' has no kernel for {op}{missing}")


def _has_kernel(domain: str, op: str, opset: int, types: Signature) -> str | None:
    """None if onnxruntime has a kernel for the op on these types; else what it has none for, to follow the op's name."""
    kernels = _kernels().get((domain, op), ())
    schema = _schema(domain, op, opset) if domain != "com.microsoft" else None
    since = schema.since_version if schema is not None else opset
    fitting = [kernel for kernel in kernels if _is_version(kernel.version_range, since)]
    if not fitting:
        return f" in opset {opset}" if kernels else ""
    if schema is None:
        return None
    wrong: str | None = None
    for kernel in fitting:
        refused = _refused(kernel.type_constraints, schema, types)
        if refused is None:
            return None
        wrong = wrong or refused
    return f" on {_spoken(wrong or '')}"


def _is_version(bounds: tuple[int, int], since: int) -> bool:
    """Whether a kernel for these versions serves the op as it was defined in ``since``; onnxruntime's own rule."""
    first, last = bounds
    return first == since or (last < _NEWEST and first <= since <= last)


def _refused(constraints: dict[str, list[str]], schema: Any, types: Signature) -> str | None:
    """The first type that a kernel's constraints do not admit."""
    for formal, given in _paired(schema, types):
        admitted = constraints.get(formal.type_str, constraints.get(formal.name))
        if given and admitted is not None and given not in admitted:
            return given
    return None


@cache
def _kernels() -> dict[tuple[str, str], list[Any]]:
    """What the CPU provider of the installed onnxruntime has kernels for; empty where it does not tell."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as runtime

        defined = runtime.get_all_opkernel_def()
    except (ImportError, AttributeError):
        return {}
    found: dict[tuple[str, str], list[Any]] = {}
    for kernel in defined:
        if kernel.provider == _PROVIDER:
            found.setdefault((normal_domain(kernel.domain), kernel.op_name), []).append(kernel)
    return found
