"""`tf-rigl`, in one process but for the one run that shows it works from a shell."""

import csv
import dataclasses
import importlib
import json
import pathlib
import runpy
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_rigl
from tf_rigl import distributions, methods, models
from tf_rigl._base import files, registry
from tf_rigl.experiments import cli, runs
from tf_rigl.experiments.settings import Settings
from tf_rigl.experiments.ticket_settings import TicketSettings

FILES = {"result.json", "model.keras", "masks.png", "sparsity.csv"}
QUICK = ["train", "--epochs", "2", "--batch-size", "256"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_folder_holds_result_model_and_picture(in_empty_folder, capsys):
    assert cli.main([*QUICK, "--update-interval", "3", "--beside-dense", "--seed", "4"]) == 0
    (folder,) = (in_empty_folder / "runs").iterdir()
    assert folder.name.startswith("digits-lenet-300-100-rigl-0.9-erk-epochs2-")
    assert {p.name for p in folder.iterdir()} == FILES
    result = json.loads((folder / "result.json").read_text())
    printed = capsys.readouterr().out
    assert f"test accuracy   {result['accuracy']:.4f}" in printed
    assert "dense on digits" in printed
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert result["steps"] == 12
    assert result["settings"]["seed"] == 4
    assert (folder / "masks.png").read_bytes().startswith(b"\x89PNG")
    model = keras.models.load_model(folder / "model.keras")
    assert model.step == 12
    for layer, mask in zip(result["layers"], model.masks.values(), strict=True):
        assert layer["active"] == np.count_nonzero(mask)
    moved = result["masks_moved"]["since_start"]
    assert len(moved) == 2
    assert moved[-1]["hidden_1/kernel"] > 0
    check_figures(folder, result, printed)


def check_figures(folder, result, printed):
    """The figures of the masks are in the run's folder, and in the line of each epoch."""
    with (folder / "sparsity.csv").open() as file:
        rows = list(csv.DictReader(file))
    paths = [*(layer["path"] for layer in result["layers"]), "(all)"]
    steps = [result["steps"] // 2, result["steps"]]
    assert [(int(r["step"]), r["weight"]) for r in rows] == [(s, p) for s in steps for p in paths]
    for row, layer in zip(rows[len(paths) :], result["layers"], strict=False):
        assert float(row["sparsity"]) == pytest.approx(layer["sparsity"], abs=1e-5)
        moved = result["masks_moved"]["since_start"][-1][layer["path"]]
        assert float(row["changed_since_start"]) == pytest.approx(moved, abs=1e-5)
    changed, dead = float(rows[-1]["changed_since_start"]), int(rows[-1]["dead_units"])
    assert f" - sparsity: {result['sparsity']:.4f} - masks_changed: {changed:.4f}" in printed
    assert result["history"]["dead_units"][-1] == dead


def test_an_earlier_run_is_replaced_and_nothing_else_left(in_empty_folder):
    for seed in ("1", "2"):
        assert cli.main([*QUICK, "--method", "static", "--seed", seed, "--output", "out"]) == 0
    assert json.loads((in_empty_folder / "out/result.json").read_text())["settings"]["seed"] == 2
    assert [p.name for p in in_empty_folder.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["thesis.txt", "result.json"])
def test_other_peoples_folders_are_left_alone(in_empty_folder, capsys, name):
    (in_empty_folder / "mine").mkdir()
    (in_empty_folder / "mine" / name).write_text("all of it")
    assert cli.main([*QUICK, "--output", "mine"]) == 2
    assert "other than an earlier run" in capsys.readouterr().err
    assert (in_empty_folder / "mine" / name).read_text() == "all of it"


def test_a_file_in_the_way_is_seen_before_training(in_empty_folder, capsys):
    (in_empty_folder / "file").write_text("in the way")
    assert cli.main([*QUICK, "--output", "file/run"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_the_current_folder_can_be_the_run_folder(in_empty_folder):
    assert cli.main([*QUICK, "--method", "static", "--output", "."]) == 0
    assert {p.name for p in in_empty_folder.iterdir()} == FILES
    assert cli.main([*QUICK, "--method", "dense", "--output", "."]) == 0
    assert {p.name for p in in_empty_folder.iterdir()} == {"result.json", "model.keras"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "rigel"], "Did you mean 'rigl'"),
        (["--model", "lenet"], "lenet-300-100"),
        (["--dataset", "digit"], "Did you mean 'digits'"),
        (["--distribution", "erq"], "Did you mean 'erk'"),
        (["--sparsity", "1.0"], "sparsity=1.0"),
        (["--epochs", "0"], "epochs=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--update-interval", "0"], "update_interval=0"),
        (["--drop-fraction", "1.5"], "drop_fraction=1.5"),
        (["--learning-rate", "0"], "learning_rate=0"),
        (["--option", "deca=linear"], "Did you mean 'decay'"),
        (["--option", "decay=straight"], "decay='straight'"),
        (["--option", "decay"], "name=value"),
        (["--option", "decay=[1"], "neither a word nor a Python literal"),
        (["--method", "static", "--option", "decay=linear"], "options of method 'static'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, in_empty_folder, capsys):
    assert cli.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tf-rigl: error: ")
    assert "Traceback" not in error
    assert not list(in_empty_folder.iterdir())


def test_a_failure_in_training_or_writing_leaves_nothing(in_empty_folder, monkeypatch):
    settings = Settings(epochs=1, batch_size=256, method="static")
    model, result = runs.run(settings, verbose=0)

    def full_disk(result, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    (in_empty_folder / "out").mkdir()
    with pytest.raises(OSError, match="No space left"):
        files.write_run("out", model, result, full_disk)
    assert [p.name for p in in_empty_folder.iterdir()] == ["out"]
    assert not list((in_empty_folder / "out").iterdir())


def test_dense_and_convolutional_runs(in_empty_folder):
    arguments = ["--epochs", "1", "--batch-size", "512", "--model", "small-cnn"]
    assert cli.main(["train", *arguments, "--method", "dense", "--output", "dense"]) == 0
    result = json.loads((in_empty_folder / "dense" / "result.json").read_text())
    assert result["layers"] == []
    assert result["active_parameters"] == result["parameters"]
    assert cli.main(["train", *arguments, "--method", "set", "--output", "set"]) == 0
    result = json.loads((in_empty_folder / "set" / "result.json").read_text())
    assert [layer["path"] for layer in result["layers"]] == [
        "conv_1/kernel",
        "conv_2/kernel",
        "conv_3/kernel",
        "logits/kernel",
    ]


def test_blocks_that_compute_sparse_are_trained_and_made_compact(in_empty_folder, capsys):
    arguments = ["--epochs", "1", "--batch-size", "512", "--model", "small-cnn"]
    arguments += ["--pattern", "channels_1x32", "--compute", "sparse"]
    assert cli.main(["train", *arguments]) == 0
    (path,) = in_empty_folder.glob("runs/*channels_1x32*computesparse/model.keras")
    model = keras.models.load_model(path)
    computes = {item.path: item.compute for item in model.masked_weights}
    assert computes["conv_2/kernel"] == computes["conv_3/kernel"] == "sparse"
    assert cli.main(["compact", str(path), "small.keras"]) == 0
    assert "conv_3  split" in capsys.readouterr().out
    assert cli.main(["train", *arguments, "--method", "magnitude"]) == 2
    assert "begins sparse" in capsys.readouterr().err
    size = path.stat().st_size
    assert cli.main(["compact", str(path), str(path)]) == 0
    assert f"the given file has {size:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--compute", "sparse"], "needs a pattern of blocks"),
        (["train", "--compute", "sparse", "--method", "dense"], "`compute` must be 'masked'"),
        (["compare", "--methods", "dense", "rigl(compute=sparse)"], "needs a pattern of blocks"),
        (["compare", "--methods", "dense(compute=sparse)"], "'dense' has no 'compute'"),
    ],
)
def test_what_cannot_compute_sparse_is_told_before_anything_is_trained(
    arguments, message, in_empty_folder, capsys
):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(in_empty_folder.glob("runs/*"))


def test_options_reach_the_method_and_the_name(in_empty_folder):
    options = ["--option", "end_step=0.5", "--option", "grow_initializer=random_normal"]
    assert cli.main([*QUICK, "--epochs", "1", "--beside-dense", *options]) == 0
    (folder,) = (in_empty_folder / "runs").iterdir()
    assert "-end_step=0.5-grow_initializer=random_normal-" in folder.name
    method = keras.models.load_model(folder / "model.keras").method
    assert method.end_step == 0.5
    assert isinstance(method.grow_initializer, keras.initializers.RandomNormal)


@pytest.fixture
def trained(in_empty_folder):
    """A model file."""
    inputs = keras.Input((16,))
    model = keras.Model(inputs, keras.layers.Dense(64, name="a")(inputs))
    tf_rigl.sparsify(model, sparsity=0.75, pattern="litert", seed=0).save("m.keras")


def test_a_model_file_is_reported_with_advice(trained, capsys):
    assert cli.main(["report", "m.keras"]) == 0
    assert "block_16x1" in capsys.readouterr().out
    assert cli.main(["report", "m.keras", "--json", "--advice"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sparsity"] == 0.75
    assert result["advice"]["layers"][0]["runs"] == "sparse"


@pytest.mark.parametrize("path", ["m.tflite", "m.TFLITE"])
def test_the_ending_of_the_path_decides_what_is_written(path, trained, in_empty_folder, capsys):
    assert cli.main(["export", "m.keras", path]) == 0
    assert path in capsys.readouterr().out
    assert (in_empty_folder / path).read_bytes()[4:8] == b"TFL3"
    assert cli.main(["export", "m.keras", "served"]) == 0
    assert (in_empty_folder / "served" / "saved_model.pb").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "none.keras"], "There is no such file"),
        (["report", "damaged.keras"], "Keras cannot load"),
        (["export", "damaged.keras", "out"], "Keras cannot load"),
        (["report", "unknown.keras"], "it holds 'Unknown', which the module"),
        (["export", "unknown.keras", "out"], "--import experiments.test_cli"),
        (["report", "m.keras", "--import", "layers_of_nobody"], "'layers_of_nobody'"),
        (["report", "m.keras", "--import", "none.py"], "There is none of this name"),
        (["report", "m.keras", "--import", "bad.py"], "cannot import 'bad.py': SyntaxError"),
        (["export", "m.keras", "out.tflite", "--quantization", "int8"], "--representative-dataset"),
        (["export", "m.keras", "out", "--batch-size", "1"], "--batch-size is for LiteRT"),
        (["export", "m.keras", "out.tflite", "--quantization", "int4"], "Did you mean 'int8'"),
        (["export", "m.keras", "none/out.tflite"], "does not exist"),
        (["export", "m.keras", "m.keras"], "must end in .tflite"),
    ],
)
def test_bad_files_and_options_are_one_line(arguments, message, trained, in_empty_folder, capsys):
    content = (in_empty_folder / "m.keras").read_bytes()
    (in_empty_folder / "damaged.keras").write_bytes(content[: len(content) // 2])

    class Unknown(keras.layers.Layer):
        def call(self, x):
            return x

    layers = [keras.Input((4,)), Unknown(), *(keras.layers.Dense(4) for _ in range(20))]
    keras.Sequential(layers).save("unknown.keras")
    (in_empty_folder / "bad.py").write_text("def")
    before = sorted(in_empty_folder.iterdir())
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tf-rigl: error: ")
    assert message in line
    assert len(line) < 700
    assert sorted(each for each in in_empty_folder.iterdir() if each.suffix != ".pyc") == before


MODULE = """
import keras

class Plain(keras.layers.Layer):
    def call(self, x):
        return x

@keras.saving.register_keras_serializable(package="theirs")
class Registered(Plain):
    pass
"""


@pytest.mark.parametrize("name", ["their_layers", "their_layers.py", "folder/their_layers.py"])
def test_models_of_classes_of_ones_own_are_reported(name, in_empty_folder, monkeypatch, capsys):
    (in_empty_folder / "folder").mkdir()
    path = in_empty_folder / (name if name.endswith(".py") else f"{name}.py")
    path.write_text(MODULE)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        theirs = importlib.import_module("their_layers")
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(4)(theirs.Registered()(theirs.Plain()(inputs)))
    tf_rigl.sparsify(keras.Model(inputs, outputs), "static", 0.5, seed=0).save("m.keras")

    def forget():  # As in a process of its own.
        sys.modules.pop("their_layers", None)
        keras.saving.get_custom_objects().pop("theirs>Registered", None)
        importlib.invalidate_caches()

    forget()
    assert cli.main(["report", "m.keras"]) == 2
    error = capsys.readouterr().err
    assert "it holds 'Plain', which the module 'their_layers' defines" in error
    assert error.endswith("--import their_layers\n")
    before = list(sys.path)
    assert cli.main(["report", "m.keras", "--json", "--import", name]) == 0
    assert json.loads(capsys.readouterr().out)["sparsity"] == 0.5
    assert sys.path == before
    forget()


def help_of(command):
    """The help of a command, and that of each option."""
    parser = cli._parser()._subparsers._group_actions[0].choices[command]
    return parser.format_help(), {action.dest: action for action in parser._actions}


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_help_knows_all_names(command):
    text, _ = help_of(command)
    for names in (methods.NAMES, models.NAMES, distributions.NAMES, registry.PATTERNS, ["dense"]):
        assert all(f"\n  {name} " in text for name in names)


@pytest.mark.parametrize(
    ("command", "settings", "more"),
    [
        ("train", Settings, {"beside_dense", "data_dir", "output"}),
        (
            "tickets",
            TicketSettings,
            {"rounds", "seeds", "controls", "densities", "learning_rates"},
        ),
    ],
)
def test_options_are_the_fields_of_the_settings(command, settings, more):
    _, options = help_of(command)
    fields = {field.name: field for field in dataclasses.fields(settings)}
    assert fields.keys() | more | {"help", "data_dir", "output"} == options.keys()
    for name, field in fields.items():
        if "help" in field.metadata:
            assert options[name].default == field.default
            assert field.metadata["help"] in options[name].help


@pytest.mark.parametrize(
    ("command", "known"), [("train", "--sparsity"), ("compare", "snip(scope=global)")]
)
def test_help_needs_no_tensorflow(command, known):
    assert known in without_tensorflow([command, "--help"]).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --method rigel", "Did you mean 'rigl'"),
        ("train --method gradual", "Did you mean 'magnitude'"),
        ("train --distribution erdos_renyi_kernel", "Did you mean 'erk'"),
        ("compare --methods dense pruning", "Did you mean 'magnitude'"),
        ("train --model lenet", "`model`"),
        ("train --pattern block_4", "`pattern`"),
        ("train --sparsity 1", "sparsity=1.0"),
        ("train --update-interval 0", "update_interval=0"),
        ("train --option decay", "name=value"),
        ("compare --seeds 0", "seeds=0"),
        ("compare --epochs 0", "epochs=0"),
        ("compare --sparsities 0.9 1.5", "sparsity=1.5"),
        ("compare --distributions erk erq", "Did you mean 'erk'"),
        ("compare --methods rigel", "Did you mean 'rigl'"),
        ("tickets --rounds -1", "rounds=-1"),
        ("tickets --rounds 0", "`rounds` must be an integer of at least 1"),
        ("tickets --output mine", "other than an earlier run"),
        ("train --output mine", "other than an earlier run"),
        ("compare --output mine", "other than an earlier run"),
        ("compare --output .", "other than an earlier run"),
        ("tickets --densities 2", "densities=2.0"),
        ("tickets --controls randm", "Did you mean 'random'"),
        ("tickets --optimizer adm", "Did you mean 'adam'"),
        ("report none.keras", "There is no such file"),
        ("report none.keras --import os.path", "There is no such file"),
        ("export none.keras out.tflite --batch-size 0", "batch_size=0"),
        ("export none.keras out.tflite --quantization int4", "Did you mean 'int8'"),
        ("export none.keras out.tflite --quantization int8", "--representative-dataset must be"),
        ("export none.keras out.tflite --representative-dataset digits", "and only with it"),
        ("export none.keras none/out.tflite", "The folder of `path` does not exist"),
        ("export none.keras none/out", "The folder of `path` does not exist"),
        ("export none.keras out.h5", "must end in .tflite"),
    ],
)
def test_names_and_numbers_are_checked_before_tensorflow_is_imported(
    arguments, message, in_empty_folder
):
    for folder in ("mine", "runs/earlier"):  # The second one is of `train`.
        (in_empty_folder / folder).mkdir(parents=True)
        (in_empty_folder / folder / "thesis.txt").write_text("all of it")
    assert message in without_tensorflow(arguments.split()).stderr


def without_tensorflow(arguments):
    """Runs a command in a process of its own, and sees that TensorFlow is not imported there."""
    code = (
        "import sys\nfrom tf_rigl.experiments import cli\n"
        f"try:\n    cli.main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("module", ["tf_rigl", "tf_rigl.experiments.cli", "tf_rigl.cli"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_module_is_the_program(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tf-rigl", "trian"])
    monkeypatch.delitem(sys.modules, module, raising=False)  # As in a new process.
    with pytest.raises(SystemExit) as error:
        runpy.run_module(module, run_name="__main__")
    assert error.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_a_search_for_a_weight_agnostic_network(in_empty_folder, capsys):
    command = ["wann", "--population", "6", "--generations", "2", "--size", "50", "--output", "out"]
    assert cli.main(command) == 0
    assert "connections" in capsys.readouterr().out
    names = {path.name for path in pathlib.Path("out").iterdir()}
    assert {"model.keras", "population.npz", "result.json"} <= names
    assert cli.main([*command, "--generations", "3"]) == 0
    assert capsys.readouterr().out.count("hidden\n") == 1  # One generation more.
    before = pathlib.Path("out", "result.json").read_bytes()
    assert cli.main([*command, "--population", "7"]) == 2
    assert "of the same search" in capsys.readouterr().err
    assert pathlib.Path("out", "result.json").read_bytes() == before
    assert cli.main(["wann", "--population", "3"]) == 2
    assert "population=3" in capsys.readouterr().err
