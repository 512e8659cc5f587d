"""The ``bfloat16`` pass."""

from __future__ import annotations

from typing import ClassVar

import ml_dtypes
import numpy as np

from rewright.passes.deferral import Deferral
from rewright.passes.precision.operands import ops_holding
from rewright.passes.precision.reduced import ReducedPrecision


class BFloat16(ReducedPrecision):
    """Computes in bfloat16, which holds what float32 holds with three digits fewer than float16.

    As ``float16``; range is no problem, rounding is: what stays in float32 are integers beyond 256, angles, variances, long sums,
    and what integers are made of. ONNX Runtime's CPU provider computes next to nothing in bfloat16 and does not cast either: for
    the target cpu only what it has kernels for is converted.

    Where no budget is given, outputs have to keep 25 dB: three binary digits fewer are 18 dB, and of the exported models
    that keep 44 dB and more in float16 the worst keeps 31 dB in bfloat16.

    Source: the op schemas of ONNX say which ops take it.
    """

    name = "bfloat16"
    dtype = np.dtype(ml_dtypes.bfloat16)
    after = ("gelu-approximation", "dead-code")
    quantizes = ops_holding("bfloat16")
    least: ClassVar[str] = "sqnr=25, cosine=0.998"
    cpu_note: ClassVar[str] = (
        "ONNX Runtime's CPU provider moves bfloat16 and computes almost nothing in it; --target cuda is for it"
    )
    ort = Deferral(declines="the converter of onnxruntime.transformers makes float16 and no other type")
