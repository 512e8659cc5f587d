"""The kernels that the installed ONNX Runtime registers, and where the op contracts say otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from rewright.model.elements import normal_domain
from rewright.ops.contract import CONTRACTS, OpContract

PROVIDERS: Final[Mapping[str, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "dml": "DmlExecutionProvider",
}
"""By target; an installed ONNX Runtime has some of them."""

DTYPES: Final[Mapping[str, str]] = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "float64": "tensor(double)",
}
"""numpy's names of the float types, and ONNX Runtime's."""


@dataclass(frozen=True)
class Disagreement:
    """A kernel that a contract claims and ONNX Runtime does not have, or the other way round."""

    op: str
    target: str
    dtype: str
    is_claimed: bool

    def __str__(self) -> str:
        from onnxruntime import __version__

        has = "has no kernel" if self.is_claimed else "has a kernel"
        claims = "claims one" if self.is_claimed else "claims none"
        return f"{self.op} on {self.target} in {self.dtype}: ONNX Runtime {__version__} {has}, and the contract {claims}"


def registered_targets() -> tuple[str, ...]:
    """The targets whose provider the installed ONNX Runtime was built with."""
    built = {kernel.provider for kernels in _kernels().values() for kernel in kernels}
    return tuple(target for target, provider in PROVIDERS.items() if provider in built)


def registered_dtypes(domain: str, op: str, target: str = "cpu", *, typed_by: int = 0, opset: int = 1) -> tuple[str, ...]:
    """The float types that ONNX Runtime has a kernel of the op for, and that the op's schema admits.

    Args:
        domain, op: of the op.
        target: whose provider is asked.
        typed_by: the input that the kernel is chosen by.
        opset: the version of the domain.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    schema = _schema(domain, op, opset)
    if schema is None:
        return ()
    parameter = schema.inputs[typed_by].typeStr
    admitted = set(next((item.allowed_type_strs for item in schema.type_constraints if item.type_param_str == parameter), ()))
    found: set[str] = set()
    for kernel in _kernels().get((normal_domain(domain), op), ()):
        first, last = kernel.version_range
        if kernel.provider == PROVIDERS[target] and first <= opset <= last:
            found.update(kernel.type_constraints.get(parameter, ()))
    return tuple(dtype for dtype, spelled in DTYPES.items() if spelled in found & admitted)


def disagreements(contracts: Mapping[str, OpContract] | None = None) -> Iterator[Disagreement]:
    """Where the kernels of contracts (all of them by default) and of the installed ONNX Runtime differ, both ways.

    Targets whose provider it was not built with are not compared.
    """
    for key, contract in (CONTRACTS if contracts is None else contracts).items():
        for target in registered_targets():
            claimed = set(contract.kernels.get(target, ()))
            there = set(registered_dtypes(contract.domain, contract.op, target, typed_by=contract.typed_by))
            for dtype in DTYPES:
                if (dtype in claimed) != (dtype in there):
                    yield Disagreement(key.removeprefix("::").replace("::", "."), target, dtype, dtype in claimed)


@cache
def _kernels() -> dict[tuple[str, str], list[Any]]:
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    found: dict[tuple[str, str], list[Any]] = {}
    for kernel in get_all_opkernel_def():
        found.setdefault((normal_domain(kernel.domain), kernel.op_name), []).append(kernel)
    return found


@cache
def _schemas() -> dict[tuple[str, str], list[Any]]:
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    found: dict[tuple[str, str], list[Any]] = {}
    for schema in get_all_operator_schema():
        found.setdefault((normal_domain(schema.domain), schema.name), []).append(schema)
    return found


def _schema(domain: str, op: str, opset: int) -> Any | None:
    """ONNX Runtime's newest definition of the op that is not newer than the version of its domain."""
    known = [schema for schema in _schemas().get((normal_domain(domain), op), ()) if schema.since_version <= opset]
    return max(known, key=lambda schema: schema.since_version, default=None)
