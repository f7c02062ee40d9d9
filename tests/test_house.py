"""The package as a house: how many rooms and floors, and that nothing crosses a border."""

import ast
import collections
import pathlib
import sys

import pytest

from tests import house

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "tf_rigl"
MOST_ROOMS, MOST_FLOORS = 19, 10


def check_none(found):
    """Fails with each place, one a line, if something was found."""
    if found:
        pytest.fail("\n".join(["", *map(str, found)]), pytrace=False)


def test_few_rooms():
    names = house.rooms(PACKAGE)
    assert len(names) <= MOST_ROOMS, ", ".join(names)


def test_each_room_has_its_place_in_the_order():
    check_none(sorted(set(house.rooms(PACKAGE)) - set(house.ROOMS)))


def test_few_floors():
    chain = house.floors(house.graph(PACKAGE))
    assert len(chain) <= MOST_FLOORS, " <- ".join(chain)


def test_imports_go_down():
    check_none(house.arrows_up(PACKAGE))


@pytest.mark.parametrize("modules", [False, True])
def test_no_cycles(modules):
    check_none(house.cycles(house.graph(PACKAGE, modules=modules)))


def test_private_api_is_used_behind_the_door_alone():
    check_none([place for place in house.private_uses(PACKAGE) if place.file != house.DOOR])


def test_files_are_short():
    check_none(house.long_files(PACKAGE))


def test_functions_are_short():
    check_none(house.long_functions(PACKAGE))


def test_flags_stay_in_their_rooms():
    check_none(house.flags_outside(PACKAGE))


def test_state_of_the_training_stays_in_its_room():
    check_none(house.state_outside(PACKAGE))


# The functions that count, on packages of a few lines.


def build(folder, **files):
    """Writes a package `shed` of the files given by name, `__` for a folder; returns its path."""
    package = folder / "shed"
    package.mkdir()
    for name, text in {"__init__": "", **files}.items():
        path = package / (name if name == "__init__" else name.replace("__", "/", 1))
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".py").write_text(text)
    return package


def names_of(places):
    """The lines and names of places."""
    return [(place.line, place.name) for place in places]


@pytest.mark.parametrize(
    "text",
    [
        "import shed.ground",
        "import shed.ground.stone as s",
        "from shed import ground",
        "from shed import top, ground",
        "from shed.ground import stone",
        "from . import ground",
        "from .ground.stone import anything",
        "from shed import Stone",
        "import shed\nshed.ground.stone.anything()",
        "import shed as s\nprint(s.Stone)",
        "import importlib\nimportlib.import_module('shed.ground')",
    ],
)
def test_every_form_of_import_counts(tmp_path, text):
    face = "_HOME = {'Stone': 'ground.stone'}"
    package = build(tmp_path, __init__=face, top=text, ground__stone="", **{"ground____init__": ""})
    assert house.graph(package) == {"top": {"ground"}, "ground": set()}
    assert house.rooms(package) == ["ground", "top"]


def test_relative_imports_within_a_room(tmp_path):
    package = build(
        tmp_path, ground="", room__a="from . import b\nfrom .. import ground", room__b=""
    )
    assert house.graph(package)["room"] == {"ground"}
    assert house.graph(package, modules=True)["room.a"] == {"room.b", "ground"}


def test_imports_of_functions_are_late(tmp_path):
    package = build(tmp_path, ground="", top="def f():\n    from shed import ground")
    assert house.graph(package)["top"] == {"ground"}
    assert house.graph(package, late=False)["top"] == set()
    assert [str(arrow) for arrow in house.imports(package)] == ["top.py:2 top -> ground (late)"]


def test_floors_and_cycles():
    edges = {"a": set(), "b": {"a", "c"}, "c": {"b"}, "d": {"c", "a"}, "e": {"a"}}
    assert house.floors(edges) == ("a", "b+c", "d")
    assert house.cycles(edges) == [("b", "c")]
    assert house.floors({}) == ()


def test_arrows_up(tmp_path):
    package = build(tmp_path, low="import shed.high", high="import shed.low", other="")
    (arrow,) = house.arrows_up(package, order=("low", "high"))
    assert str(arrow) == "low.py:1 low -> high"


PRIVATE = """
import keras
from keras.src.models.functional import Functional
from tensorflow.python.ops import control_flow_util
from shed._ours import _own_function

class _Mixed:
    def f(self):
        return self._layers, self._kept

class Model(_Mixed, keras.Model):
    def __init__(self):
        super().__init__()
        self._kept = self._flatten_layers()
        self._initial_epoch = 0
        self._mine()

    def _mine(self):
        return self._kept._fields, self.__class__

    def _maybe_symbolic_build(self):
        super()._maybe_symbolic_build()

def use(model, name):
    model._kept = model._inbound_nodes
    getattr(model, "_some_name", None)
    getattr(model, f"_{name}")
    return model._initial_epoch, "_layers", f"{name}_block", "_block", keras.src.ops
"""


def test_private_names_of_others_are_found_and_ours_are_not(tmp_path):
    package = build(tmp_path, room=PRIVATE, _ours="def _own_function():\n    pass\n")
    assert names_of(house.private_uses(package)) == [
        (3, "keras.src.models.functional.Functional"),
        (4, "tensorflow.python.ops.control_flow_util"),
        (9, "_layers"),
        (14, "_flatten_layers"),
        (15, "_initial_epoch"),
        (21, "_maybe_symbolic_build"),
        (22, "_maybe_symbolic_build"),
        (25, "_inbound_nodes"),
        (26, "_some_name"),
        (27, "_{name}"),
        (28, "_initial_epoch"),
        (28, "_layers"),
        (28, "keras.src"),
    ]


def test_bases_are_known_through_the_door(tmp_path):
    door = "from keras.src.models.functional import Functional\n"
    room = "from shed._base.keras_internals import Functional\n\n\nclass Model(Functional):\n"
    room += "    def _maybe_symbolic_build(self):\n        pass\n"
    package = build(tmp_path, room=room, _base__keras_internals=door)
    assert [str(place) for place in house.private_uses(package)] == [
        "_base/keras_internals.py:1 keras.src.models.functional.Functional",
        "room.py:5 _maybe_symbolic_build",
    ]


def test_sizes(tmp_path):
    code = 'def f():\n    """Text."""\n\n    # A comment.\n    a = 1\n    b = 2\n    return a, b\n'
    package = build(tmp_path, room=code)
    assert house.long_functions(package, limit=3) == house.long_files(package, limit=7) == []
    assert names_of(house.long_functions(package, limit=2)) == [(1, "f: 3 lines")]
    assert names_of(house.long_files(package, limit=6)) == [(1, "7 lines")]


def test_mentions(tmp_path):
    code = "def f(item):\n    return id(item), map(id, item.id), item.is_packed, item._run\n"
    flag = "getattr(item, 'trains_scores')\n_run = 1\n"
    package = build(tmp_path, weights=code, training__step=code, other=flag)
    assert [str(place) for place in house.flags_outside(package)] == [
        "other.py:1 trains_scores",
        "training/step.py:2 is_packed",
    ]
    assert [str(place) for place in house.state_outside(package)] == ["weights.py:2 _run"]
    assert len(house.joins_by_id(package)) == 4


def test_table(tmp_path, monkeypatch, capsys):
    package = build(tmp_path, low="import shed.high", high="import shed.low")
    monkeypatch.setattr(sys, "argv", ["house.py", str(package), "--list"])
    house.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["    2  rooms", "         high", "         low"]
    assert "         high + low" in lines


def test_no_two_tests_register_one_name():
    """Keras keeps one class for a name, so which test comes first would decide what loads."""
    places = collections.defaultdict(list)
    for file in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            for package in map(_registered, getattr(node, "decorator_list", ())):
                if package:
                    places[f"{package}>{node.name}"].append(f"{file}:{node.lineno}")
    check_none([(name, found) for name, found in places.items() if len(found) > 1])


def _registered(decorator):
    """The package of `register_keras_serializable(package)`, or None."""
    if not isinstance(decorator, ast.Call) or "register_keras" not in ast.unparse(decorator.func):
        return None
    given = [*decorator.args, *(word.value for word in decorator.keywords if word.arg == "package")]
    return ast.literal_eval(given[0])
