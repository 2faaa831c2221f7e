# Both commands set up what they need in .venv; "make PYTHON=python3.12 demo" takes another interpreter.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2

.PHONY: demo test lint benchmark clean

demo: .venv/ready
	$(BIN)/python examples/train_resnet50.py

# One thread a worker, so that parallel tests do not wait for each other's threads.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: .venv/ready
	$(BIN)/python benchmarks/checkpoint_sequential.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache
