# What people and CI both call. Needs Python 3.11+ and the package index, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint tests parity bench clean help

help:
	@echo "make demo    train llama3_debug on two local ranks, from a fresh clone (about 3 minutes)"
	@echo "make test    every check and test"
	@echo "make lint    ruff, basedpyright, import-linter"
	@echo "make parity  every layout and model family against one process (up to 45 minutes)"
	@echo "make bench   the benchmarks; tables on the screen, JSON in benchmarks/results/"
	@echo "make clean   remove .venv and caches, not outputs/"

demo: .venv/.installed
	$(BIN)/titan-recipes launch llama3_debug

test: lint tests

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

tests: .venv/.installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

parity: .venv/.installed
	PARITY_REPORT=$(CURDIR)/benchmarks/results/parity.md $(BIN)/pytest -m parity -s tests/trainer/test_parity.py

bench: .venv/.installed benchmarks/.peers/.installed
	$(BIN)/python benchmarks/launcher_speed.py --write benchmarks/results/launcher_speed.json
	$(BIN)/python benchmarks/trainer_overhead.py --write benchmarks/results/trainer_overhead.json
	$(BIN)/python benchmarks/step_breakdown.py --write benchmarks/results/step_breakdown_cpu.json
	$(BIN)/python benchmarks/versus.py --write benchmarks/results/versus_cpu.json

benchmarks/.peers/.installed: benchmarks/peers.txt .venv/.installed
	rm -rf benchmarks/.peers
	$(BIN)/pip install --quiet --no-deps --target benchmarks/.peers -r benchmarks/peers.txt
	@touch $@

.venv/.installed: pyproject.toml constraints.txt
	@echo "installing the pinned packages into .venv, torch among them: 2 to 10 minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[trainer,wandb,dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache dist build
