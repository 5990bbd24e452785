"""`python -m deployments` is `gguf-flow`, with `serve`."""

from deployments.cli import main

main()
