"""`python -m rewright.testing.fuzz`."""

import sys


def main() -> None:
    """The command, if what it generates graphs with is installed."""
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError:
        sys.stderr.write('error: the fuzzer needs hypothesis, which is not installed.\nhint: pip install "rewright[testing]"\n')
        sys.exit(2)
    from rewright.testing.fuzz.command import main as command

    command()


if __name__ == "__main__":
    main()
