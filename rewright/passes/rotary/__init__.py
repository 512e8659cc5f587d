"""Recognising rotary position embedding by what happens to each element, not by which ops move it."""
