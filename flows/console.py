"""Where the command line prints: answers and tables to stdout, everything else to stderr."""

import sys

from rich.console import Console

stdout = Console(width=None if sys.stdout.isatty() else 200)
stderr = Console(stderr=True)


def say(text: str) -> None:
    """One line to stderr, as it is."""
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)
