"""Quantization: passes that give weights and activations fewer bits, and what belongs to them."""
