"""Old dotted names of modules: the same modules, with a warning."""

import importlib
import sys
import warnings

import pytest

import tf_rigl
from tf_rigl._base import old_names


@pytest.mark.parametrize("name", sorted(old_names.MOVED))
def test_a_module_that_has_moved_is_found_under_its_old_name(name, monkeypatch):
    new = importlib.import_module(old_names.MOVED[name])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.warns(DeprecationWarning, match=f"is now `{old_names.MOVED[name]}`"):
        assert importlib.import_module(name) is new
    assert new.__name__ == new.__spec__.name == old_names.MOVED[name]


@pytest.mark.parametrize("name", sorted(old_names.MOVED))
def test_it_is_an_attribute_too(name):
    place = tf_rigl
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for part in name.split(".")[1:]:
            place = getattr(place, part)
    assert place is importlib.import_module(old_names.MOVED[name])


@pytest.mark.parametrize("name", sorted(old_names.STAY))
def test_names_that_stay_do_not_warn(name, monkeypatch):
    monkeypatch.delitem(sys.modules, name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importlib.import_module(name) is importlib.import_module(old_names.STAY[name])


def test_names_that_are_shown():
    for module, names in old_names.SHOWN.items():
        for name, home in names.items():
            shown = getattr(importlib.import_module(module), name)
            assert shown is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("module", ["tf_rigl", "tf_rigl.block_sparse", "tf_rigl.lottery"])
def test_other_names_are_none(module):
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018
