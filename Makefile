# The two commands of this project are `make train` and `make test`; `make help` lists the rest.
#
#   MODEL=moe                    `make train`: a small model with experts beside a dense one
#   DEVICE=cuda                  `make train`: on an NVIDIA device; the set-up adds what that needs (docs/gpu.md)
#   TRIREME_TORCH=/path          build against this torch package instead of downloading the pinned one
#   TRIREME_TORCH_VERSION=x.y.z  build against another release
#   PREFIX=/usr/local            where `make install` puts things
#   JOBS=n                       compile jobs
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
export

.DEFAULT_GOAL := help
.PHONY: help train test setup build bench parity asan tsan coverage fuzz format lint install clean distclean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

train: build ## set up, build, train the default model on this machine's text, write its report and a sample
	@scripts/train_default

test: setup ## set up, build, pass every test
	@scripts/build release
	@scripts/run_tests build

setup: ## install what is missing on this machine (Debian packages, torch in .deps/)
	@scripts/setup build $(filter cuda,$(DEVICE))

build: setup ## the program, build/trireme
	@scripts/build release trireme $(if $(filter cuda,$(DEVICE)),trireme_cuda)

bench: build ## time the matrix products and kernels of this machine, and training against PyTorch
	@scripts/bench

parity: setup ## compare with PyTorch, transformers, tokenizers, TensorBoard, lm-evaluation-harness and a browser (.deps, chromium)
	@scripts/build release trireme model_probe tokenizer_probe chat_probe
	@scripts/setup peers report
	@scripts/parity

asan: setup ## the tests under the address and undefined-behaviour sanitizers
	@scripts/build asan
	@scripts/sanitizer_tests asan

tsan: setup ## the tests under the thread sanitizer
	@scripts/build tsan
	@scripts/sanitizer_tests tsan

coverage: setup ## which lines the tests reach, room by room
	@scripts/build coverage
	@scripts/coverage

fuzz: ## run each fuzz target for FUZZ_SECONDS (60)
	@scripts/setup fuzz
	@scripts/fuzz

format: ## format the C++ sources
	@scripts/setup lint
	@scripts/format

lint: ## formatting, layers and static analysis
	@scripts/setup build lint
	@scripts/lint

install: build ## program, headers, libraries and CMake package into PREFIX (/usr/local)
	@cmake --install build --prefix "$(DESTDIR)$(PREFIX)" >build/install.log && echo "installed into $(DESTDIR)$(PREFIX)"

clean: ## remove what was built
	rm -rf build build-*

distclean: clean ## and what was set up
	rm -rf .deps
