# What CI runs is what you run: `make setup` once, then `make check test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup check format test

setup:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	if [ -d .git ] && ! git config core.hooksPath >/dev/null; then $(BIN)/pre-commit install; fi

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test:
	$(BIN)/python -m pytest
