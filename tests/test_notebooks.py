"""Every notebook runs from start to end."""

import os
import pathlib

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Before each: no names, nothing of the library imported, and a folder of its own.
FRESH = """
%reset -f
import os, sys
os.chdir({!r})
for name in [name for name in sys.modules if name.split(".")[0] == "tf_rigl"]:
    del sys.modules[name]
%reset -f
"""


@pytest.fixture(scope="module")
def kernel():
    """One process for all: to import TensorFlow takes longer than what many of them do."""
    manager, client = start_new_kernel(
        kernel_name="python3",
        env={**os.environ, "TF_RIGL_SHORT": "1"},
        extra_arguments=["--HistoryManager.hist_file=:memory:"],
    )
    client.stop_channels()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, kernel, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FRESH.format(str(tmp_path))))
    NotebookClient(notebook, km=kernel, timeout=300).execute()
    executed = [cell for cell in notebook.cells[1:] if cell.cell_type == "code"]
    assert executed
    assert all(cell.execution_count for cell in executed)
