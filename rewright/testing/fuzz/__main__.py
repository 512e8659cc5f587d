"""`python -m rewright.testing.fuzz`."""

from rewright.testing.fuzz.command import main

if __name__ == "__main__":
    main()
