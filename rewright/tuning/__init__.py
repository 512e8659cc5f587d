"""Quantizing as a whole: what is asked for as a chain, what each node costs, and what is better left in float."""
