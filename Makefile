# make quickstart   install, search on the embedded images, write quickstart/report.html
# make docs         the documentation as a site, build/docs
# make simulate     10,000 searches under simulated faults
# make fuzz         a million hostile inputs, for hours; make fuzz INPUTS=20000 SEED=1 for some
# make audit        known vulnerabilities of the pinned packages; needs the network
# make test         install if needed, run the tests, three files at a time
PYTHON ?= python3
BIN := .venv/bin
INPUTS ?= 1000000
SEED ?= 0
DB := sqlite:///quickstart/prunefront.db
INSTALLED := .venv/.installed

.PHONY: install quickstart test simulate fuzz audit lint bench docs

install: $(INSTALLED)

# Anew only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "prunefront needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Running it again resumes a search that was interrupted, and else only prints and writes the results.
quickstart: install
	@mkdir -p quickstart
	$(BIN)/prunefront search --model vim_nano --data embedded --flops-budget 0.35:0.9 --trials 80 --images 500 \
	  --confirm-split rest --study quickstart --db $(DB)
	$(BIN)/prunefront report --study quickstart --db $(DB) --out quickstart/report.html
	$(BIN)/prunefront export --study quickstart --db $(DB) --max-flops 0.7 --out quickstart/schedule.json
	@echo
	@echo "Open quickstart/report.html in a browser. Fine-tune the exported schedule with:"
	@echo "  $(BIN)/prunefront finetune quickstart/schedule.json --data embedded --epochs 2 --out quickstart/finetuned --study quickstart --db $(DB)"

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The hash seed makes a history the same in every process.
simulate: install
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.simulation --seeds 10000 --workers 2

fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED) --save fuzz-found

audit: install
	test -x build/audit/bin/pip-audit || { $(BIN)/python -m venv build/audit && \
	  build/audit/bin/python -m pip install --disable-pip-version-check -q pip-audit; }
	build/audit/bin/python tests/audit.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: install
	$(BIN)/python -m sphinx -W -q -c docs . build/docs
	@echo "Open build/docs/docs/index.html in a browser."
