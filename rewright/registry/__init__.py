"""Where passes come from and in which order they run: hooks, plugin discovery, the catalog, ordering and chains.

Nothing is imported here, so that a plugin's `hookimpl` import stays cheap; take names from the modules below.
"""
