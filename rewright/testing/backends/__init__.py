"""What each pass does: by itself and by ONNX Runtime, for each target and float type: ``python -m rewright.testing.backends``.

It writes docs/backends.md. `trials` lets every fusion pass have a go at an example; `page` puts that beside what the passes,
the op contracts and the installed ONNX Runtime say.
"""

from rewright.testing.backends.page import page as page
