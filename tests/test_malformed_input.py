"""`tf-rigl` and malformed files and arguments: one line that says so, and no code is run."""

import contextlib
import copy
import io
import itertools
import json
import math
import os
import warnings
import zipfile

import keras
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import tf_rigl
from tests.experiments.test_compare import made_up
from tests.helpers import compiled, mlp, sparsify
from tests.soak import record, times
from tf_rigl.experiments import cli
from tf_rigl.experiments.settings import METHODS, Settings

# The same examples everywhere, and no files left behind.
FIXED = {"deadline": None, "derandomize": True, "database": None}


def examples(short, long):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=times(short, long), suppress_health_check=checks, **FIXED)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_training(monkeypatch):
    """Arguments are looked at, models are made, but none is trained."""

    def fit(self, *args, **kwargs):
        raise ValueError("this would train")

    for cls in (keras.Model, tf_rigl.SparseModel):
        monkeypatch.setattr(cls, "fit", fit)


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures are made, but not written: that takes most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda *args, **kwargs: None)


def run(*arguments):
    """The exit code of `tf-rigl`, and its line of error; there is never more than that."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")  # As in a process of its own.
        try:
            code = cli.main(list(arguments))
        except SystemExit as end:  # Of argparse, which shows the usage first.
            code = end.code
    lines = [line for line in errors.getvalue().splitlines() if ": warning: " not in line]
    assert "Traceback" not in errors.getvalue()
    assert code in (0, 2)
    if code == 0:
        return code, ""
    assert lines[-1].startswith("tf-rigl")
    assert ": error: " in lines[-1]
    assert len(lines) == 1 or lines[0].startswith("usage: ")
    return code, lines[-1]


# Mutations of JSON.

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 7, 10**30, 0.5, -1.5, math.nan, math.inf, 1e300]),
    st.sampled_from(["", "x", "Dense", "relu", "keras.layers", "tf_rigl>RigL", "../x", "\x00"]),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["class_name", "config", "module", "x"]), inner),
    ),
    max_leaves=6,
)


def places(node):
    """All (container, key) in a structure."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield node, key
        if isinstance(value, (dict, list)):
            yield from places(value)


@st.composite
def mutated(draw, original):
    """A structure in which a few things are others, or missing."""
    result = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(result))
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        action = draw(st.sampled_from(["replace", "replace", "remove", "swap"]))
        if action == "replace":
            container[key] = draw(VALUES)
        elif action == "remove":
            del container[key]
        else:
            other, name = found[draw(st.integers(0, len(found) - 1))]
            container[key] = copy.deepcopy(other[name])
    return result


# Files of models.


def parts_of(model, path):
    """The members of a model's file, by name."""
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    path.unlink()
    return parts


def write(path, parts, config=None):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            if name == "config.json" and config is not None:
                content = json.dumps(config)
            archive.writestr(name, content)


@pytest.fixture(scope="module")
def sparse_parts(tmp_path_factory):
    return parts_of(compiled(sparsify(mlp())), tmp_path_factory.mktemp("model") / "model.keras")


def test_models_with_another_configuration_are_reported_or_refused(sparse_parts, tmp_path):
    config, codes, path = json.loads(sparse_parts["config.json"]), [], tmp_path / "model.keras"

    @examples(40, 3_000)
    @given(config=mutated(config))
    def check(config):
        write(path, sparse_parts, config)
        codes.append(run("report", str(path))[0])
        if codes[-1] == 0 and len(codes) % 10 == 0:  # That takes longer.
            run("export", str(path), f"out-{len(codes)}.tflite")

    check()
    assert set(codes) == {0, 2}
    record("mutated configurations", files=len(codes), refused=codes.count(2))


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_models_with_any_bytes_for_a_part_are_reported_or_refused(name, sparse_parts, tmp_path):
    path = tmp_path / "model.keras"

    @examples(15, 1_000)
    @given(content=st.one_of(st.binary(max_size=200), st.text(max_size=50).map(str.encode)))
    def check(content):
        write(path, {**sparse_parts, name: content})
        assert run("report", str(path))[0] == (0 if name == "metadata.json" else 2)

    check()


@examples(40, 2_000)
@given(content=st.binary(max_size=300), archive=st.booleans())
def test_any_bytes_for_a_model_are_refused(content, archive):
    with open("model.keras", "wb") as file:
        file.write(b"PK\x03\x04" * archive + content)
    for arguments in (["report"], ["export"]):
        code, error = run(*arguments, "model.keras", *(["out"] if "export" in arguments else []))
        assert code == 2
        assert "model.keras" in error
    assert os.listdir() == ["model.keras"]


@pytest.mark.parametrize("missing", ["config.json", "model.weights.h5"])
@pytest.mark.parametrize("command", [["report"], ["export"]])
def test_models_that_lack_a_part_are_refused(missing, command, sparse_parts, tmp_path):
    parts = {name: content for name, content in sparse_parts.items() if name != missing}
    write(tmp_path / "model.keras", parts)
    code, error = run(*command, "model.keras", *(["out.tflite"] if "export" in command else []))
    assert (code, "Keras cannot load 'model.keras'" in error) == (2, True)
    assert os.listdir(tmp_path) == ["model.keras"]


# Files that want code to be run.

MARKER = "marker"
writes_marker = lambda x, *_: (open("marker", "w").close(), x)[1]  # noqa: E731


def dangerous_lambda():
    """A model whose Lambda writes a file, as `safe_mode=False` would let it be loaded."""
    layer = keras.layers.Lambda(writes_marker)
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)])
    os.remove(MARKER)
    return model


FOREIGN = [
    {"module": module, "class_name": name, "config": config, "registered_name": registered}
    for module, name, config, registered in [
        ("os", "system", {"command": f"touch {MARKER}"}, None),
        ("subprocess", "Popen", {"args": ["touch", MARKER]}, None),
        ("builtins", "open", {"file": MARKER, "mode": "w"}, "open"),
        ("tf_rigl.cli", "main", {"arguments": ["--help"]}, None),
        ("tf_rigl.files", "write_text", {"path": MARKER, "text": ""}, "tf_rigl>write_text"),
        ("foreign_package.layers", "Layer", {}, "foreign_package>Layer"),
        ("keras.utils", "get_file", {"fname": MARKER, "origin": "file:///dev/null"}, None),
    ]
]


def refused(path):
    """That a file is refused by all that loads one, and no code of its own is run."""
    for arguments in (["report", path], ["export", path, "out"], ["export", path, "out.tflite"]):
        code, error = run(*arguments)
        assert (code, "Keras cannot load" in error) == (2, True)
    with pytest.raises((ValueError, TypeError)):
        keras.models.load_model(path)
    assert os.listdir() == [path]


def test_a_lambda_is_not_run(in_empty_folder):
    dangerous_lambda().save("model.keras")
    refused("model.keras")
    keras.models.load_model("model.keras", safe_mode=False)
    assert os.path.exists(MARKER)  # It would have been.


@pytest.mark.parametrize("place", ["layer", "method", "decay", "pattern", "initializer", "model"])
def test_a_lambda_or_a_foreign_object_in_any_place_is_refused(place, sparse_parts):
    plain = json.loads(sparse_parts["config.json"])
    with contextlib.suppress(FileNotFoundError):
        os.remove(MARKER)
    with pytest.warns(UserWarning, match="includes a `lambda`"):
        function = keras.saving.serialize_keras_object(writes_marker)
    assert function["class_name"] == "__lambda__"
    for value in (function, *FOREIGN):
        config = copy.deepcopy(plain)
        inner = config["config"]
        if place == "layer":
            inner["layers"][1] = {**inner["layers"][1], **value}
        elif place == "method":
            inner["method"] = value
        elif place == "decay":
            inner["method"]["config"]["decay"] = value
        elif place == "pattern":
            inner["masked"][0]["pattern"] = value
        elif place == "initializer":
            inner["layers"][1]["config"]["kernel_initializer"] = value
        else:
            config = {**config, **value}
        write("model.keras", sparse_parts, config)
        refused("model.keras")


# Stored results.

STORED = made_up(Settings(method="static", epochs=1))


def compare(*arguments):
    return run("compare", "--methods", "static", "--epochs", "1", "--seeds", "1", *arguments)


@pytest.mark.usefixtures("no_training", "no_pictures")
def test_changed_results_of_runs_are_used_or_refused(tmp_path):
    codes = []

    @examples(40, 2_000)
    @given(result=mutated(STORED))
    def check(result):
        folder = tmp_path / "out" / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        name = Settings(method="static", epochs=1).name
        (folder / f"{name}.json").write_text(json.dumps(result))
        codes.append(compare("--output", "out")[0])

    check()
    assert set(codes) == {0, 2}
    record("mutated results", files=len(codes), refused=codes.count(2))


@pytest.mark.usefixtures("no_training")
@examples(40, 2_000)
@given(
    content=st.one_of(
        st.binary(max_size=100),
        st.text(max_size=50).map(str.encode),
        st.sampled_from(
            [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"\xff\xfe{}", b"null"]
        ),
        VALUES.map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_bytes_for_a_result_are_refused(content):
    os.makedirs("out/runs", exist_ok=True)
    for path in ("out/result.json", f"out/runs/{Settings(method='static', epochs=1).name}.json"):
        with open(path, "wb") as file:
            file.write(content)
    assert compare("--output", "out")[0] == 2
    os.makedirs("run", exist_ok=True)
    with open("run/result.json", "wb") as file:
        file.write(content)
    assert run("train", "--epochs", "1", "--output", "run")[0] == 2


# Arguments.

NUMBERS = ["0", "1", "-1", "2", "0.5", "1e-9", "1e999", "nan", "inf", "1e4", str(10**30), "0x10"]
WORDS = ["", " ", "x", "none", "\u2028", "\ud800", "\x00", "a=b", "=", "(", "[1]", "{}", "..", "--"]
NAMES = [*METHODS, "erk", "uniform", "2:4", "block_4x1", "block_0x1", "digits", "lenet-5", "litert"]
VALUES_OF_ARGUMENTS = st.one_of(st.sampled_from([*NUMBERS, *WORDS, *NAMES]), st.text(max_size=8))
KEYS = ["end_step", "start_step", "decay", "grow_initializer", "scope", "momentum", "batches"]
KEYS += ["gradient_batches", "initial_sparsity", "begin_step", "power", "x", ""]
OPTIONS = st.tuples(st.sampled_from(KEYS), VALUES_OF_ARGUMENTS).map("=".join)
SPECS = st.builds(
    lambda name, option, times: f"{name}({option})@{times}x",
    st.sampled_from([*METHODS, "x", ""]),
    st.one_of(OPTIONS, VALUES_OF_ARGUMENTS),
    st.sampled_from(["1", "0", "0.5", "9" * 400, "x", "1.5"]),
)


def arguments_of(parser_name, more):
    """Lists of arguments of a command, each with some value."""
    parser = cli._parser()._subparsers._group_actions[0].choices[parser_name]
    flags = [flag for action in parser._actions for flag in action.option_strings]
    pairs = st.tuples(st.sampled_from(flags), st.one_of(VALUES_OF_ARGUMENTS, more)).map(list)
    return st.lists(pairs, min_size=1, max_size=3).map(lambda found: [*itertools.chain(*found)])


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("command", ["train", "compare", "report", "export"])
def test_any_arguments_are_taken_or_refused(command, in_empty_folder):
    codes = []

    @examples(40, 2_000)
    @given(arguments=arguments_of(command, st.one_of(OPTIONS, SPECS)))
    def check(arguments):
        codes.append(run(command, *arguments)[0])

    check()
    assert 2 in codes
    record("arguments", command=command, tried=len(codes), refused=codes.count(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--seeds", "1000000"], "--seeds must be from 1 to 10,000"),
        (["compare", "--methods", f"rigl@{'9' * 400}x"], "whole number of epochs"),
        (["train", "--batch-size", str(10**30)], "out-of-range integer"),
        (["train", "--seed", str(10**30)], "Seed must be between"),
        (["train", "--option", "gradient_batches=[1]"], "gradient_batches=[1]"),
        (["train", "--output", "a\0b"], "`folder` must be a path"),
        (["train", "--no-such\noption"], "unrecognized arguments: --no-such option"),
        (["report", "no-such\nfile"], "There is no such file"),
    ],
)
@pytest.mark.usefixtures("no_training")
def test_numbers_and_names_beyond_all_measure_are_refused(arguments, message):
    code, error = run(*arguments)
    assert code == 2
    assert message in error


@pytest.mark.usefixtures("no_training")
@examples(60, 5_000)
@given(arguments=st.lists(st.one_of(VALUES_OF_ARGUMENTS, st.sampled_from(["train", "-x"]))))
def test_any_words_are_refused(arguments):
    assert run(*arguments)[0] in (0, 2)
