"""``python -m nodepass`` is the ``nodepass`` command."""

from nodepass.cli import console

if __name__ == "__main__":
    console()
