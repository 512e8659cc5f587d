import ml_dtypes
import numpy as np
import pytest

from rewright.verify.tolerance import EXACT, least_exact, tolerance_for


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
def test_an_exact_pass_has_no_tolerance(dtype):
    assert tolerance_for(np.dtype(dtype), "exact") == EXACT


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.object_, ml_dtypes.int4])
@pytest.mark.parametrize("exactness", ["reassociating", "approximate", "quantizing"])
def test_whole_numbers_booleans_and_strings_are_exact_always(dtype, exactness):
    assert tolerance_for(np.dtype(dtype), exactness) == EXACT


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [
        (np.float64, 1e-7, 1e-7),
        (np.float32, 1e-5, 1e-5),
        (np.float16, 2e-3, 1e-3),
        (ml_dtypes.bfloat16, 1.6e-2, 1e-2),
        (np.complex64, 1e-5, 1e-5),
    ],
)
def test_reassociating_table(dtype, rtol, atol):
    tolerance = tolerance_for(np.dtype(dtype), "reassociating")
    assert (tolerance.rtol, tolerance.atol) == (rtol, atol)


def test_a_narrower_type_is_never_held_to_a_tighter_bound():
    types = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
    for exactness in ("reassociating", "approximate"):
        bounds = [tolerance_for(np.dtype(dtype), exactness) for dtype in types]
        assert [bound.rtol for bound in bounds] == sorted(bound.rtol for bound in bounds)
        assert [bound.drift for bound in bounds] == sorted(bound.drift for bound in bounds)


def test_least_exact_is_the_loosest_promise():
    assert least_exact([]) == "exact"
    assert least_exact(["exact", "approximate", "reassociating"]) == "approximate"
    assert least_exact(["quantizing", "exact"]) == "quantizing"
