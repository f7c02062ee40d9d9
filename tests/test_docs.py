"""The examples in the README and the docs run as they stand."""

import pathlib
import re

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


@pytest.mark.parametrize("page", [p for p in PAGES if EXAMPLES[p]], ids=lambda page: page.stem)
def test_examples(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": f"example_{page.stem}"}
    for number, code in enumerate(EXAMPLES[page], start=1):
        exec(compile(code, f"{page.name}, example {number}", "exec"), names)
    assert names["sparse"].step > 0
    for item in names["sparse"].masked_weights:
        assert np.all(item.dense().numpy()[~item.mask.numpy()] == 0)


def test_the_example_method_is_short():
    example = EXAMPLES[ROOT / "docs" / "extending.md"][0]
    code = [line for line in example.splitlines() if line.strip() and "import" not in line]
    assert len(code) <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def named_tests(text):
    """The tests that a text names, as pairs of a file and a function."""
    return re.findall(r"(test_\w+\.py)::(test_\w+)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tests_that_a_page_names_exist(page):
    for file, name in named_tests(page.read_text()):
        (path,) = (ROOT / "tests").rglob(file)
        assert re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE), f"{file}::{name}"


def test_every_row_of_what_fit_can_do_names_a_test():
    lines = (ROOT / "docs" / "fit.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| what |", "| --- |"))]
    assert len(rows) > 20
    for row in rows:
        assert named_tests(row), row
