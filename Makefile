# The commands of the project. `make train` and `make test` each work alone on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# Tests start many processes: compiled modules are kept, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: train test core test-all check format bench bench-check notebooks docs reference clean

train: $(VENV)/.train        ## see a GPT* learn English, in minutes, on a laptop
	$(BIN)/python train.py

test: $(VENV)/.dev           ## the test suite: minutes
	$(BIN)/python -m pytest -n auto --dist worksteal

core: $(VENV)/.dev           ## train, resume, evaluate, export and two processes: a few minutes
	$(BIN)/python -m pytest -m core $$(grep -rlF pytest.mark.core tests)

test-all: $(VENV)/.dev       ## the slow tests too
	$(BIN)/python -m pytest -n auto --dist worksteal -m "slow or not slow"

check: $(VENV)/.dev          ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev         ## mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench        ## speed beside peers, into benchmarks/RESULTS.md: half an hour with nothing else running
	$(BIN)/python benchmarks/run.py

bench-check: $(VENV)/.bench  ## has anything become slower than the committed ratios? minutes
	$(BIN)/python benchmarks/check.py

notebooks: $(VENV)/.dev      ## run them on RUNS and EVALUATIONS, folders as seen from here, into runs/notebooks
	$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --output-dir runs/notebooks notebooks/*.ipynb
	@echo "the notebooks with their output: runs/notebooks/*.ipynb"

docs: $(VENV)/.docs          ## the documentation as a site in build/docs; a warning or a dead link is an error
	$(BIN)/python -m sphinx -E -W --keep-going -n -q -b html docs build/docs
	@echo "open build/docs/index.html"

reference: $(VENV)/.dev      ## renew docs/reference from the code
	$(BIN)/python docs/generate.py

clean:                       ## remove the virtual environment
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; give one as: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.train

# litgpt wants another huggingface-hub than we do: it goes into a folder of its own. Without it, its row says so.
$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --no-deps --target $(VENV)/bench litgpt==0.5.13 && touch $@ || echo "going on without litgpt"

# The site needs neither PyTorch nor the package: the packages of the extra `docs` alone.
DOCS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) $$($(BIN)/python -c '$(DOCS)')
	touch $@
