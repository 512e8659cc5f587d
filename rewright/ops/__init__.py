"""Op contracts: what each fused op means, and where it runs."""
