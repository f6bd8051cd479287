# make demo   the whole loop on the embedded model, report in demo/report.html
# make test   the test suite
# make test-postgres   those of the store and the labeling app once more, on a PostgreSQL server that they start
# make bench  what a step costs, beside plain loops
# make site   the documents as a site, site/index.html
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: install demo test test-postgres bench lint format docs site dist transcript audit clean

install: $(VENV)/.test

demo: $(VENV)/.core
	$(BIN)/hfi demo

test: $(VENV)/.test
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --ignore tests/test_ui_browser.py --ignore tests/test_ui_pages_browser.py
	$(BIN)/pytest tests/test_ui_browser.py tests/test_ui_pages_browser.py
	$(MAKE) test-postgres

test-postgres: $(VENV)/.test
	$(BIN)/pytest --database postgresql -n auto --maxprocesses 4 --dist loadfile $$(grep -l mark.databases tests/test_*.py | grep -v browser)
	$(BIN)/pytest --database postgresql $$(grep -l mark.databases tests/test_*browser.py)

bench: $(VENV)/.core
	$(BIN)/hfi bench speed

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hfi ui

audit: $(VENV)/.test
	$(BIN)/pip --disable-pip-version-check check
	$(BIN)/python .ci/audit.py

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.test
	$(BIN)/python -m hfi.cli.manual > docs/cli.md
	$(BIN)/python -m hfi.cli.completion > hfi/cli/completions.tmp && mv hfi/cli/completions.tmp hfi/cli/completions.json

site: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(VENV)/.test
	$(BIN)/python -m hatchling build

transcript: dist
	$(BIN)/python .ci/transcript.py

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing hfi and what it needs into $(VENV) (torch is large: some minutes)"
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) install -c constraints.txt -e ".[test,dev,docs,data,postgres,s3,nudenet,nsfw,features,tensorboard]"
	touch $@

clean:
	rm -rf $(VENV) dist build site *.egg-info
