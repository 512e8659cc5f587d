"""The op contracts against the kernels that the installed ONNX Runtime registers, both ways."""

from __future__ import annotations

from dataclasses import replace

import onnxruntime
import pytest

from rewright.ops import installed
from rewright.ops.contract import CONTRACTS

RENEW = (
    "\nThe installed ONNX Runtime has other kernels than the op contracts say. Change the contracts (rewright/ops), run"
    "\n    python -m rewright.testing.backends --no-plugins > docs/backends.md"
    "\nand let the passes' tests say what that changes."
)


def test_every_contract_claims_the_kernels_that_there_are_and_no_others():
    found = [str(item) for item in installed.disagreements()]
    assert not found, "\n".join((*found, RENEW))


def test_the_processor_is_compared_and_only_targets_that_onnx_runtime_was_built_for():
    assert "cpu" in installed.registered_targets()
    assert set(installed.registered_targets()) <= set(installed.PROVIDERS)
    assert "portable" not in installed.PROVIDERS


def test_a_kernel_too_many_and_one_too_few_are_told_by_op_type_and_version():
    key = "com.microsoft::GroupQueryAttention"
    changed = replace(CONTRACTS[key], kernels={**CONTRACTS[key].kernels, "cpu": ("float32", "float64")})
    version = onnxruntime.__version__
    assert [str(item) for item in installed.disagreements({key: changed})] == [
        f"com.microsoft.GroupQueryAttention on cpu in float16: ONNX Runtime {version} has a kernel, and the contract claims none",
        f"com.microsoft.GroupQueryAttention on cpu in float64: ONNX Runtime {version} has no kernel, and the contract claims one",
    ]


def test_a_contract_without_kernels_disagrees_in_each_type_that_has_one():
    key = "::SimplifiedLayerNormalization"
    found = list(installed.disagreements({key: replace(CONTRACTS[key], kernels={})}))
    assert {item.dtype for item in found} == {"float32", "float16", "bfloat16", "float64"}
    assert {(item.op, item.target, item.is_claimed) for item in found} == {("SimplifiedLayerNormalization", "cpu", False)}


def test_kernels_are_those_of_the_input_that_the_contract_is_typed_by():
    """The first input of EmbedLayerNormalization is of integers, the third of floats."""
    assert installed.registered_dtypes("com.microsoft", "EmbedLayerNormalization", typed_by=2) == ("float32",)
    assert installed.registered_dtypes("com.microsoft", "EmbedLayerNormalization", typed_by=0) == ()


def test_a_kernel_for_a_type_that_the_schema_does_not_admit_cannot_be_used():
    registered = {
        dtype
        for kernel in installed._kernels()["com.microsoft", "SkipLayerNormalization"]
        for dtype in kernel.type_constraints["T"]
    }
    assert "tensor(double)" in registered
    assert "float64" not in installed.registered_dtypes("com.microsoft", "SkipLayerNormalization")


@pytest.mark.parametrize(("op", "opset"), [("Gelu", 20), ("RMSNormalization", 23), ("Attention", 23), ("RotaryEmbedding", 23)])
def test_a_standard_op_has_its_kernels_from_the_opset_on_that_it_came_with(op, opset):
    assert installed.registered_dtypes("", op, opset=opset - 1) == ()
    assert "float32" in installed.registered_dtypes("", op, opset=opset)
    assert "float32" in installed.registered_dtypes("ai.onnx", op, opset=opset + 1)


def test_an_op_that_there_is_not_has_no_kernels():
    assert installed.registered_dtypes("com.microsoft", "GemmFastGelu") == ()
    assert installed.registered_dtypes("acme", "Mystery") == ()
