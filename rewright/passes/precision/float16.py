"""The ``float16`` pass."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from rewright.passes.precision.operands import ops_holding
from rewright.passes.precision.reduced import ReducedPrecision


class Float16(ReducedPrecision):
    """Computes in float16, except where that would overflow, vanish or round too much: there float32 stays.

    1. A node is converted only if all that it reads and computes is known to fit: proven for every run, or measured in float32 on
       the inputs of the run, ``margin`` times over. A CPU run of a float16 model proves nothing: ONNX Runtime computes most of it
       in float32, so that overflow does not show.
    2. A value that does not fit keeps what computes it and what reads it in float32: values beyond 65504, integers beyond 2048,
       large angles, constants that become zero or infinite. So do variances (the squares of normalisations that are written out),
       sums that may overflow on the way, and what integers are made of.
    3. A constant that is provably nothing but a mask, such as the lowest float32, becomes a quarter of the lowest float16, so
       that it can be added to scores and to other masks. A mask that is computed stays in float32, cut off at that number
       where attention reads it.
    4. Where float32 neighbours would cost more casts than a cheap op saves, the op stays in float32 as well. If nothing is left,
       the model is unchanged.
    5. Bodies of If, Loop and Scan are converted inside; what they are given and give back stays float32. So do the model's inputs
       and outputs, unless ``keep_io`` is false. Functions are left alone: inline them first.
    6. It is assumed that MatMul, Gemm, Conv and softmax accumulate in float32, and normalisations compute in it, as ONNX
       Runtime's kernels do.

    The backend "ort" is onnxruntime.transformers' converter, in another process, told what to leave, and its result sorted;
    it needs the weights in memory, keeps the interface, and masks of the lowest float32 keep their softmax in float32.

    Where no budget is given, outputs have to keep 40 dB, noise of a hundredth of the signal. Exported models of two to twelve
    layers keep 44 dB and more, most of them 60, on rows that are no padding; a value that overflows, or vanishes, costs far
    more than the difference. For another target than a CPU the comparison rounds after each op, as the target does.

    Put it last: the fusions find a normalisation that is written out in either type, but an island of float32 stays one.

    Source: IEEE 754 binary16; the op schemas of ONNX say which ops take it.
    """

    name = "float16"
    backends = ("standalone", "ort")
    carrier = "onnxruntime.transformers.float16"
    dtype = np.dtype(np.float16)
    after = ("gelu-approximation", "dead-code")
    quantizes = ops_holding("float16")
    least: ClassVar[str] = "sqnr=40, cosine=0.9999"
    cpu_note: ClassVar[str] = (
        "for the target cpu, ONNX Runtime has few float16 kernels and casts to float32 and back around most ops: the file is"
        " smaller, and it is slower; --target cuda is what float16 is for"
    )
