"""Gates: structure, interface and parity, the inputs they need and the proof that they can fail.

The modules are imported by name (`rewright.verify.parity`, ...). Nothing is imported here, so that the session worker,
which lives in this package and runs in a process of its own, starts with numpy and onnxruntime alone.
"""
