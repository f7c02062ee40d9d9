"""Comparisons; most of them of runs that are made up, so that their numbers are known."""

import dataclasses
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_rigl.experiments import cli, compare
from tf_rigl.experiments import runs as runs_module
from tf_rigl.experiments.settings import Settings
from tf_rigl.experiments.specs import Spec, parse, parse_value
from tf_rigl.experiments.store import Store

DRAW = compare._draw
BASE = Settings(epochs=2, batch_size=256)
PICTURES = {"accuracy_flops.png", "accuracy_sparsity.png", "input_pixels.png"}


def made_up(settings, accuracy=0.5):
    """A result such as `runs.run` returns."""
    density = 1 - settings.sparsity
    flops, epochs = round(1000 * density), settings.epochs
    result = {
        "settings": dataclasses.asdict(settings),
        "accuracy": accuracy,
        "steps": 10 * epochs,
        "train_flops": 3.0 * flops,
        "report": {"flops": flops, "dense_flops": 1000, "bytes": 2 * flops, "dense_bytes": 4000},
    }
    if settings.method != "dense":
        end = [4, 0, 0, 0] if settings.method != "static" else [1, 1, 1, 1]
        counts = [[1, 1, 1, 1], end]
        result["explored"] = 0.5 + density / 2
        result["input_connections"] = {"shape": [2, 2, 1], "epochs": [0, epochs], "counts": counts}
    return result


@pytest.fixture
def runs(monkeypatch):
    """Replaces training, and draws nothing; collects the names of the runs that were done."""
    done = []

    def run(settings, *, data_dir=None, verbose="auto"):
        done.append(settings.name)
        return None, made_up(settings, accuracy=(80 + settings.seed**2) / 100)

    monkeypatch.setattr(runs_module, "run", run)
    # What would take most of the time.
    monkeypatch.setattr(compare, "_draw", lambda *_: None)
    monkeypatch.setattr(keras.backend, "clear_session", lambda **_: None)
    return done


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What a spec says.


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("rigl", Spec("rigl")),
        ("dense@2x", Spec("dense", {}, 2.0)),
        ("set()", Spec("set")),
        ("snip(scope=global)", Spec("snip", {"scope": "global"})),
        ("rigl(gradient_batches=4)@1.5x", Spec("rigl", {"gradient_batches": 4}, 1.5)),
        (
            " set ( drop_fraction = .5, decay='linear', model=small-cnn ) @ 2x ",
            Spec("set", {"drop_fraction": 0.5, "decay": "linear", "model": "small-cnn"}, 2.0),
        ),
        ("set(a=true, b=None, c='true')", Spec("set", {"a": True, "b": None, "c": "true"})),
        ("set(a=[1, 'x)(,'], b={'c': 2},)", Spec("set", {"a": [1, "x)(,"], "b": {"c": 2}})),
    ],
)
def test_specs_are_read(text, spec):
    assert parse(text) == spec
    assert parse(str(spec)) == spec


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["static", "rigl"]),
    st.dictionaries(st.from_regex(r"o_[a-z0-9_]*", fullmatch=True), JSON, max_size=3),
    st.sampled_from([1.0, 2.0, 0.5, 1.23456789]),
)
def test_specs_are_written_as_they_are_read(method, arguments, times):
    spec = Spec(method, arguments, times)
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rigel", "Did you mean 'rigl'"),
        ("", "does not have the form"),
        ("rigl(", "does not have the form"),
        ("rigl@2", "does not have the form"),
        ("rigl@-1x", "does not have the form"),
        ("rigl(0.5)", "name=value"),
        ("rigl(a=1, a=2)", "once"),
        ("rigl(a=1)(b=2)", "neither a word nor a Python literal"),
        ("rigl(a=__import__('os').getcwd())", "neither a word nor a Python literal"),
        ("rigl(a=)", "neither a word nor a Python literal"),
        ("rigl(a=[)", "neither a word nor a Python literal"),
        (f"rigl(a={'[' * 5000})", "neither a word nor a Python literal"),
        ("rigl(seed=3)", "seeds are the same"),
        ("dense(sparsity=0.5)", "'dense' has no 'sparsity'"),
        ("static(drop_fraction=0.5)", "'static' has no 'drop_fraction'"),
    ],
)
def test_specs_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match="Received") as error:
        parse(text)
    assert message in str(error.value)


def test_values():
    assert parse_value(" 1e-3 ") == 1e-3
    assert parse_value("(1, 2)") == (1, 2)
    assert parse_value("False") is False
    assert parse_value("null") is None
    assert parse_value("random_normal") == "random_normal"


def test_what_is_compared_at_what():
    specs = ["dense", "set", "rigl(sparsity=0.5)@2x", "rigl(distribution=uniform, batch_size=9)"]
    cells = compare.cells(specs, [0.8, 0.9], ["erk", "erdos_renyi"], [0, 1], BASE)
    assert [(c.spec, c.sparsity, c.distribution, c.times) for c in cells] == [
        ("dense", None, None, 1),
        ("set", 0.8, "erk", 1),
        ("set", 0.9, "erk", 1),
        ("set", 0.8, "erdos_renyi", 1),
        ("set", 0.9, "erdos_renyi", 1),
        ("rigl(sparsity=0.5)@2x", 0.5, "erk", 2),
        ("rigl(sparsity=0.5)@2x", 0.5, "erdos_renyi", 2),
        ("rigl(distribution=uniform, batch_size=9)", 0.8, "uniform", 1),
        ("rigl(distribution=uniform, batch_size=9)", 0.9, "uniform", 1),
    ]
    runs = cells[-1].runs
    assert [run.seed for run in runs] == [0, 1]
    assert (runs[0].sparsity, runs[0].batch_size, runs[0].epochs) == (0.9, 9, 2)
    assert cells[5].runs[0].epochs == 4


@pytest.mark.parametrize(
    ("specs", "sparsities", "seeds", "message"),
    [
        ([], [0.9], [0], "at least one method"),
        (["rigl"], [], [0], "at least one method"),
        (["rigl"], [0.9], [], "at least one method"),
        (["rigl"], [1.0], [0], "sparsity=1.0"),
        (["rigl@0.3x"], [0.9], [0], "whole number of epochs"),
        (["rigl(deca=linear)"], [0.9], [0], "In 'rigl(deca=linear)': .*Did you mean 'decay'"),
        (["rigl(epochs=two)@2x"], [0.9], [0], "epochs='two'"),
        (["set(drop_fraction=2)"], [0.9], [0], "drop_fraction=2"),
        (["set"], [0.9, 0.9 + 1e-9], [0], "Two different runs have the same name"),
        (
            ["dense", "rigl(update_interval=5, gradient_batches=50)"],
            [0.9],
            [0],
            "`gradient_batches` must be at most `update_interval`",
        ),
    ],
)
def test_impossible_comparisons_leave_nothing(specs, sparsities, seeds, message, in_empty_folder):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        compare.compare(specs, sparsities, seeds, folder="out", base=BASE)
    assert not list(in_empty_folder.iterdir())


def test_a_method_that_does_not_go_with_the_steps_of_its_run_is_refused_at_once(
    runs, monkeypatch, in_empty_folder
):
    """Which the settings alone do not tell: 2 epochs of 6 batches."""
    make, seen = Settings.make_method, []

    def short(settings, steps):
        if steps < 5_000 and settings.method == "set":
            seen.append(steps)
            raise ValueError("too short")
        return make(settings, steps)

    monkeypatch.setattr(Settings, "make_method", short)
    with pytest.raises(ValueError, match=r"^digits-lenet-300-100-set-.*: too short"):
        compare.compare(["dense", "rigl", "set"], [0.9], [0], folder="out", base=BASE)
    assert seen == [12]
    assert runs == []


def test_a_window_of_gradients_that_is_longer_than_the_usual_interval(runs):
    """Of a short run; the interval is then that long."""
    rows = compare.compare(["rigl(gradient_batches=5)"], [0.9], [0], folder="out", base=BASE)
    assert len(rows) == len(runs) == 1
    method = Settings(options={"gradient_batches": 5}).make_method(12)
    assert (method.update_interval, method.gradient_batches) == (5, 5)


# What is done, and what is not done again.


def test_each_method_has_its_own_drop_fraction():
    base = Settings()
    assert Spec("granet").settings(base).drop_fraction == 0.5
    assert Spec("set").settings(base).drop_fraction == 0.3
    assert Spec("granet", {"drop_fraction": 0.3}).settings(base).drop_fraction == 0.3
    assert Spec("granet").settings(Settings(drop_fraction=0.2)).drop_fraction == 0.2


def test_no_run_is_repeated(runs, in_empty_folder, capsys):
    compare.compare(["dense", "set"], [0.8, 0.9], [0, 1], folder="out", base=BASE)
    assert len(runs) == len(set(runs)) == 6
    assert all("seed0" in name for name in runs[:3])
    compare.compare(["dense", "set"], [0.8, 0.9], [0, 1], folder="out", base=BASE)
    assert len(runs) == 6
    assert "6 of 6 runs are finished already" in capsys.readouterr().out
    more = ["set", "set(drop_fraction=0.3)", "rigl"]
    rows = compare.compare(more, [0.9], [0, 1, 2], folder="out", base=BASE)
    assert [name.split("300-100-")[1] for name in runs[6:]] == [
        "rigl-0.9-erk-epochs2-batchsize256-seed0",
        "rigl-0.9-erk-epochs2-batchsize256-seed1",
        "set-0.9-erk-epochs2-batchsize256-seed2",
        "rigl-0.9-erk-epochs2-batchsize256-seed2",
    ]
    assert rows[0]["accuracies"] == rows[1]["accuracies"]  # One run, however it is asked for.
    stored = {path.name for path in (in_empty_folder / "out" / "runs").iterdir()}
    assert stored == {f"{name}.json" for name in runs}


def test_cut_off_in_the_middle_it_goes_on(runs, monkeypatch, capsys, in_empty_folder):
    done = []

    def run(settings, **_):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(settings.name)
        return None, made_up(settings)

    monkeypatch.setattr(runs_module, "run", run)
    command = ["compare", "--methods", "dense", "set", "--seeds", "2", "--output", "out"]
    assert cli.main(command) == 130
    assert "same command continues" in capsys.readouterr().err
    folder = in_empty_folder / "out"
    assert {path.stem for path in (folder / "runs").iterdir()} == set(done)
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [[0], [0]]
    assert "1 of 2" in (folder / "table.md").read_text()

    monkeypatch.setattr(runs_module, "run", lambda s, **_: (done.append(s.name), made_up(s)))
    assert cli.main(command) == 0
    assert len(done) == len(set(done)) == 4
    assert " of 2" not in (folder / "table.md").read_text()


def test_progress_is_one_line_a_run(runs, capsys):
    compare.compare(["set"], [0.9], [0, 1], folder="out", base=BASE)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/2, 0 min left] digits-lenet-300-100-set-0.9")
    assert first.endswith("seed0: 0.8000")
    assert second.startswith("[2/2, 0 min left] ")
    assert second.endswith("seed1: 0.8100")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"settings": {', "cannot be used"),
        ("", "cannot be used"),
        ("[]", "cannot be used"),
        ('{"settings": {"method": "rigel"}}', "cannot be used"),
        ('{"settings": {"unheard_of": 1}}', "cannot be used"),
        (json.dumps({"settings": {}, "accuracy": None}), "cannot be used"),
        (json.dumps(made_up(Settings(method="set", seed=7))), "belongs to another run"),
    ],
)
def test_stored_files_that_are_not_right(content, message, runs, in_empty_folder, capsys):
    compare.compare(["set"], [0.9], [0, 1], folder="out", base=BASE)
    path = in_empty_folder / "out" / "runs" / f"{runs[0]}.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        compare.compare(["set"], [0.9], [0, 1], folder="out", base=BASE)
    assert path.name in str(error.value)
    assert len(runs) == 2
    path.unlink()
    compare.compare(["set"], [0.9], [0, 1], folder="out", base=BASE)
    assert len(runs) == 3


HOLD = """
import sys
from tf_rigl._base.store import Store
with Store(sys.argv[1]).claim(sys.argv[2]) as mine:
    print(mine, flush=True)
    input()
"""


@pytest.fixture
def hold():
    """A function that starts a process that claims a run, and lives until it is ended."""
    started = []

    def start(folder, name):
        command = [sys.executable, "-c", HOLD, str(folder), name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline().strip() == b"True"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_runs_of_other_processes_are_left_to_them(runs, hold, in_empty_folder, capsys):
    name = Settings(method="set", epochs=2, batch_size=256).name
    folder = in_empty_folder / "out" / "runs"
    process = hold(folder, name)
    rows = compare.compare(["set"], [0.9], [0, 1], folder="out", base=BASE)
    assert len(runs) == 1
    assert rows[0]["seeds"] == [1]
    assert "Other processes are doing 1 of 2 runs" in capsys.readouterr().out

    process.kill()
    process.communicate()
    compare.compare(["set"], [0.9], [0, 1], folder="out", base=BASE)
    assert runs[1:] == [name]
    assert not list(folder.glob("*running*"))


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", str(os.getpid()), "-1", "9" * 30],
    ids=["empty", "nonsense", "own", "negative", "large"],  # The same in each process of xdist.
)
def test_claims_of_version_0_1_hold_nothing_up(content, runs, in_empty_folder):
    """That version wrote its process number into the file, and kept no lock on it."""
    name = Settings(method="set", epochs=2, batch_size=256).name
    claim = in_empty_folder / "out" / "runs" / f"{name}.running"
    claim.parent.mkdir(parents=True)
    claim.write_text(content)
    compare.compare(["set"], [0.9], [0], folder="out", base=BASE)
    assert runs == [name]
    assert [path.name for path in claim.parent.iterdir()] == [f"{name}.json"]


def test_a_run_is_not_done_twice_in_one_process(runs, in_empty_folder, capsys):
    store = Store(in_empty_folder / "out" / "runs", [Settings("digits", method="set", epochs=2)])
    base = dataclasses.replace(BASE, batch_size=64)
    with store.claim(store.wanted[0]) as mine:
        assert mine
        compare.compare(["set"], [0.9], [0], folder="out", base=base)
    assert runs == []
    assert "Other processes are doing 1 of 1 runs" in capsys.readouterr().out


def test_what_another_process_stores_meanwhile_is_not_done(runs, monkeypatch, in_empty_folder):
    done = []

    def run(settings, **_):
        done.append(settings.name)
        other = dataclasses.replace(settings, seed=1)
        path = in_empty_folder / "out" / "runs" / f"{other.name}.json"
        path.write_text(json.dumps(made_up(other)))
        return None, made_up(settings)

    monkeypatch.setattr(runs_module, "run", run)
    rows = compare.compare(["set"], [0.9], [0, 1], folder="out", base=BASE)
    assert len(done) == 1
    assert rows[0]["seeds"] == [0, 1]


def test_a_failed_run_leaves_no_claim(runs, monkeypatch, in_empty_folder):
    def run(settings, **_):
        raise ValueError("it cannot be")

    monkeypatch.setattr(runs_module, "run", run)
    with pytest.raises(ValueError, match=r"digits-lenet-300-100-set-0.9-.*: it cannot be"):
        compare.compare(["set"], [0.9], [0], folder="out", base=BASE)
    assert not list((in_empty_folder / "out" / "runs").iterdir())


# What comes out.


def test_the_numbers_of_the_table(runs, in_empty_folder):
    rows = compare.compare(
        ["dense", "set", "set@2x", "set(epochs=1)"],
        [0.75],
        [1, 2, 3],
        folder="out",
        base=BASE,
        command="tf-rigl compare",
    )
    # Accuracies of 81, 84 and 89%: the mean is 84 2/3, the squared differences from it
    # are 13 4/9, 4/9 and 18 7/9, their sum over two is 16 1/3.
    for row in rows:
        assert row["accuracies"] == [0.81, 0.84, 0.89]
        assert row["mean"] == pytest.approx((84 + 2 / 3) / 100)
        assert row["std"] == pytest.approx(np.sqrt(16 + 1 / 3) / 100)
    assert [row["train_flops"] for row in rows] == pytest.approx([1, 0.25, 0.5, 0.125])
    assert [row["inference_flops"] for row in rows] == pytest.approx([1, 0.25, 0.25, 0.25])
    assert [row["size"] for row in rows] == pytest.approx([0.5, 0.125, 0.125, 0.125])
    text = (in_empty_folder / "out" / "table.md").read_text()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:6]]
    assert cells == [
        ["dense", "-", "-", "84.67 ± 4.04", "3", "1.000", "1.000", "0.500", "2.0", "-"],
        ["set", "0.75", "erk", "84.67 ± 4.04", "3", "0.250", "0.250", "0.125", "0.5", "0.625"],
        ["set@2x", "0.75", "erk", "84.67 ± 4.04", "3", "0.500", "0.250", "0.125", "0.5", "0.625"],
        [
            "set(epochs=1)", "0.75", "erk", "84.67 ± 4.04", "3",
            "0.125", "0.250", "0.125", "0.5", "0.625",
        ],
    ]  # fmt: skip
    stored = json.loads((in_empty_folder / "out" / "comparison.json").read_text())
    assert stored == {"command": "tf-rigl compare", "rows": rows}


def test_runs_of_older_versions_have_an_empty_cell(runs, in_empty_folder):
    compare.compare(["set"], [0.9], [0, 1], folder="out", base=BASE)
    path = in_empty_folder / "out" / "runs" / f"{runs[0]}.json"
    result = json.loads(path.read_text())
    del result["explored"]
    path.write_text(json.dumps(result))
    for methods, expected in ((["set"], None), (["set", "rigl"], pytest.approx(0.55))):
        rows = compare.compare(methods, [0.9], [0, 1], folder="out", base=BASE)
        assert rows[-1]["explored"] == expected
    assert rows[0]["explored"] is None
    lines = (in_empty_folder / "out" / "table.md").read_text().splitlines()
    assert [line.split("|")[-2].strip() for line in lines[:4]][::2] == ["explored", ""]
    assert lines[3].split("|")[-2].strip() == "0.550"


def test_one_seed_has_no_deviation_and_none_no_number():
    row = {"method": "set", "sparsity": 0.9, "distribution": "erk", "seeds_wanted": 1}
    row["pattern"] = "unstructured"
    ratios = {"train_flops": 0.5, "inference_flops": 0.1, "size": 0.1, "bytes": 100.0}
    one = {**row, "accuracies": [0.9], "mean": 0.9, "std": None, **ratios}
    none = {**row, "accuracies": [], "mean": None, "std": None, **dict.fromkeys(ratios)}
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in compare.table([one, none]).splitlines()[2:4]
    ]
    assert lines[0] == ["set", "0.9", "erk", "90.00", "1", "0.500", "0.100", "0.100", "0.1", ""]
    assert lines[1] == ["set", "0.9", "erk", "-", "0 of 1", "-", "-", "-", "-", "-"]


def test_the_pattern_has_a_column_where_it_differs():
    row = {"method": "set", "sparsity": 0.9, "distribution": "erk", "seeds_wanted": 1}
    row |= {"accuracies": [0.9], "mean": 0.9, "std": None, "bytes": 100.0}
    row |= {"train_flops": 0.5, "inference_flops": 0.1, "size": 0.1}
    rows = [{**row, "pattern": name} for name in ("unstructured", "block_16x1")]
    table = compare.table(rows)
    assert "| pattern |" in " ".join(table.splitlines()[0].split())
    assert "block_16x1" in table


@pytest.mark.parametrize(
    ("specs", "sparsities", "distributions", "pictures"),
    [
        (["dense", "static", "set", "rigl@2x"], [0.5, 0.9, 0.99], ["erk"], PICTURES),
        (["set"], [0.0, 0.9], ["erk", "uniform"], PICTURES),
        (["rigl"], [0.9], ["erk"], PICTURES),
        (["dense", "static"], [0.9], ["erk"], PICTURES - {"input_pixels.png"}),
        (["dense", "dense@2x"], [0.9], ["erk"], PICTURES - {"input_pixels.png"}),
    ],
)
def test_pictures(specs, sparsities, distributions, pictures, runs, in_empty_folder, monkeypatch):
    monkeypatch.setattr(compare, "_draw", DRAW)
    compare.compare(specs, sparsities, [0, 1], distributions=distributions, folder="out", base=BASE)
    found = {path.name: path for path in (in_empty_folder / "out").glob("*.png")}
    assert found.keys() == pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found.values())


def test_without_matplotlib_there_is_a_table(runs, in_empty_folder, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_draw", DRAW)
    monkeypatch.setitem(sys.modules, "tf_rigl.experiments.plots", None)
    monkeypatch.delattr("tf_rigl.experiments.plots", raising=False)
    compare.compare(["set"], [0.9], [0], folder="out", base=BASE)
    assert "pip install 'tf_rigl[plots]'" in capsys.readouterr().out
    assert {p.name for p in (in_empty_folder / "out").iterdir()} == {
        "runs",
        "table.md",
        "comparison.json",
    }


# The command.


def test_the_command_with_true_runs(in_empty_folder, capsys):
    command = ["compare", "--methods", "dense", "snip(scope=global)", "rigl(decay=linear)"]
    command += ["--seeds", "1", "--epochs", "1", "--batch-size", "256", "--output", "a folder"]
    assert cli.main(command) == 0
    folder = in_empty_folder / "a folder"
    printed = capsys.readouterr().out
    assert (folder / "table.md").read_text() in printed
    assert printed.rstrip().endswith("runs, table.md")
    stored = json.loads((folder / "comparison.json").read_text())
    assert stored["command"].startswith("tf-rigl compare --methods dense 'snip(scope=global)'")
    assert stored["command"].endswith("--output 'a folder'")
    dense, snip, rigl = stored["rows"]
    assert dense["train_flops"] == dense["inference_flops"] == 1
    assert [snip["inference_flops"], rigl["inference_flops"]] == pytest.approx([0.1] * 2, abs=1e-3)
    assert rigl["train_flops"] > snip["train_flops"] == pytest.approx(0.1, abs=1e-3)
    assert rigl["size"] < 0.2
    assert snip["explored"] == 1
    assert 0.1 < rigl["explored"] < 0.5
    for row in stored["rows"]:
        (name,) = row["runs"]
        result = json.loads((folder / "runs" / f"{name}.json").read_text())
        assert Settings(**result["settings"]).name == name
        assert row["accuracies"] == [result["accuracy"]]
        assert row["explored"] == result.get("explored")
        assert result["train_flops_total"] == result["train_flops"] * 6 * 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "rigl("], "does not have the form"),
        (["--methods", "rigel"], "Did you mean 'rigl'"),
        (["--methods", "snip(scop=global)"], "Did you mean 'scope'"),
        (["--sparsities", "0.9", "1.5"], "sparsity=1.5"),
        (["--distributions", "erq"], "Did you mean 'erk'"),
        (["--dataset", "digit"], "Did you mean 'digits'"),
        (["--model", "lenet"], "lenet-300-100"),
        (["--seeds", "0"], "seeds=0"),
        (["--epochs", "0"], "epochs=0"),
        (["--output", "file/out"], "is a file"),
        (["--output", "mine"], "no comparison.json or runs"),
    ],
)
def test_bad_input_is_one_line(arguments, message, in_empty_folder, capsys):
    (in_empty_folder / "file").write_text("in the way")
    (in_empty_folder / "mine").mkdir()
    (in_empty_folder / "mine" / "thesis.txt").write_text("all of it")
    assert cli.main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tf-rigl: error: ")
    assert error.count("\n") == 1
    assert [path.name for path in (in_empty_folder / "mine").iterdir()] == ["thesis.txt"]
