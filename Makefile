# Two commands matter: `make run` starts the engine, `make test` installs what the tests need and runs them.
# Everything else is a part of those, by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PAGE := web/package-lock.json web/vendor.src.js web/build_vendor.mjs
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: run dashboard test test-offline check style types layers unit browser-packages bench lock clean

run: $(VENV)/.installed dashboard
	@$(BIN)/python -m engine serve $(ARGS)

test: check unit

check: style types layers

style: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

layers: $(VENV)/.installed-test
	$(BIN)/lint-imports

# Real processes and a real browser on a busy machine: under CI what failed is run once more, by itself. Both runs are
# shown, and whatever failed only once is a bug to be found, in the test or in the product.
unit: $(VENV)/.installed-test dashboard browser-packages
	$(BIN)/pytest || { [ $$? = 1 ] && [ -n "$$CI" ] && echo "once more, by itself: what failed above" && \
	  $(BIN)/pytest --last-failed --last-failed-no-failures none; }

# The suite where there is no network but loopback, less the tests that need the registry of npm. ARGS names
# some of it: make test-offline ARGS=tests/actors. It needs unshare, and the right to a network namespace.
test-offline: $(VENV)/.installed-test
	@$(BIN)/python -m tests.system.offline $(ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench

# Chromium for the tests of the page. As root it is installed; otherwise those tests say that they were skipped.
browser-packages:
	@if command -v chromium >/dev/null || [ -n "$$WF_CHROMIUM" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium for the tests of the page"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else echo "chromium is not here and we are not root: the tests of the page will be skipped"; fi

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "WF Engine needs Python 3.11 or newer; name one with PYTHON=python3.12"; exit 1; }
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml requirements.lock $(PAGE)
	@echo "installing the engine, and the libraries of its dashboard from npm (a minute or so, once)"
	@$(PIP_INSTALL) -e .
	@touch $@

# The libraries of the page, where the installation could not build them: tried again at each start, until they are there.
dashboard: $(VENV)/.installed
	@test -e web/static/vendor/vendor.js || [ -n "$$HATCH_JUPYTER_BUILDER_SKIP_NPM" ] || { \
	  echo "building the libraries of the dashboard, which the installation could not"; \
	  $(PIP_INSTALL) --retries 0 --no-deps -vv --editable . >$(VENV)/dashboard.log 2>&1; \
	  test -e web/static/vendor/vendor.js || { \
	    grep -m 2 -E 'npm error (code|.*(request|certificate))' $(VENV)/dashboard.log; \
	    echo "they cannot be built now ($(VENV)/dashboard.log says why); the engine runs without, and its page says what to do"; }; }

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PIP_INSTALL) -e '.[bench]'
	@touch $@

lock: $(VENV)/.installed-test
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
