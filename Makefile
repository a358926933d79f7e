# Every target makes .venv and installs requirements.txt first when that is needed. Plain commands: README.md.

CORPUS ?= stories
PRESET ?= laptop
SEED ?= 0
PYTHON ?= python3
PORT ?= 8080

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

RUN_OPTIONS := --corpus "$(CORPUS)" --preset $(PRESET) --seed $(SEED) \
	$(if $(WORLD),--world "$(WORLD)") $(if $(HOURS),--hours $(HOURS)) $(if $(FRESH),--fresh) $(if $(MINE),--mine)

.PHONY: help setup run test lint lab chat web record runs bench

help:
	@echo "make setup   create .venv and install requirements.txt, nothing else"
	@echo "make run     the main job: corpus, tokenizer, pretraining, tuning, five questions"
	@echo "             CORPUS=stories|stories-full|python-docs|python-code|FILE|FOLDER  WORLD=FILE.toml"
	@echo "             or a download: CORPUS=tinyshakespeare|wikitext2|sms-spam|tinystories (and two more: run --help)"
	@echo "             CORPUS=text: TinyStories (tinystories-part) where it can be downloaded, else python-code"
	@echo "             HOURS=2 (measure this machine, and choose the model's size and the steps for this time)"
	@echo "             SEED=0  PRESET=tiny|laptop|wide|desktop  FRESH=1 (give up an interrupted run)"
	@echo "             MINE=1 (with your solved exercises in the place of our functions)"
	@echo "make chat    talk to the model that make run left, or to the one of the course (MODEL=DIR)"
	@echo "make web     the same in the browser, with a look inside; and an endpoint (PORT=8080 MODEL=DIR)"
	@echo "make lab     open JupyterLab where the course starts"
	@echo "make test    lint, every test and every notebook: what the build server runs"
	@echo "make record  run the notebooks again and store what they print (CHAPTER=ch03_attention)"
	@echo "make runs    train again what the committed logs in runs/ and the model in shared/reference/ come from"
	@echo "make lint    ruff and mypy"
	@echo "make bench   speed beside established libraries"

setup: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than Python 3.11; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

run: $(INSTALLED)
	@COURSE_MAKE='make run $(filter-out FRESH=%,$(MAKEOVERRIDES))' $(PY) -m shared run $(RUN_OPTIONS)

chat: $(INSTALLED)
	@$(PY) -m shared chat $(if $(MODEL),--model "$(MODEL)")

web: $(INSTALLED)
	@$(PY) -m shared web --port $(PORT) $(if $(MODEL),--model "$(MODEL)")

# No question about news and no look for updates: nothing leaves the machine.
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings/overrides.json
$(LAB_SETTINGS): $(INSTALLED)
	@mkdir -p $(@D)
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' > $@

lab: $(LAB_SETTINGS)
	$(PY) -m jupyterlab --ip 127.0.0.1 --LabApp.default_url=/lab/tree/ch01_setup/01_start_here.ipynb \
		--LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

record: $(INSTALLED)
	$(PY) -m shared.course record $(CHAPTER)
	$(PY) -m shared.course exercises

# The logs that chapter 5 plots, and the model that chapters 1 and 6 load.
runs: $(INSTALLED)
	$(PY) -m shared run --fresh --models models/reference --log runs/laptop.jsonl
	cp models/reference/chat/* shared/reference/
	$(PY) -m shared bench ladder --log runs/ladder.jsonl
	OMP_NUM_THREADS=1 $(PY) -m shared scaling --log runs/scaling.jsonl
	OMP_NUM_THREADS=1 $(PY) -m shared bench ablation --log runs/ablation.jsonl
	$(PY) -m shared bench recipes --log runs/recipes.jsonl

bench: $(INSTALLED)
	$(PY) -m shared bench tokenizer
	$(PY) -m shared bench generate
	$(PY) -m shared bench pretrain
	$(PY) -m shared bench bare
	$(PY) -m shared bench recipes

# All parts run even when one fails, and the line at the end says how long each took.
test: $(INSTALLED)
	@begin=$$(date +%s); $(MAKE) --no-print-directory lint; lint=$$?; \
	linted=$$(date +%s); $(PY) -m pytest tests --durations=5; tests=$$?; \
	tested=$$(date +%s); $(PY) -m pytest --nbval ch0*; notebooks=$$?; \
	end=$$(date +%s); \
	echo "$$((linted - begin)) $$((tested - linted)) $$((end - tested))" | \
		awk '{ printf "lint %.1f min, tests %.1f min, notebooks %.1f min\n", $$1 / 60, $$2 / 60, $$3 / 60 }'; \
	exit $$((lint + tests + notebooks > 0))
