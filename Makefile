# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.installed ## answer a question through the base pipeline with a small real model
	$(BIN)/gguf-flow models pull smollm2
	$(BIN)/gguf-flow run "Why is the sky blue?"

test: $(VENV)/.installed-dev ## the whole test suite, on real models and a real Prefect server
	$(BIN)/gguf-flow models pull smollm2
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# llama-cpp-python is built from source the first time: about 4 minutes on 2 cores.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
