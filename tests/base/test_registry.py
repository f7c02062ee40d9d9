"""The registry: each entry leads to its code, and to all places that list names."""

import inspect
import pathlib
import subprocess
import sys

import keras
import pytest

from tests import helpers
from tests.patterns import test_patterns
from tf_rigl import distributions, methods, patterns
from tf_rigl._base import registry
from tf_rigl._base.registry import DISTRIBUTIONS, METHODS, PATTERNS

ROOT = pathlib.Path(__file__).parents[2]
EXTENDING = ROOT / "docs" / "extending.md"
EVERY = {**METHODS, **PATTERNS, **DISTRIBUTIONS}


@pytest.mark.parametrize("name", EVERY)
def test_each_entry_leads_to_what_its_module_defines(name):
    entry = EVERY[name]
    found = entry.load()
    assert (found.__module__, found.__name__) == (entry.home, entry.name)
    phrase = entry.summary[0].islower() and not entry.summary.endswith(".")
    assert phrase, f"begin in lower case, and end without a period: {entry.summary!r}"


@pytest.mark.parametrize("name", PATTERNS)
def test_a_name_with_numbers_has_examples(name):
    entry = PATTERNS[name]
    if name != name.lower():
        assert entry.examples, f"names with numbers for `examples=` of {name!r}"
    for example in entry.examples:
        found, _ = registry.find(PATTERNS, example)
        assert found is entry


@pytest.mark.parametrize("room", ["methods", "patterns"])
def test_each_class_of_a_room_is_registered(room):
    """Base classes that have no name of their own, such as `Pruning`, aside."""
    base = {"methods": methods.Method, "patterns": patterns.Pattern}[room]
    entries = {"methods": METHODS, "patterns": PATTERNS}[room]
    listed = {entry.load() for entry in entries.values()}
    for file in (ROOT / "tf_rigl" / room).glob("*.py"):
        module = sys.modules[f"tf_rigl.{room}.{file.stem}".removesuffix(".__init__")]
        for _, cls in inspect.getmembers(module, inspect.isclass):
            named = cls.__module__ == module.__name__ and issubclass(cls, base)
            parents = {parent for other in listed for parent in other.__mro__[1:]}
            assert not named or cls in listed | parents


def test_rooms_show_their_classes():
    for room, entries in ((methods, METHODS), (patterns, PATTERNS)):
        for entry in entries.values():
            assert getattr(room, entry.name) is entry.load()
            assert entry.name in room.__all__
        assert all(hasattr(room, name) for name in room.__all__)
    assert list(methods.NAMES) == list(METHODS)
    assert list(distributions.NAMES) == list(DISTRIBUTIONS)


def test_keras_knows_all_classes():
    for name in ("Static", "SNIP", "SET", "SNFS", "RigL", "MagnitudePruning", "EdgePopup"):
        assert keras.saving.get_registered_object(f"tf_rigl>{name}")
    for name in ("Unstructured", "Block", "NM", "LiteRT"):
        assert keras.saving.get_registered_object(f"tf_rigl>{name}")


def test_names_in_tests_are_complete():
    """All that is missing is reported at once, with the place where it has to be added."""
    made = {type(make()) for make in helpers.METHODS.values()}
    places = {"METHODS in tests/helpers.py": set(methods.NAMES.values()) ^ made}
    listed = {entry.load() for entry in PATTERNS.values()}
    made = {type(pattern) for pattern in test_patterns.ALL}
    places["ALL in tests/patterns/test_patterns.py"] = listed ^ made
    wrong = {place: sorted(c.__name__ for c in found) for place, found in places.items() if found}
    assert not wrong, f"in the registry or in the tests, but not in both: {wrong}"


@pytest.mark.parametrize(
    ("entries", "get"),
    [(METHODS, methods.get), (PATTERNS, patterns.get), (DISTRIBUTIONS, distributions.get)],
    ids=["methods", "patterns", "distributions"],
)
def test_names_work_and_errors_list_them(entries, get):
    names = registry.example_names(entries)
    assert all(get(name) is not None for name in names)
    with pytest.raises(ValueError, match="must be one of") as error:
        get("nothing of the kind")
    assert all(repr(name) in str(error.value) for name in names)


def test_the_error_shows_how_names_with_numbers_are_made():
    with pytest.raises(ValueError, match=r"'block_ROWSxCOLS'.*'N:M'"):
        patterns.get("block_4")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("block_4x1", ("block_ROWSxCOLS", (4, 1))),
        ("constant_fan_in_32x16", ("constant_fan_in_ROWSxCOLS", (32, 16))),
        ("2:4", ("N:M", (2, 4))),
        ("litert", ("litert", ())),
        ("block_ROWSxCOLS", None),
        ("block_4x1\n", None),
        ("N:M", None),
        ("", None),
    ],
)
def test_find(name, found):
    expected = found and (PATTERNS[found[0]], found[1])
    assert registry.find(PATTERNS, name) == expected


def test_one_line_is_enough(monkeypatch):
    """A pattern of a new name, and a distribution: known at once, and in the tables."""
    entry = registry.Entry("tf_rigl.patterns.block", "Block", "rows of WIDTH outputs")
    monkeypatch.setitem(PATTERNS, "row_ROWSxWIDTH", entry)
    monkeypatch.setitem(DISTRIBUTIONS, "same", DISTRIBUTIONS["uniform_all"])
    assert patterns.get("row_1x8") == patterns.Block(1, 8)
    assert distributions.get("same") is distributions.uniform_all
    assert '| `"row_ROWSxWIDTH"` | `patterns.Block` | rows of WIDTH outputs |' in registry.tables()


def test_the_tables_in_the_docs_are_those_of_the_registry():
    text = EXTENDING.read_text()
    assert registry.with_tables(text) == text, "python -m tf_rigl._base.registry docs/extending.md"


def test_a_document_without_marks_is_refused():
    with pytest.raises(ValueError, match="registry: begin"):
        registry.with_tables("# No place for tables")


def test_the_program_rewrites_a_document(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- registry: begin -->\nold\n<!-- registry: end -->\nafter\n")
    program = [sys.executable, "-m", "tf_rigl._base.registry", str(page)]
    subprocess.run(program, check=True, cwd=ROOT)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert registry.tables() in page.read_text()


def test_needs_neither_keras_nor_tensorflow():
    code = (
        "import sys; from tf_rigl import distributions; from tf_rigl._base import registry;"
        "distributions.get('erk');"
        "sys.exit(any(n in sys.modules for n in ('keras', 'tensorflow')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
