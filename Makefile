# `make demo` and `make test` need python3 (3.11 or newer) and a network, nothing else.
PYTHON ?= python3
VENV ?= .venv
# auto: the CuPy extra that fits the NVIDIA driver, none without a driver. Or name one: cuda12, cuda13-local, none.
CUDA_EXTRA ?= auto
WORKERS ?= 2
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
# uv where it is on PATH, else pip.
INSTALL := $(if $(shell command -v uv 2>/dev/null),uv pip install --quiet --python $(PY),$(PY) -m pip install --quiet)

.PHONY: help demo examples test test-slow kernels gpu coverage lint format bench install-examples install-test install-dev clean

help:
	@echo "make demo       install into $(VENV) and train on handwritten digits (examples/digits.py)"
	@echo "make examples   the other examples: a convolutional network, a recurrent one, a regression, a transformer"
	@echo "make test       install what tests need and run them"
	@echo "make test-slow  the tests that take long"
	@echo "make kernels    the CUDA kernels without a GPU: compiled, emulated, checked; ends with their table"
	@echo "make gpu        tests and benchmarks on this machine's GPU; leaves a table in bench/results"
	@echo "make coverage   the lines of the backends and kernels that the tests run without a GPU"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make format     ruff format and the fixes that ruff can make"
	@echo "make bench      the benchmarks"
	@echo "make clean      delete caches and build results ($(VENV) stays)"

demo: install-examples
	$(PY) examples/digits.py

examples: install-examples
	$(PY) examples/digits_cnn.py
	$(PY) examples/digits_rows.py
	$(PY) examples/diabetes.py
	$(PY) examples/transformer.py

# One BLAS thread each: small arrays are faster so, and the workers do not fight for cores.
examples test test-slow bench: export OPENBLAS_NUM_THREADS ?= 1
examples test test-slow bench: export OMP_NUM_THREADS ?= 1

test: install-test
	$(PY) -m pytest -q -p no:benchmark -n $(WORKERS) --dist loadfile -m "not slow" $(PYTEST_ARGS)

test-slow: install-test
	$(PY) -m pytest -q -p no:benchmark -m slow $(PYTEST_ARGS)

# One folder per run, so that the table shows what this run found.
kernels: install-test
	@rm -rf build/kernels && mkdir -p build/kernels
	CULUX_KERNEL_REPORT=build/kernels $(PY) -m pytest -q -p no:benchmark -n $(WORKERS) --dist loadfile \
		$(wildcard tests/test_kernel_*.py tests/test_cuda_*.py tests/test_nvrtc.py) $(PYTEST_ARGS)
	$(PY) -m tests.kernel_table build/kernels

# The sanitizers' builds and the compile gate run kernels, not lines of Python; of the catalogue one suite has a GPU.
coverage: install-test
	$(PY) -m coverage run --source=culux/backends,culux/kernels -m pytest -q -p no:benchmark -m "not slow" \
		-k "test_cupy_against_numpy or not test_catalogue" \
		$(filter-out %_gate.py,$(wildcard tests/test_kernel_*.py)) tests/test_catalogue.py tests/test_cublaslt.py \
		$(wildcard tests/test_cudnn*.py) tests/test_gemm.py tests/test_backends.py tests/test_cupy_backend.py \
		$(wildcard tests/test_device*.py tests/test_tuning*.py) \
		tests/test_precision.py tests/test_random.py tests/test_cost.py tests/test_optim_gpu.py tests/test_main.py \
		tests/test_threads.py
	$(PY) -m coverage report --show-missing --skip-covered --fail-under=95

# Needs NumPy, CuPy and pytest, and no network: the environment if there is one, else the Python on the PATH.
gpu:
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m bench.gpu $(GPU_ARGS)

lint: install-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict culux
	$(VENV)/bin/lint-imports --no-cache

format: install-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: install-test
	$(PY) -m pytest bench $(PYTEST_ARGS)

install-examples: $(VENV)/.installed-examples
install-test: $(VENV)/.installed-test
install-dev: $(VENV)/.installed-dev

# An interrupted or failed installation leaves no stamp and is taken up again.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.created
	@cuda=$(CUDA_EXTRA); \
	if [ "$$cuda" = auto ]; then cuda=$$($(PY) tools/cuda_extra.py) || exit 1; fi; \
	extras=$*; \
	if [ -n "$$cuda" ] && [ "$$cuda" != none ]; then extras=$*,$$cuda; fi; \
	echo "installing culux[$$extras] into $(VENV)"; \
	$(INSTALL) -e ".[$$extras]"
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "culux needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." \
	"Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	echo "'$(PYTHON) -m venv $(VENV)' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

clean:
	rm -rf build dist .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -exec rm -rf {} +
