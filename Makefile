# `make demo` and `make test` are the two commands for a new user. Both set up .venv themselves and need nothing else.
#
# Each set of packages has a stamp in .venv. The stamp is written last, so that an interrupted install is repeated.

VENV := .venv
SUPERSET := build/superset
PYTHON := $(VENV)/bin/python
PIP_INSTALL := -m pip -qq --no-input --disable-pip-version-check install
INSTALL := $(PYTHON) $(PIP_INSTALL) --constraint constraints.txt --build-constraint constraints.txt

# A virtual environment works only in the folder in which it was made, and only while its Python exists.
ifneq ($(shell $(PYTHON) -c '' 2>/dev/null && cat $(VENV)/.folder 2>/dev/null),$(CURDIR))
$(shell rm -f $(VENV)/.made)
endif

# The checks of `make lint`. The slowest ones come first, so that two at a time end at about the same moment.
CHECKS := check-types check-statements check-dbt check-sql check-layers check-models check-style

.DEFAULT_GOAL := help
# Two targets must not install into .venv at the same time.
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif
.PHONY: help demo bi test test-heavy test-bi lint $(CHECKS) format docs screenshot bi-screenshots bench soak wheel constraints \
	superset-constraints clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-21s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.package ## Run the main job on sample events and show the tables
	@$(VENV)/bin/loader demo

bi: $(SUPERSET)/.made $(VENV)/.test ## Show the demo's data in Apache Superset, until Ctrl-C
	@$(PYTHON) -m tests.bi

test: $(VENV)/.test ## Run the tests against a real PostgreSQL
	$(PYTHON) -m pytest -m "not heavy and not soak" --numprocesses auto --dist worksteal $(ARGS)

test-heavy: $(VENV)/.test ## Run the tests that install packages or build everything
	$(PYTHON) -m pytest -m "heavy and not soak" --numprocesses auto --dist worksteal $(ARGS)

test-bi: $(SUPERSET)/.made $(VENV)/.test ## Import the dashboards into an empty Superset, and compare every chart with the marts
	$(PYTHON) -m pytest tests/bi --timeout 900 $(ARGS)

lint: $(VENV)/.lint ## Check style, types, layers, SQL and the dbt project
	@$(MAKE) --no-print-directory --keep-going --jobs=2 SIDE_BY_SIDE=yes $(CHECKS)

check-style:
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

check-types:
	$(VENV)/bin/mypy

check-layers:
	$(VENV)/bin/lint-imports

check-models:
	$(PYTHON) -m loader.transform.model_files --check

check-sql:
	$(VENV)/bin/sqlfluff lint migrations dbt_project/models

check-statements:
	$(VENV)/bin/sqlfluff lint --templater placeholder loader

check-dbt:
	$(VENV)/bin/dbt --quiet --warn-error compile --no-introspect --no-populate-cache --no-partial-parse \
		--select resource_type:model --indirect-selection empty --project-dir dbt_project --profiles-dir dbt_project \
		--target-path "$(CURDIR)/$(VENV)/dbt" --log-path "$(CURDIR)/$(VENV)/dbt"

format: $(VENV)/.lint ## Format the code as `make lint` checks it, and write the yml of the models
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(PYTHON) -m loader.transform.model_files

docs: $(VENV)/.package ## Generate docs/commands.md and docs/layout.md
	$(PYTHON) docs/generate.py

# Debian's package is `chromium`. `make CHROMIUM=google-chrome screenshot` selects another browser of this family. Its sandbox
# does not work for root. The page needs no network, so the browser gets none.
CHROMIUM := chromium
SCREENSHOT := --headless=new --disable-gpu --hide-scrollbars --window-size=1400,840 --host-resolver-rules="MAP * ~NOTFOUND"

screenshot: $(VENV)/.package ## Take the picture of the demo's report for the README, with Chromium
	@report=$$($(VENV)/bin/loader demo | sed -n 's/^Open the report .*: //p'); \
	if [ "$$(id -u)" = 0 ]; then root=--no-sandbox; fi; \
	$(CHROMIUM) $$root $(SCREENSHOT) --screenshot="$(CURDIR)/docs/report.png" "file://$$report"

bi-screenshots: $(SUPERSET)/.made $(VENV)/.test ## Take the pictures of the dashboards, with Chromium
	@$(PYTHON) -m tests.bi.screenshots

bench: $(VENV)/.test ## Measure landing, splitting and collecting
	$(PYTHON) -m tests.bench $(ARGS)

soak: $(VENV)/.test ## Run the tests that take minutes
	$(PYTHON) -m pytest -m soak --timeout 0 $(ARGS)

wheel: $(VENV)/.test ## Build the wheel and the source distribution into dist/
	@$(PYTHON) -m hatchling build --clean

constraints: ## Resolve all dependencies and pin them in constraints.txt
	@echo "Resolving all dependencies …"
	@rm -rf build/constraints
	@$(find_python); "$$python" -m venv build/constraints
	@build/constraints/bin/python $(PIP_INSTALL) --upgrade pip
	@build/constraints/bin/python $(PIP_INSTALL) . editables hatchling --group dev
	@{ sed '/^[^#]/d' constraints.txt; \
		build/constraints/bin/python -m pip freeze --all --exclude iterable-warehouse --exclude setuptools; \
	} > build/constraints.txt
	@mv build/constraints.txt constraints.txt
	@rm -rf build/constraints

superset-constraints: ## Resolve the packages of Superset and pin them in tests/bi/constraints.txt
	@rm -rf build/superset-constraints
	@$(find_python); "$$python" -m venv build/superset-constraints
	@build/superset-constraints/bin/python $(PIP_INSTALL) --requirement tests/bi/requirements.txt
	@build/superset-constraints/bin/python -m pip freeze > tests/bi/constraints.txt
	@rm -rf build/superset-constraints

clean: ## Remove .venv and all other generated files
	rm -rf $(VENV) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache \
		dbt_project/target dbt_project/logs logs
	find loader migrations tests -name __pycache__ -prune -exec rm -rf {} +

# Sets $python to the first suitable Python. `make PYTHON3=/opt/python/bin/python3 test` selects a Python.
PYTHON3 := python3 python3.13 python3.12 python3.11 python
define find_python
	python=; for candidate in $(PYTHON3); do \
		if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
			python=$$candidate; \
			if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then break; fi; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "Error: No Python 3.11, 3.12 or 3.13 among: $(PYTHON3). Install one, or name it: make PYTHON3=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "Error: $$python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; \
	fi
endef

# The pip of a new environment may be too old for dependency groups.
$(VENV)/.made:
	@$(find_python); \
	echo "Making $(VENV) with $$("$$python" --version) …"; \
	rm -rf $(VENV); \
	"$$python" -m venv $(VENV)
	@$(PYTHON) $(PIP_INSTALL) --constraint constraints.txt --upgrade pip
	@echo "$(CURDIR)" > $(VENV)/.folder
	@touch $@

$(VENV)/.package: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing the package into $(VENV) …"
	@$(INSTALL) --no-compile --editable .
	@# pip would compile the modules on one core.
	@$(PYTHON) -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

# Superset needs other versions of the product's packages, so it has an environment of its own.
$(SUPERSET)/.made: tests/bi/requirements.txt tests/bi/constraints.txt
	@$(find_python); \
	echo "Installing Superset into $(SUPERSET), which takes minutes …"; \
	rm -rf $(SUPERSET); \
	"$$python" -m venv $(SUPERSET)/environment
	@$(SUPERSET)/environment/bin/python $(PIP_INSTALL) --requirement tests/bi/requirements.txt \
		--constraint tests/bi/constraints.txt
	@touch $@

$(VENV)/.test: $(VENV)/.package
	@echo "Installing the packages for the tests into $(VENV) …"
	@$(INSTALL) --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.package
	@echo "Installing the packages for the checks into $(VENV) …"
	@$(INSTALL) --group lint
	@touch $@
