"""`python -m steval` is the console script."""

from steval.cli import main

if __name__ == "__main__":
    main()
