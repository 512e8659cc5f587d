"""The names of session optimizers against the installed ONNX Runtime, whose library holds them as text.

``disabled_optimizers`` ignores a name that there is not, so that a wrong one would go unnoticed: an optimizer that cannot be
named cannot be switched off, and one that is gone carries nothing out.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import onnxruntime
import pytest

from rewright.passes.ort import optimizers

VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
SINCE = {"MatMulNBitsQLoRAFusion": (1, 32), "SwiGluFusion": (1, 32)}
"""Names that older versions do not have."""

BUILT_ELSEWHERE = {"RocmBlasAltImpl"}
"""Names that only builds for other devices have."""

COMPOSED = {"TransposeOptimizer_CPUExecutionProvider": "TransposeOptimizer"}
"""Names that are put together from others when a session is made."""

ALWAYS_RUN = {
    "CastFloat16Transformer",
    "FuseFp16InitializerToFp32NodeTransformer",
    "GenerateRuleBasedGraphTransformer",
    "GqaValueLayoutTransformer",
    "MemcpyTransformer",
    "RemoveDuplicateCastTransformer",
    "SaveShapeValuesFromDataPropagation",
}
"""Text that looks like such a name, of steps that every session takes or of functions."""

LOOKS_LIKE_ONE = re.compile(
    rb"(?<=\0)[A-Z][A-Za-z0-9_]{2,60}(?:Fusion|FusionL[12]|Elimination|Transformer|Optimizer|Propagation|Folding|Sharing|Rewrite"
    rb"|Remover|Cleanup|Approximation|Quantization|NodeUnit)(?=\0)"
)


@cache
def library() -> bytes:
    (path,) = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*")
    return path.read_bytes()


def expected() -> list[str]:
    return [name for name in optimizers.KNOWN if name not in BUILT_ELSEWHERE and SINCE.get(name, VERSION) <= VERSION]


@pytest.mark.parametrize("name", expected())
def test_the_installed_version_has_the_optimizer(name):
    spelled = COMPOSED.get(name, name)
    gone = (
        f"ONNX Runtime {onnxruntime.__version__} has no {name}: take it out of rewright/passes/ort/optimizers.py, and see which"
    )
    assert spelled.encode() in library(), f"{gone} pass names it (rewright passes NAME, docs/backends.md)"


def test_there_is_no_optimizer_that_has_no_name_here():
    found = {match.decode() for match in LOOKS_LIKE_ONE.findall(library())}
    assert {"GeluFusionL1", "ConstantSharing", "ReshapeFusion"} <= found
    new = sorted(found - set(optimizers.KNOWN) - ALWAYS_RUN)
    assert not new, f"new in ONNX Runtime {onnxruntime.__version__}: {new}; add them to rewright/passes/ort/optimizers.py"


def test_the_names_are_told_apart():
    assert len(set(optimizers.KNOWN)) == len(optimizers.KNOWN)
    assert {*SINCE, *BUILT_ELSEWHERE, *COMPOSED} <= set(optimizers.KNOWN)
    assert not ALWAYS_RUN & set(optimizers.KNOWN)
