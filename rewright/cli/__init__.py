"""The command line: thin, what it does is in ``rewright.api``."""
