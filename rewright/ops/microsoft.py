"""The domain of ONNX Runtime's contrib ops, whose contracts the other modules of this room hold."""

from __future__ import annotations

from typing import Final

DOMAIN: Final = "com.microsoft"
