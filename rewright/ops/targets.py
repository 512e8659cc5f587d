"""Where an op has a kernel. An op without contract is not judged here: standard ops run everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewright.ops.contract import CONTRACTS


def unsupported(domain: str, op: str, dtype: np.dtype[Any] | None, target: str) -> str | None:
    """Why ``target`` cannot run the op on ``dtype``, or None if it can or the op is a standard one."""
    contract = CONTRACTS.get(f"{domain}::{op}")
    if contract is None:
        return None
    kernels, domain = contract.kernels.get(target), domain or "ai.onnx"
    if kernels is None:
        return f"the target '{target}' has no kernel for {domain}.{op}"
    if dtype is None:
        return f"the dtype is unknown, so it is not certain that the target '{target}' has a kernel for {domain}.{op}"
    if dtype.name not in kernels:
        return f"the target '{target}' has no kernel for {domain}.{op} on {dtype.name}"
    return None


def typed_by(domain: str, op: str) -> int:
    """Index of the input whose element type the kernel is chosen by."""
    contract = CONTRACTS.get(f"{domain}::{op}")
    return 0 if contract is None else contract.typed_by
