from rewright import PatternPass


class DoubleNegation(PatternPass):
    """Neg(Neg(x)) -> Identity(x)."""

    name = "acme-double-negation"
    before = ("identity-elimination",)

    def pattern(self, op, x):
        return op.Neg(op.Neg(x))

    def rewrite(self, op, x):
        return op.Identity(x)
