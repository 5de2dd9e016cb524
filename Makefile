# make app        the app on the bundled pair, at http://127.0.0.1:8501
# make test       everything: lint, types, unit, property, AppTest and a real browser
# make test-unit  everything that needs no browser
# make lint       format, lint and types
PYTHON ?= python3
PORT ?= 8501
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q install

.PHONY: app test test-unit test-browser lint format chromium clean

app: $(VENV)/.app
	@echo "kvviz: http://127.0.0.1:$(PORT)"
	$(BIN)/python -m app --server.port $(PORT)

test: lint test-unit test-browser

# Two at a time: a test computes on one core. Files of unit tests stay whole, what a file makes once is costly.
TWO := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-unit: $(VENV)/.dev
	$(TWO) --dist loadfile --no-loadscope-reorder tests --ignore tests/browser

test-browser: $(VENV)/.dev chromium
	$(TWO) --dist worksteal tests/browser

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first and alone: pinned, it is the CPU build where the index has one, and the CUDA build for a GPU.
$(VENV)/.app: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kvviz needs Python 3.11 or newer; set PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' requirements.txt)"
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.app requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

# Where it cannot be installed the browser tests say so and fail; make test-unit runs the rest.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
		echo "Installing Chromium (Debian's package)"; \
		SUDO=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq chromium >/dev/null; \
	} || echo "Chromium could not be installed: run 'apt-get install chromium' as root, or 'make test-unit' without it"

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis tests/artifacts
