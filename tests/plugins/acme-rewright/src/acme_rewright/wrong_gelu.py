from rewright import PatternPass


class WrongGelu(PatternPass):
    """Erf(x) -> Tanh(x): looks alike, claims to be exact, and is wrong on purpose, for verification to catch."""

    name = "acme-wrong-gelu"

    def pattern(self, op, x):
        return op.Erf(x)

    def rewrite(self, op, x):
        return op.Tanh(x)
