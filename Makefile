# `make setup` once, then any of the others. Everything lives in .venv; nothing is installed elsewhere.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
NATIVE := $(wildcard CMakeLists.txt) $(shell find csrc -type f 2>/dev/null)
ROOMS := $(shell find openwork -mindepth 2 -name __init__.py)

.PHONY: setup demo test test-all lint format types imports docs check sanitize sanitize-threads audit clean

setup: $(INSTALLED)

# Done again when what is installed changed: dependencies, their pins, the C++ sources, or a page that became a room (the
# installation remembers which is which).
$(INSTALLED): pyproject.toml constraints.txt $(NATIVE) $(ROOMS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "openwork needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt --build-constraint constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/openwork demo

test: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: setup
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

check: lint types imports test docs

# The kernels with every access to memory checked, and their tests with those. Needs CMake, and the sanitizers of GCC.
SANITIZED := build/sanitize
sanitize: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt nanobind
	cmake -S . -B $(SANITIZED) -DCMAKE_BUILD_TYPE=Release -DOPENWORK_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
	cmake --build $(SANITIZED) --parallel 2
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OPENWORK_SANITIZED=$$(echo $(SANITIZED)/_native*.so) \
		$(BIN)/python -m pytest -q -p tests.kernels.sanitized tests/kernels -k "not compile"

# The kernels watched for races between threads. Needs Clang, its sanitizers, and its OpenMP runtime with Archer, which tells the
# sanitizer of barriers (Debian: clang, libomp-dev, and libclang-rt-19-dev: that of Clang 14 does not start on new kernels). That of
# GCC knows nothing of those of libgomp, and sees races everywhere.
RACES := build/sanitize-threads
RACE_DETECTOR = $(lastword $(sort $(wildcard /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.tsan-x86_64.so)))
ARCHER = $(lastword $(sort $(wildcard /usr/lib/llvm-*/lib/libarcher.so)))
sanitize-threads: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt nanobind
	cmake -S . -B $(RACES) -DCMAKE_BUILD_TYPE=Release -DOPENWORK_SANITIZE_THREADS=ON -DCMAKE_CXX_COMPILER=clang++ \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
	cmake --build $(RACES) --parallel 2
	LD_PRELOAD=$(RACE_DETECTOR) OMP_TOOL_LIBRARIES=$(ARCHER) TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66" \
		OPENWORK_SANITIZED=$$(echo $(RACES)/_native*.so) $(BIN)/python -m pytest -q -p tests.kernels.sanitized \
		-p no:faulthandler -o timeout=900 -W default::RuntimeWarning tests/kernels -k threads

# Known vulnerabilities of the pinned packages, asked from PyPI; a package that it cannot answer for counts as a failure.
audit: setup
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf .venv build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
