"""How fast models are, side by side. The modules are imported by name, so that a measured process imports little."""
