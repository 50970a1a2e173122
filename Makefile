# make demo   the whole pipeline on the miniature data, on this machine's CPU
# make study  whether the miniature shows an effect of pre-training at all: about 45 minutes
# make test   the test suite
# make lint   ruff and mypy
PYTHON ?= python3
PY := .venv/bin/python
# One thread per process: results repeat exactly, and small models run no slower.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo study test lint clean
setup: .venv/ready

.venv/ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@

demo: setup
	$(PY) run_all.py --pretrain MINI --output runs/demo --cluster local

study: setup
	$(PY) run_all.py --pretrain MINI --methods densecl,moco_v2,supervised --trials 3 \
		--benchmarks study_voc,study_coco10,study_voc_seg --output runs/study --cluster local

test: setup
	$(PY) -m pytest --numprocesses auto --dist loadfile

lint: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

clean:
	rm -rf .venv runs/demo datasets/mini
