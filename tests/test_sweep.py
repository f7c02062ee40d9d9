"""A few rows of the sweep. `make sweep` runs all, and loads their files in new processes."""

import pytest

from benchmarks.sweep import case as cases
from benchmarks.sweep import rows, way

ROWS = [
    ("graphs", "wide and deep"),
    ("layers", "transformer block"),
    ("own_steps", "gan"),
    ("own_steps", "vae"),
]


@pytest.mark.parametrize(("module", "label"), ROWS, ids=[label for _, label in ROWS])
@pytest.mark.filterwarnings("default")
def test_a_row_passes(module, label, tmp_path):
    rows.load(module)
    result = way.take(cases.ROWS[label], tmp_path)
    problems = {n: s["message"] for n, s in result["stages"].items() if s["outcome"] != "passed"}
    assert result["outcome"] == "passed", problems
    assert len(result["stages"]) >= 9
