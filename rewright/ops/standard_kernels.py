"""Where standard ops have kernels for bfloat16, which few providers compute in."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from rewright.ops.installed import registered_dtypes, registered_targets

_CUDA: Final = frozenset((
    "Abs", "Add", "Attention", "AveragePool", "Cast", "Compress", "Concat", "ConstantOfShape", "Conv", "Div", "Dropout", "Erf",
    "Exp", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LayerNormalization", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "RMSNormalization", "ReduceSum",
    "Relu", "Reshape", "ReverseSequence", "RotaryEmbedding", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign", "Size",
    "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "TensorScatter", "Tile", "Transpose", "Trilu",
    "Unsqueeze", "Where",
))  # fmt: skip
"""Ops with a kernel for bfloat16 in the opsets whose schema admits it: ONNX Runtime, docs/OperatorKernels.md."""


@lru_cache(maxsize=1024)
def runs_in_bfloat16(op: str, opset: int, target: str) -> bool:
    """Whether the target computes a standard op in bfloat16. A provider that is installed is asked; DirectML has no bfloat16."""
    if target in registered_targets():
        return "bfloat16" in registered_dtypes("", op, target, opset=opset)
    return target == "cuda" and op in _CUDA
