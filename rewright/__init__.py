"""rewright: rewrites ONNX graphs in small, named, pluggable steps and checks the numbers after every one."""

__version__ = "0.1.0"
