# make demo   the whole pipeline on the miniature data, on this machine's CPU
# make study  whether the miniature shows an effect of pre-training at all: about 1 h 30 min
# make test   the test suite
# make test-slurm   those that need a SLURM, on one that they start and stop (as root)
# make lint   ruff and mypy
PYTHON ?= python3
PY := .venv/bin/python
# One thread per process: results repeat exactly, and small models run no slower.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo study test test-slurm lint clean
setup: .venv/ready

.venv/ready: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@

demo: setup
	$(PY) run_all.py --pretrain MINI --output runs/demo --cluster local

study: setup
	$(PY) run_all.py --pretrain MINI --methods densecl,moco_v2,supervised --epochs 200 --trials 3 \
		--benchmarks study_voc,study_coco10,study_voc_seg --output runs/study --cluster local

test: setup
	$(PY) -m pytest --numprocesses auto --dist loadfile

# They mostly wait, so more of them run at once than there are cores.
test-slurm: setup
	$(PY) -m pytest -m slurm --numprocesses 4 --dist worksteal tests/test_slurm.py

lint: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

clean:
	rm -rf .venv runs/demo datasets/mini
