"""The contracts of the com.microsoft ops: against the installed ONNX Runtime's registry and schemas."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from rewright.ops.contract import CONTRACTS
from rewright.ops.targets import unsupported

OURS = sorted(key for key, contract in CONTRACTS.items() if contract.domain == "com.microsoft")


def schema_of(contract):
    return next(s for s in state.get_all_operator_schema() if (s.domain, s.name) == (contract.domain, contract.op))


@pytest.mark.parametrize("key", OURS)
def test_names_and_attributes_are_the_schemas(key):
    contract, schema = CONTRACTS[key], schema_of(CONTRACTS[key])

    def names(parameters):
        return tuple(item.name + ("?" if item.option.name == "Optional" else "") for item in parameters)

    inputs = names(schema.inputs)  # a later version may add optional ones, which lowering then leaves alone
    assert contract.inputs == inputs[: len(contract.inputs)]
    assert all(name.endswith("?") for name in inputs[len(contract.inputs) :])
    assert contract.outputs == names(schema.outputs)
    assert not [name for name in set(schema.attributes) - set(contract.attributes) if schema.attributes[name].required]
    for name, attribute in contract.attributes.items():
        found = onnx.AttributeProto.FromString(schema.attributes[name]._default_value)
        assert attribute.required == schema.attributes[name].required
        default = helper.get_attribute_value(found)
        assert attribute.default == (pytest.approx(default, rel=1e-6) if isinstance(default, float) else default)


@pytest.mark.parametrize("key", OURS)
def test_no_target_but_the_three_providers_has_a_kernel(key):
    contract = CONTRACTS[key]
    assert set(contract.kernels) <= {"cpu", "cuda", "dml"}
    reason = unsupported(contract.domain, contract.op, np.dtype(np.float32), "portable")
    assert reason == f"the target 'portable' has no kernel for {key.replace('::', '.')}"
