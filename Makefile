# Everything below works in .venv, which is made on first use from requirements.lock and left alone afterwards.

# Plain assignments: the command line changes them (make reproduce PRESET=laptop), the environment does not.
PRESET  := quick
TASKS   :=
MODEL   :=
SET     :=
RESULTS := results
CHECKOUTS := ..
PYTHON  := python3.11 python3

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip --disable-pip-version-check
# A user's own kernels and site packages must not stand in for those of .venv.
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONNOUSERSITE := 1

# As they were given, whatever quotes and spaces they hold; igds tells the changes in SET apart.
export PRESET TASKS MODEL SET RESULTS CHECKOUTS
WHAT = --preset "$$PRESET" --tasks "$$TASKS" --model "$$MODEL" --set "$$SET"

KNOWN   := PRESET TASKS MODEL SET RESULTS CHECKOUTS PYTHON
UNKNOWN := $(strip $(foreach v,$(filter-out $(KNOWN) -%,$(.VARIABLES)),$(if $(findstring command,$(origin $(v))),$(v))))
$(if $(UNKNOWN),$(error unknown variable $(UNKNOWN); known: $(KNOWN)))

.PHONY: bad-input bench load help reproduce test test-all test-faults parity plan report reread lab saes clean lock reference bench-selectors
.DEFAULT_GOAL := help

help:
	@echo 'make TARGET [PRESET=quick] [TASKS=math,...] [MODEL=name] [SET="field=value ..."] [RESULTS=folder]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

reproduce: $(STAMP) ## run the whole pipeline of a preset; ends with results/PRESET/report.html
	@$(BIN)/igds run $(WHAT) --results "$$RESULTS"

test: $(STAMP) ## lint and test (minutes)
	@$(BIN)/ruff check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: $(STAMP) ## the same with the slow tests
	@$(BIN)/ruff check .
	@$(BIN)/python -m pytest -q --run-slow

test-faults: $(STAMP) ## 50 random kills over 5 smoke runs, compared with an undisturbed one (about an hour; goes on where it was stopped)
	@$(BIN)/python tests/faults/kills.py

plan: $(STAMP) ## what a preset would take: tokens, minutes, memory, disk; runs nothing (reads a pool of one's own, to count it)
	@$(BIN)/igds plan $(WHAT)

report: $(STAMP) ## make tables, figures and report again from stored results (notebooks 05 to 11)
	@$(BIN)/igds run $(WHAT) --results "$$RESULTS" --first 05

reread: $(STAMP) ## notebooks 05 to 11 again on the stored products of the quick reference; no model is loaded
	@rm -rf "$$RESULTS/reread" && mkdir -p "$$RESULTS/reread" && cp -R results/reference/quick "$$RESULTS/reread"
	@$(BIN)/igds run --preset quick --results "$$RESULTS/reread" --first 05

lab: $(STAMP) ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=notebooks

saes: $(STAMP) ## train the SAEs of the default model again
	@$(BIN)/igds saes $(WHAT) --results "$$RESULTS"

clean: ## remove what runs produced (keeps results/reference, .venv and the download cache)
	@git clean -fdXq -- results notebooks igds_utils tests

bench: $(STAMP) ## the engine against its limits; on an idle machine, about 16 minutes
	@TQDM_DISABLE=1 $(BIN)/python tests/benchmarks/bench.py

bench-selectors: $(STAMP) ## speed of the selectors: ratios measured in one run
	@TQDM_DISABLE=1 $(BIN)/python tests/benchmarks/bench_selectors.py

load: $(STAMP) ## igds select on pools of up to a million rows: seconds, memory, the bar's estimate; 15 minutes
	@$(BIN)/python tests/benchmarks/load.py

parity: $(STAMP) ## the authors' programs beside ours; CHECKOUTS=folder that holds clones of them (results/README.md)
	@for script in tests/oracles/*.py; do HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(BIN)/python "$$script" "$$CHECKOUTS"; done

# Maintenance: malformed input and what is said of it; then random damage to pools, tasks and presets, for ten minutes.
bad-input: $(STAMP)
	@$(BIN)/python tests/faults/bad_input.py
	@PYTHONPATH=tests $(BIN)/python -m faults.fuzz --minutes 10

# Maintenance: keep of a finished run what readers look at (notebooks, report) and its products below 1 MB; no weights.
reference:
	@rm -rf results/reference/$(PRESET)
	@mkdir -p results/reference/$(PRESET)
	@cd '$(RESULTS)/$(PRESET)' && find . \( -path ./notebooks -o -path './.*' -o -name weights -o -name llama_factory \
	  -o -name pools -o -path ./benchmarks \) -prune -o -type f -size -1000k ! -name run.json ! -name '.*' -print0 | tar cf - --null -T - \
	  | tar xf - -C '$(CURDIR)/results/reference/$(PRESET)'
	@mkdir -p results/reference/$(PRESET)/notebooks
	@cd '$(RESULTS)/$(PRESET)' && find ./notebooks -name '[0-9]*.ipynb' -size -2048k -exec cp {} '$(CURDIR)/results/reference/$(PRESET)/notebooks' \;
	@cd '$(RESULTS)/$(PRESET)' && find . -maxdepth 1 -name report.html -size -4096k -exec cp {} '$(CURDIR)/results/reference/$(PRESET)' \;
	@mkdir -p results/reference/planted
	@cp results/reference/$(PRESET)/tables/planted.csv results/reference/planted
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m igds_utils.reporting.report; fi

# Maintenance: resolve pyproject.toml again (its [tool.uv.pip] says how) into requirements.lock.
lock: $(STAMP)
	@$(PIP) install --quiet uv
	@$(BIN)/uv pip compile --quiet pyproject.toml -o requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@found=; for python in $(PYTHON); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && found=$$python && break; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'Python 3.11 is needed, and none of these is it: $(PYTHON).' >&2; \
	  echo 'Install it (with its venv module), or name it: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; \
	fi; \
	$(PIP) --version >/dev/null 2>&1 || "$$found" -m venv --clear $(VENV)
	@echo 'Installing the packages of requirements.lock into $(VENV): about 2.5 GB, once.'
	@$(PIP) install --progress-bar on --require-hashes --no-deps -r requirements.lock
	@$(PIP) install --progress-bar on --no-build-isolation --editable .
	@touch $@
