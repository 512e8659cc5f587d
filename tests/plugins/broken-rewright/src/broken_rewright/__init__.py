"""A plugin whose import fails, as one does whose own dependency is missing or too old."""

raise RuntimeError("libbroken.so.3 is missing")
