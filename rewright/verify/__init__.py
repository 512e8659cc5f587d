"""Gates: structure, interface and parity, the inputs they need and the proof that they can fail.

The modules are imported by name (``rewright.verify.parity``, ...). Nothing of ours is imported here, so that the session worker,
which lives in this package and runs in a process of its own, starts with numpy and onnxruntime alone.

The package can be called: ``rewright.verify("model.onnx", "out.onnx")`` is ``rewright.verify.models.verify``.
"""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from rewright.verify.models import verify

        return verify(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
