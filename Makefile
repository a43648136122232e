# Two commands matter: `make repro` builds and judges a bundle and lets it act, `make test` passes the
# tests. Both need Python 3.11 or newer, make and git, and make their own .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test check fullsize clean

repro: $(INSTALLED)
	dvc repro
	python -m validate.report
	pi05 selftest artifacts/bundle --target cpu-ort
	pi05 run artifacts/bundle --target cpu-ort

test: check
	pytest

check: $(INSTALLED)
	ruff check .
	ruff format --check .
	pyright

fullsize: $(INSTALLED)
	python -m demo.fullsize

$(INSTALLED): pyproject.toml runtime/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	pip install --quiet --upgrade "pip>=25.1,<27"
	pip install --constraint constraints.txt torch==2.13.0
	pip install --constraint constraints.txt --group pipeline --group orbax --group test --editable "./runtime[ort]"
	touch $@

clean:
	rm -rf .venv artifacts/[!Rl]* metrics
