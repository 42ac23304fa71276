"""`python -m aalp`."""

from aalp.cli import console

if __name__ == "__main__":
    console()
