"""`python -m flows` is `gguf-flow`."""

from flows.cli import main

main()
