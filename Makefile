# `make demo` and `make test` set everything up on a machine that has Python and make.
#
#   make demo      train RigL at 90% sparsity beside dense, on embedded data
#   make test      the whole test suite
#   make lint      ruff and mypy
#   make door      the test of private API on the lowest Keras and TensorFlow that setup.py allows
#   make sweep     more than 200 models of others through all that the library does: an hour
#   make soak      long forms of the tests of reliability: an hour
#   make PYTHON=python3.12 demo    with another Python

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

SOAK := $(addprefix tests/training/,test_workers.py test_distribute.py test_kill_and_resume.py \
	test_damaged_files.py test_bad_numbers.py test_fit.py test_configurations.py) \
	tests/test_malformed_input.py

.PHONY: demo test lint door sweep soak clean

demo: $(VENV)/installed
	$(BIN)/tf-rigl train --beside-dense

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The newest versions are those of `make test`. Python 3.13 came with TensorFlow 2.20.
LOWEST := $(VENV)-lowest
door: $(LOWEST)/installed
	TF_CPP_MIN_LOG_LEVEL=3 $(LOWEST)/bin/python -m pytest tests/base/test_keras_internals.py

$(LOWEST)/installed: setup.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	tf=$$($(PYTHON) -c "import sys; print('2.18' if sys.version_info < (3, 13) else '2.20')"); \
	$(LOWEST)/bin/python -m pip install --quiet 'keras==3.10.0' "tensorflow==$$tf.*" \
		"tf-keras==$$tf.*" wrapt filelock pytest
	touch $@

# Rows whose result is in runs/sweep already are not run again.
sweep: $(VENV)/installed
	$(BIN)/python -m benchmarks.sweep --write

# What was tried is collected in runs/soak.jsonl, a line for each test.
soak: $(VENV)/installed
	mkdir -p runs
	rm -f runs/soak.jsonl
	TF_RIGL_SOAK=1 TF_RIGL_RECORD=runs/soak.jsonl $(BIN)/python -m pytest -n 2 $(SOAK)

# pip is upgraded first: the one that comes with older Pythons takes very long to choose
# versions. The mark is written last, so an installation that was cut off starts again.
$(VENV)/installed: setup.py
	$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))" \
		|| { echo "tf_rigl needs Python 3.10 to 3.13; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[tests]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) runs build *.egg-info
