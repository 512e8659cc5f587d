"""Site parity: each changed region before against after, as two small models over the same boundary values."""
