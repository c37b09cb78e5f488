# make demo   see it work, on a fresh clone: a virtual environment, a simulated camera, the real daemon
# make run    the daemon on config.yaml, for your own drop folder
# make test   everything that is checked before a change is accepted
# make test-field   the long ones: floods, kills, soaks
# make fuzz [RUNS=...]   random bytes for everything that reads files
# make bundle [FLAVOUR=rtx|tensorrt|cpu]   one archive that installs on a computer without internet
# make deb [FLAVOUR=...]      the same as a Debian package: apt install ./emdenoised_....deb
# make gpu    what this computer's NVIDIA card needs: TensorRT for it, and pycuda, compiled once
# make doctor tests this installation, with the settings of make run
# make gpu-test, make gpu-benchmark   the tests that need an NVIDIA GPU, and how fast it is
# make triton a Triton server for the tests of backend.kind: server (447 MB); without it they are skipped
# Needs: Python 3.10 or later with venv, and a package index.

PYTHON ?= python3
BASE := .venv
DEV := .venv-dev

FLAVOUR ?= rtx

.PHONY: demo run gpu doctor test lint types imports pytest ptx clean gpu-test gpu-benchmark bundle deb test-field fuzz triton
.DELETE_ON_ERROR:

demo: $(BASE)/installed
	$(BASE)/bin/emdenoised demo

run: $(BASE)/installed
	$(BASE)/bin/emdenoised run --create-drop --config config.yaml

gpu: $(BASE)/installed
	$(BASE)/bin/python systemd/gpu.py

doctor: $(BASE)/installed
	$(BASE)/bin/emdenoised doctor --config config.yaml

test: lint types imports pytest

lint: $(DEV)/installed
	$(DEV)/bin/ruff check .

types: $(DEV)/installed
	$(DEV)/bin/mypy
	$(DEV)/bin/mypy systemd/bundle.py systemd/deb.py systemd/gpu.py

imports: $(DEV)/installed
	$(DEV)/bin/lint-imports

pytest: $(DEV)/installed
	$(DEV)/bin/pytest -n 2 --dist loadfile

# Editable, so that a change in the source needs no new installation. No torch: the daemon does not need it. With the
# reader of vendors' formats (RosettaSciIO, GPL-3.0, which runs in a process of its own).
$(BASE)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install --quiet --editable '.[formats]'
	touch $@

$(DEV)/installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --editable '.[train,evaluate,dev]'
	touch $@

# pycuda is compiled once (with CUDA's headers from the index; no GPU) and kept in build/.
bundle:
	$(PYTHON) systemd/bundle.py --flavour $(FLAVOUR)

deb:
	$(PYTHON) systemd/deb.py --flavour $(FLAVOUR)

test-field: $(DEV)/installed
	$(DEV)/bin/pytest -m field --timeout=3000 tests/field tests/packaging

# The server's binary is in this wheel, with the python backend only; that backend needs Debian's own Python 3.11.
TRITON_PYTHON ?= /usr/bin/python3.11

triton: build/triton/installed

build/triton/installed:
	$(TRITON_PYTHON) -m venv build/triton
	build/triton/bin/python -m pip install --quiet nvidia-pytriton==0.7.0 'numpy<2' onnxruntime
	touch $@

RUNS ?= 1000000

fuzz: $(DEV)/installed
	$(DEV)/bin/python tests/fuzz/fuzz.py --runs $(RUNS)

# On a computer with an NVIDIA GPU: what only a card can show, and how fast it is. TensorRT may take minutes for the
# engine of a test.
gpu-test: $(DEV)/installed
	$(DEV)/bin/python systemd/gpu.py --stand-in
	$(DEV)/bin/pytest --timeout=1200 tests/gpu tests/daemon/backends/test_backends.py

gpu-benchmark: $(DEV)/installed
	$(DEV)/bin/python systemd/gpu.py --stand-in
	PYTHONPATH=.:tests/fakes:tests/gpu $(DEV)/bin/python benchmarks/gpu.py -o benchmarks/results/gpu

# Needs nvcc (CUDA 13). The hash in the first line ties the result to its source; a test compares them. Nothing in it is
# newer than PTX 7.0, which drivers of CUDA 11 read, too; a test assembles it.
ptx:
	nvcc -ptx -arch=compute_75 -o kernels.tmp daemon/backends/gpu/kernels.cu
	(echo "// kernels.cu $$(sha256sum daemon/backends/gpu/kernels.cu | cut -d' ' -f1)"; sed 's/^\.version .*/.version 7.0/' kernels.tmp) > daemon/backends/gpu/kernels.ptx
	rm kernels.tmp

clean:
	rm -rf $(BASE) $(DEV) demo-output build dist
