"""The rules of all ops, by (domain, op)."""

from __future__ import annotations

from typing import Final

from rewright.verify.static import contraction, elementwise, layout, normalization
from rewright.verify.static.ranges import Rule

RULES: Final[dict[tuple[str, str], Rule]] = {
    **elementwise.RULES,
    **layout.RULES,
    **contraction.RULES,
    **normalization.RULES,
}
