"""A few rows of the sweep. `make sweep` runs all."""

import os
import subprocess
import sys

import pytest

from benchmarks.sweep import case as cases
from benchmarks.sweep import refusals, rows, way

ROWS = [
    ("graphs", "wide and deep"),
    ("layers", "transformer block"),
    ("own_steps", "gan"),
    ("own_steps", "vae"),
    ("own_steps", "vae, float16"),
]


@pytest.mark.parametrize(("module", "label"), ROWS, ids=[label for _, label in ROWS])
@pytest.mark.filterwarnings("default")
def test_a_row_passes(module, label, tmp_path):
    rows.load(module)
    result = way.take(cases.ROWS[label], tmp_path)
    failed = {n: s["message"] for n, s in result["stages"].items() if s["outcome"] == "failed"}
    assert result["outcome"] == "passed", failed
    assert len(result["stages"]) >= 9
    if label == "transformer block":
        check_new_process(module, tmp_path)


def check_new_process(module, folder):
    """The files load in a new process: the stripped model first, without tf_rigl."""
    code = f"from benchmarks.sweep import new_process as n; n.main({module!r}, {str(folder)!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_refused_is_declared():
    assert refusals.expected("wide and deep", "LiteRT") == (
        "LiteRT files of models with inputs of strings are not supported"
    )
    assert refusals.expected("wide and deep, snip", "LiteRT")
    assert "has no operator" in refusals.expected("volumes", "LiteRT")
    assert refusals.expected("u net, float16", "LiteRT") is None
    assert refusals.expected("u net", "LiteRT") is None
    assert refusals.expected("wide and deep", "SavedModel") is None
