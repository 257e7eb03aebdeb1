# The course in one word. Every target first sets up .venv, or brings it up to date, and leaves it alone when it is
# current; nothing needs to be activated.
#
#   make lab       open JupyterLab on the course           make lab ARGS="--no-browser --port=8899"
#   make test      run every test and every notebook       make test ARGS="tests/lrp -x"
#   make execute   run the notebooks afresh and store them  make execute NOTEBOOKS=lectures/11_lrp_rules.ipynb
#   make bench     measure us beside the peer libraries    make bench ARGS="lrp --json lrp.json"
#   make lint      style, formatting and types
#   make table     the README's table of lectures, from syllabus.toml
#   make pins      the newest versions that go together, into constraints.txt; then make test says whether they work

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
NOTEBOOKS ?= $(sort $(wildcard lectures/*.ipynb solutions/*.ipynb))
OPEN ?= $(firstword $(sort $(wildcard lectures/*.ipynb)))

python = $(VENV)/bin/python
stamp = $(VENV)/.up-to-date

.PHONY: setup lab test execute bench lint table pins

setup: $(stamp)

# The stamp is written last. Where it is missing, an installation never came to its end (or never began), and what it
# left behind is not to be trusted: start afresh. Where it is only older than the pins, install what changed.
$(stamp): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "xaicourse needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another one, for instance: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@{ test -e $@ && $(python) -c ''; } 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	$(python) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

# JupyterLab asks nobody for news, updates or extensions, and does not ask whether it may.
settings = $(VENV)/share/jupyter/lab/settings
lab: $(stamp)
	@mkdir -p $(settings)
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
	    > $(settings)/overrides.json
	$(python) -m jupyterlab --LabApp.default_url=/lab/tree/$(OPEN) --LabApp.extension_manager=readonly \
	    --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate $(ARGS)

test: $(stamp)
	$(python) -m pytest $(ARGS)

# One fresh kernel for each notebook; the seconds go into syllabus.toml.
execute: $(stamp)
	@for notebook in $(NOTEBOOKS); do \
	    start=$$(date +%s); \
	    $(python) -m nbconvert --to notebook --execute --inplace --log-level WARN \
	        --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.record_timing=False \
	        --ExecutePreprocessor.timeout=120 $$notebook || exit 1; \
	    echo "$$notebook: $$(( $$(date +%s) - start )) seconds"; \
	done

bench: $(stamp)
	$(python) -m benchmarks $(ARGS)

lint: $(stamp)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

table: $(stamp)
	$(python) -m xaicourse.syllabus --write README.md

# Resolved for the oldest Python that the course promises, so that a pin never asks for a newer one. For another Python
# than its own, pip resolves wheels only: those that their authors publish as source alone are built first.
source_only = grad-cam lime
pins: $(stamp)
	$(python) -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir $(VENV)/wheels $(source_only)
	$(python) -m pip install --dry-run --ignore-installed --quiet --report $(VENV)/pins.json --target $(VENV)/pins \
	    --python-version 3.11.0 --only-binary :all: -f $(VENV)/wheels '.[test,instructor,cluster]'
	@{ echo "# What was tested together. Written by 'make pins'; held against pyproject.toml by tests/test_setup.py."; \
	   $(python) -c "import json; \
	       found = [each['metadata'] for each in json.load(open('$(VENV)/pins.json'))['install']]; \
	       pins = ['{name}=={version}'.format(**each) for each in found if each['name'] != 'xaicourse']; \
	       print(*sorted(pins, key=str.lower), sep='\n')"; } > $(VENV)/pins.txt
	@mv $(VENV)/pins.txt constraints.txt
