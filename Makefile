# Two commands matter: `make repro` builds and judges a bundle and lets it act, `make test` passes the
# tests. Both need Python 3.11 or newer, make and git, and make their own .venv.

PYTHON ?= python3
INSTALLED := .venv/installed
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: repro test check recipes fullsize simulator libero clean

repro: $(INSTALLED)
	dvc repro --keep-going || { python -m validate.report; exit 1; }
	python -m validate.report
	pi05 selftest artifacts/bundle --target cpu-ort
	pi05 run artifacts/bundle --target cpu-ort

test: check
	pytest

check: $(INSTALLED)
	ruff check .
	ruff format --check .
	pyright --project .

# What each recipe costs in accuracy on the demo: the table of the README.
recipes: $(INSTALLED)
	python -m demo.recipes

# What the pipeline costs in time and memory at pi0.5's real size: 40 GB of disk, 10 GB of memory.
fullsize: $(INSTALLED)
	python -m demo.fullsize

# MetaWorld for validate/closed_loop and the demo, in an environment of its own: 0.4 GB.
simulator: artifacts/simulator/installed

artifacts/simulator/installed: demo/simulator-requirements.txt
	$(PYTHON) -m venv artifacts/simulator
	artifacts/simulator/bin/pip install --quiet --requirement $<
	touch $@

# LIBERO for validate/closed_loop, likewise: 2.1 GB. Its packages need Python 3.11.
libero: artifacts/libero/installed

artifacts/libero/installed: validate/closed_loop/simulators/libero-requirements.txt
	python3.11 -m venv artifacts/libero
	artifacts/libero/bin/pip install --quiet --requirement $<
	touch $@

$(INSTALLED): pyproject.toml runtime/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is \
	needed, %s found: make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	pip install --quiet --upgrade "pip>=25.1,<27"
	pip install --quiet --constraint constraints.txt torch==2.13.0
	pip install --quiet --constraint constraints.txt \
	  --group pipeline --group orbax --group publish --group plan --group rtx --group s3 --group fleet --group test \
	  --editable "./runtime[ort,serve]"
	touch $@

clean:
	rm -rf .venv
	git clean -fdX artifacts
