# make install, make run, make test: see the README. Nothing here needs root.

PYTHON ?= python3
CLIENTS := tests/clients

.PHONY: install run crm test soak bench docs lint format

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	touch .venv/installed

run: .venv/installed
	.venv/bin/python .venv/bin/twistd --nodaemon --pidfile= flow --demo

crm: .venv/installed
	.venv/bin/python -m examples.crm

test: .venv/installed $(CLIENTS)/node_modules
	.venv/bin/python -m pytest

soak: .venv/installed $(CLIENTS)/node_modules
	.venv/bin/python -m tests.faults --kills 2000 $(if $(SEED),--seed $(SEED))
	.venv/bin/python -m tests.simulation --from $$(date +%s) --seconds 1200
	.venv/bin/python -m tests.badinput -q
	.venv/bin/python -m tests.fuzz --seconds 900

bench: .venv/installed
	.venv/bin/python -m benchmarks.peers $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(SERVERS),--servers $(SERVERS))

$(CLIENTS)/node_modules: $(CLIENTS)/package-lock.json
	@if command -v npm >/dev/null; then \
		npm --prefix $(CLIENTS) ci --no-audit --no-fund --loglevel=error && touch $(CLIENTS)/node_modules; \
	else \
		echo 'There is no npm here: the tests with the JavaScript client are skipped.'; \
	fi

docs: .venv/installed
	.venv/bin/python -m sphinx -W --keep-going -q docs build/docs

lint: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/installed
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/flowtx example-config > flow.toml.example
