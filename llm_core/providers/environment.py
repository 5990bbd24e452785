"""Keys from the environment, or from a `.env` file beside the settings that stand there."""

import os

from dotenv import dotenv_values


def from_environment(name: str) -> str | None:
    """The value of a variable; one that is set and empty is not set."""
    return os.environ.get(name) or dotenv_values(".env").get(name) or None
