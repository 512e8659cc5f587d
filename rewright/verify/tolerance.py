"""Tolerances by dtype and exactness, and the order of the four exactness classes.

Two outputs agree when every element satisfies `|candidate - reference| <= atol * scale + rtol * |reference|`, with
`scale = max(1, rms(reference))`, and when `rms(candidate - reference) <= drift * rms(reference)`.

The scale is there because rounding noise follows the magnitude of the values that were summed, not that of the one
element that happens to be near zero: logits of magnitude 100 carry a hundred times the noise of a layer-normalised row.
It never drops below 1, since a small output (a regression score) is often the difference of values of magnitude 1.
The drift catches what that leaves open: probabilities over a large vocabulary are 1e-4 or less, so that an absolute
tolerance of 1e-5 alone would accept a graph that is wrong by a tenth.

Calibration: over a hundred exported two-layer models, onnxruntime's own fusions move float32 outputs by at most 5e-6 of
their RMS, and usually by less than 1e-6.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewright.passes.contract import Exactness

ORDER: Final[tuple[Exactness, ...]] = ("exact", "reassociating", "approximate", "quantizing")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a candidate's output may be from the reference.

    `rtol` and `atol` bound each element; `atol` is multiplied by `max(1, rms(reference))`. `drift` bounds the
    root-mean-square difference relative to the reference's own root mean square.
    """

    rtol: float
    atol: float
    drift: float = float("inf")

    @property
    def is_exact(self) -> bool:
        """Whether every element has to be equal."""
        return self.rtol == 0.0 and self.atol == 0.0


EXACT: Final = Tolerance(0.0, 0.0, 0.0)

_REASSOCIATING: Final = {
    "float64": Tolerance(1e-7, 1e-7, 1e-5),
    "float32": Tolerance(1e-5, 1e-5, 1e-3),
    "float16": Tolerance(2e-3, 1e-3, 2e-2),
    "bfloat16": Tolerance(1.6e-2, 1e-2, 1e-1),
}
_APPROXIMATE: Final = {
    "float64": Tolerance(1e-3, 1e-3, 2e-2),
    "float32": Tolerance(1e-3, 1e-3, 2e-2),
    "float16": Tolerance(5e-3, 5e-3, 5e-2),
    "bfloat16": Tolerance(2e-2, 2e-2, 1.5e-1),
}
# Three mantissa bits or fewer: one rounding step is an eighth of the value.
_EIGHT_BIT_FLOAT: Final = Tolerance(1.3e-1, 1.3e-1, 2e-1)
_COMPLEX: Final = {"complex64": "float32", "complex128": "float64"}


def tolerance_for(dtype: np.dtype, exactness: Exactness) -> Tolerance:
    """The tolerance for outputs of `dtype` after passes of this exactness.

    Integers, booleans and strings have to be equal, whatever the exactness. Quantizing passes are judged by
    `rewright.verify.comparison.QuantizationBudget`; for them this is the tolerance that a report quotes.
    """
    if exactness == "exact" or not is_floating(dtype):
        return EXACT
    table = _REASSOCIATING if exactness == "reassociating" else _APPROXIMATE
    return table.get(_COMPLEX.get(dtype.name, dtype.name), _EIGHT_BIT_FLOAT)


def is_floating(dtype: np.dtype) -> bool:
    """Whether `dtype` holds rounded numbers: IEEE floats, complex numbers, bfloat16 and the eight-bit floats."""
    return dtype.kind in "fc" or dtype.name.startswith(("bfloat", "float"))


def least_exact(exactnesses: Iterable[Exactness]) -> Exactness:
    """The loosest promise of several passes; `exact` when there are none."""
    return max(exactnesses, key=ORDER.index, default="exact")
