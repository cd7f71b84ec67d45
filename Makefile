# VisionAI: one command each. `make help` lists them.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
$(error make is not used on Windows: follow the pip commands in README.md)
endif

VENV := .venv
BUILD_VENV := .venv-build
BIN := $(VENV)/bin
BUILD_BIN := $(BUILD_VENV)/bin
PIP_FLAGS := --disable-pip-version-check --quiet -c constraints.txt
SERVED := modelo_emociones face_short face_back
MODELS := $(SERVED:%=models/build/%.onnx)

.DEFAULT_GOAL := help
# With -j, three conversions would begin at once, one for each model, and two pips would write into one environment.
.NOTPARALLEL:
.PHONY: help run convert test tools lint format bench lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

run: $(VENV)/.serve $(MODELS) ## install, convert the model if needed, migrate, serve on ws://127.0.0.1:8000
	@exec $(BIN)/python -m service

convert: $(BUILD_VENV)/.build ## convert the Keras model to ONNX (in .venv-build, the only place with TensorFlow)
	@$(BUILD_BIN)/python -m models convert

test: tools $(VENV)/.dev $(BUILD_VENV)/.build $(MODELS) ## run every test, PostgreSQL included
	$(BUILD_BIN)/python -m pytest tests/conversion
	$(BUILD_BIN)/python -m pytest tests/models
	$(BIN)/python -m pytest --ignore tests/conversion --ignore tests/models

# Programs that tests run, and the Debian packages that they are in.
TOOLS := chromium:chromium haproxy:haproxy ip:iproute2 systemd-analyze:systemd

tools: ## install the programs that tests run, where they are missing (Debian and Ubuntu, as root)
	@missing=; for tool in $(TOOLS); do \
	  PATH=$$PATH:/usr/sbin:/sbin command -v $${tool%:*} >/dev/null || missing="$$missing $${tool#*:}"; done; \
	if test -n "$$missing"; then \
	  if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing; \
	  else echo "The tests need$$missing: sudo apt-get install$$missing"; exit 1; fi; fi

lint: $(VENV)/.dev ## ruff and mypy --strict, for Windows too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/windows -p service -p client -p conversion -p models

format: $(VENV)/.dev ## let ruff format and fix the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev $(MODELS) ## measure limit and service, about five minutes; writes benchmarks/out/report.html
	$(BIN)/python -m benchmarks

lock: $(VENV)/.dev ## resolve the dependencies anew and write constraints.txt
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --quiet --upgrade --no-emit-index-url --no-emit-find-links --no-header \
	  --no-annotate --all-extras pyproject.toml -o constraints.txt

clean: ## remove environments, built models and caches
	rm -rf $(VENV) $(BUILD_VENV) models/build build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# Times only say when to look; `models convert` compares hashes, and leaves a model that is current as it is.
$(MODELS): $(BUILD_VENV)/.build models/modelo_emociones.keras $(SERVED:%=models/sources/%.toml) \
  $(wildcard conversion/*.p*) models/detector.py models/blocks.py
	@$(BUILD_BIN)/python -m models convert
	@touch $(MODELS)

# Environments are made once, and again when the dependencies change. The stamp is written last, so that an
# interrupted install is done again. pip comes into an environment last: one without it was left half made, and is
# emptied. A folder that is no environment is not, whatever VENV may name.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "VisionAI needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) -V 2>&1`. Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || \
	  $(PYTHON) -m venv $$(test -f $(1)/pyvenv.cfg && echo --clear) $(1)
endef

$(VENV)/.serve: pyproject.toml constraints.txt
	$(call make_venv,$(VENV))
	@echo "Installing VisionAI into $(VENV) ..."
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call make_venv,$(VENV))
	@echo "Installing VisionAI with its test and lint tools into $(VENV) ..."
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[test,lint,bench,openvino]'
	@touch $@ $(VENV)/.serve

$(BUILD_VENV)/.build: pyproject.toml constraints.txt
	$(call make_venv,$(BUILD_VENV))
	@echo "Installing the conversion tools (TensorFlow, some 600 MB) into $(BUILD_VENV) ..."
	@$(BUILD_BIN)/python -m pip install $(PIP_FLAGS) -e '.[build,test]'
	@touch $@
