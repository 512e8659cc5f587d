"""Symbolic shapes: sizes as polynomials over dimension symbols, and the dimensions of every value of a model in terms of them."""
