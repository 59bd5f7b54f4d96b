# Everything runs in a virtual environment of its own; the first target that needs it builds it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The oldest Python that is supported, for the oldest versions of the dependencies.
OLDEST_PYTHON ?= python3.10
OLDEST := .venv-oldest
# The newest version of every dependency, whatever it is on the day, but for the build of PyTorch. Some need
# the newest Python too: make newest PYTHON=python3.13
NEWEST := .venv-newest
# What PyTorch 2.4 says of its own code.
OLDEST_WARNINGS := -W 'ignore:You are using `torch.load` with:FutureWarning' \
	-W 'ignore:`torch.cpu.amp.autocast(:FutureWarning'

.PHONY: demo test repeats oldest newest coverage scatter lint tutorials docs mutation kills sanitize fuzz bench wheel clean

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard gsnn/kernels/csrc/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## train on an embedded simulated data set, complete its graph and verify the edges
	$(BIN)/gsnn demo --out demo_out

test: $(STAMP)
	$(BIN)/python -m pytest -n auto

# Some other work beside it makes it find more.
REPEATS ?= 20
repeats: $(STAMP)  ## the tests so many times, by four workers: does any fail now and then?
	@passed=0; for k in $$(seq $(REPEATS)); do $(BIN)/python -m pytest -n 4 && passed=$$((passed + 1)); done; \
		echo "$$passed of $(REPEATS) passed"; test $$passed -eq $(REPEATS)

oldest: $(OLDEST)/.installed  ## the tests with the oldest supported version of every dependency
	$(OLDEST)/bin/python -m pytest -n auto $(OLDEST_WARNINGS)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt setup.py $(wildcard gsnn/kernels/csrc/*.[ch])
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install -q -c constraints-oldest.txt -e '.[dev]'
	touch $@

newest:  ## the tests with the newest version of every dependency, looked for anew each time
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install -q -U --upgrade-strategy eager -c constraints.txt -e '.[dev]'
	$(NEWEST)/bin/pip list --format freeze
	$(NEWEST)/bin/python -m pytest -n auto

# A process for each file: workers of xdist lose what they have seen.
coverage: $(STAMP)  ## which lines and branches of gsnn/ the tests run; fails below 95%
	$(BIN)/coverage erase
	printf '%s\n' tests/test_*.py | xargs -P 2 -n 1 $(BIN)/coverage run -m pytest -n 0 -q
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under 95

wheel: $(STAMP)  ## dist/: a wheel for this platform, and the source distribution
	$(BIN)/pip install -q build
	$(BIN)/python -m build

scatter: $(VENV)/.scatter  ## tests of the second backend of the sparse products
	$(BIN)/python -m pytest -n auto -k scatter

$(VENV)/.scatter: $(STAMP)  # compiled against the torch that is there: some minutes
	$(BIN)/pip install -q setuptools wheel
	$(BIN)/pip install -q --no-build-isolation -c constraints.txt -e '.[scatter]'
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tutorials: $(VENV)/.tutorials  ## run every notebook at a reduced size; the stored outputs stay as they are
	GSNN_TUTORIAL_SIZE=small OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest --nbmake --nbmake-kernel=python3 --nbmake-timeout=300 -n auto tutorials

$(VENV)/.tutorials: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e '.[tutorials]'
	touch $@

docs: $(VENV)/.docs  ## docs/_build/html/index.html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	touch $@

mutation: $(STAMP)  ## does the suite notice wrong changes? a seeded sample, about an hour; see docs/notes/mutation.md
	$(BIN)/python tests/mutate.py --workers 2 --sample 300 --seed 0 --least 75

kills: $(STAMP)  ## fit, run, complete and verify killed 50 times each: do they go on to the same result?
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kills.py --out benchmarks/results/kills.csv

# One processor runs it in some minutes; ROUNDS=2000 for longer.
ROUNDS ?= 200
SANITIZED := build/sanitized
sanitize:  ## random networks through the compiled blocks under the address, undefined behaviour and thread sanitizers
	mkdir -p $(SANITIZED)
	$(CC) -g -O1 -fno-math-errno -fno-trapping-math -Wno-psabi -fsanitize=address,undefined \
		-fno-sanitize-recover=undefined tests/fuzz_blocks.c -o $(SANITIZED)/memory -lm -lpthread
	$(CC) -g -O1 -fno-math-errno -fno-trapping-math -Wno-psabi -fsanitize=thread tests/fuzz_blocks.c \
		-o $(SANITIZED)/threads -lm -lpthread
	$(SANITIZED)/memory $(ROUNDS)
	$(SANITIZED)/threads $(ROUNDS)

FUZZ_SECONDS ?= 120
fuzz: $(VENV)/.fuzz  ## tables, graphs, gene sets and model files by atheris; FUZZ_SECONDS=3600 for longer
	mkdir -p build
	cd build && PYTHONPATH=../tests $(abspath $(BIN))/python ../tests/fuzz_readers.py \
		-max_total_time=$(FUZZ_SECONDS) -print_final_stats=1

$(VENV)/.fuzz: $(STAMP)  # it is built for Linux and macOS only
	$(BIN)/pip install -q atheris
	touch $@

bench: $(STAMP)
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) build dist demo_out docs/_build docs/_generated
