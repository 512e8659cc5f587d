"""Recognising attention by the roles of its values, and writing it as one op. The passes that do so lie in ``fusion``."""
