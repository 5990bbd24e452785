"""The whole command line: what `flows.cli` has, and `serve`."""

from flows.cli import app, main
from flows.console import say
from llm_core.settings import Settings

__all__ = ["main"]


@app.command
def serve() -> None:
    """Bring up a Prefect server (if none answers), the model host, and a deployment per pipeline. Ctrl-C ends all."""
    from deployments.serve import serve as serve_all

    serve_all(Settings(), say)
