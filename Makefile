# Two commands for a newcomer: `make demo` and `make test`. Each does its whole set-up once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint shipped clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/ready
	PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup

slow: .venv/ready
	$(BIN)/pytest -m slow

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The model inside the package, trained anew: not a part of any other target.
shipped: .venv/ready
	PATH="$(abspath $(BIN)):$$PATH" bash examples/shipped.sh

clean:
	rm -rf .venv demo build dist *.egg-info
