# Everything goes through one environment, .venv, made from constraints.txt. Each set of extras has a stamp file there,
# so that a second call installs nothing. All paths are relative: a folder with spaces in its name works.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check slow docs bench gpu clean

help: ## list the targets
	@echo "make TARGET [PYTHON=python3.12]    (PYTHON makes a new .venv: 3.11, 3.12 or 3.13)"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-9s %s\n", $$1, $$2 }'

demo: $(BIN)/.installed ## install, then show on real data, offline, what helps, what does not, and what training longer does
	@$(BIN)/infer2train demo

test: $(BIN)/.installed-test ## run the tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

check: $(BIN)/.installed-dev ## formatting, lint, types and tests: what a change must pass
	@echo "ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "ruff check"
	@$(BIN)/ruff check .
	@echo "mypy --strict"
	@$(BIN)/mypy
	@echo "pytest"
	@$(BIN)/python -m pytest -n auto --dist loadfile

slow: $(BIN)/.installed-dev ## run the tests marked slow, which check leaves out: hours, before a release
	@$(BIN)/python -m pytest -n auto --dist loadfile -m slow

docs: $(BIN)/.installed-docs ## build the documentation into site/
	@echo "mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(BIN)/.installed ## run the benchmarks, one after another
	@for script in benchmarks/*.py; do \
		test -e "$$script" || { echo "benchmarks/ holds no script"; break; }; \
		echo "$$script"; \
		$(BIN)/python "$$script" || exit 1; \
	done

# With the system's Python and no installation: a machine with a CUDA device has its own PyTorch and often no network.
gpu: ## on a CUDA machine: the tests marked gpu and what a mined step costs there, with PYTHON as it is
	@if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
		status=0; \
		PYTHONPATH=src $(PYTHON) -m pytest -m gpu -rf || status=1; \
		PYTHONPATH=src $(PYTHON) benchmarks/step_ratio.py || status=1; \
		exit $$status; \
	else \
		echo "gpu: nothing is run, for $(PYTHON) has no PyTorch that sees a CUDA device; name another: make gpu PYTHON=…"; \
	fi

clean: ## remove .venv and everything that was built or cached; runs/ stays
	@echo "removing .venv, site, dist and caches"
	@rm -rf .venv site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	@find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "infer2train needs Python 3.11, 3.12 or 3.13: got '$(PYTHON)', $$($(PYTHON) --version 2>&1 | head -n 1);" \
			"name another, e.g. make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

# The build backend comes first and from the same constraints: pip would fetch its newest release unasked.
$(BIN)/.backend: $(BIN)/.made constraints.txt
	@$(PIP) hatchling editables
	@touch $@

$(BIN)/.installed: EXTRAS := [int8]
$(BIN)/.installed-test: EXTRAS := [test]
$(BIN)/.installed-dev: EXTRAS := [dev]
$(BIN)/.installed-docs: EXTRAS := [docs]
$(BIN)/.installed $(BIN)/.installed-test $(BIN)/.installed-dev $(BIN)/.installed-docs: $(BIN)/.backend pyproject.toml constraints.txt
	@echo "installing infer2train$(EXTRAS) and what it needs into .venv (the first time: minutes, most of it PyTorch)"
	@$(PIP) --no-build-isolation -e '.$(EXTRAS)'
	@touch $@
