"""Settings, and what a run leaves behind."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_rigl import data, methods
from tf_rigl._base import files
from tf_rigl._base.arguments import constructor_arguments
from tf_rigl.experiments import runs
from tf_rigl.experiments.settings import Settings, _in_a_name, method_arguments


def test_names_of_plain_settings_are_short():
    assert Settings().name == "digits-lenet-300-100-rigl-0.9-erk-seed0"
    assert Settings(method="dense", seed=2).name == "digits-lenet-300-100-dense-seed2"
    changed = Settings(method="set", epochs=3, drop_fraction=0.5, update_interval=7)
    assert changed.name == (
        "digits-lenet-300-100-set-0.9-erk-epochs3-dropfraction0.5-updateinterval7-seed0"
    )


def test_the_drop_fraction_is_that_of_the_method():
    assert (Settings().drop_fraction, Settings(method="static").drop_fraction) == (0.3, 0.3)
    granet = Settings(method="granet")
    assert granet == Settings(method="granet", drop_fraction=0.5)
    assert granet.name == "digits-lenet-300-100-granet-0.9-erk-seed0"
    assert granet.make_method(100).drop_fraction == 0.5
    assert "dropfraction0.3" in Settings(method="granet", drop_fraction=0.3).name


def test_options_are_in_the_name_in_order():
    one = Settings(method="rigl", options={"end_step": 0.5, "decay": "linear"})
    other = Settings(method="rigl", options={"decay": "linear", "end_step": 0.5})
    assert one.name == "digits-lenet-300-100-rigl-0.9-erk-decay=linear-end_step=0.5-seed0"
    assert one == other
    assert hash(one) == hash(other)
    assert one.name == other.name
    assert one != Settings(method="rigl")


NAMED = st.none() | st.booleans() | st.integers() | st.text(max_size=10)


@settings(max_examples=100, deadline=None)
@given(NAMED, NAMED)
def test_options_that_differ_are_named_differently(one, other):
    names = [_in_a_name(value) for value in (one, other)]
    assert (names[0] == names[1]) == (json.dumps(one) == json.dumps(other))
    assert not set("/\\ \n\0") & set(names[0])


@pytest.mark.parametrize(
    "given",
    [
        Settings(),
        Settings(method="dense", sparsity=0),
        Settings(method="snip", options={"scope": "global"}, learning_rate=1),
        Settings(method="rigl", options={"gradient_batches": 4}),
    ],
)
def test_settings_survive_json(given):
    again = Settings(**json.loads(json.dumps(dataclasses.asdict(given))))
    assert again == given
    assert again.name == given.name


def test_numbers_that_are_equal_have_one_name():
    assert Settings(learning_rate=1, drop_fraction=1).name == (
        Settings(learning_rate=1.0, drop_fraction=1.0).name
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"deca": "linear"}}, "Did you mean 'decay'"),
        ({"method": "static", "options": {"decay": "linear"}}, "'static' are: none"),
        ({"method": "dense", "options": {"decay": "linear"}}, "'dense' are: none"),
        ({"options": {"drop_fraction": 0.5}}, "Received: drop_fraction=0.5"),
        ({"options": {"decay": "straight"}}, "decay='straight'"),
        ({"options": {"decay": np.cos}}, "values that JSON can hold"),
        ({"options": {"end_step": float("nan")}}, "values that JSON can hold"),
        ({"options": ["decay"]}, "must be a dict"),
        ({"method": "magnitude", "options": {"schedule": 3}}, "'power'"),
        ({"method": "magnitude", "update_interval": 0}, "Received"),
        ({"dataset": 3}, "dataset=3"),
        ({"distribution": None}, "distribution=None"),
        ({"distribution": "erq"}, "Did you mean 'erk'"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"drop_fraction": True}, "drop_fraction=True"),
        ({"drop_fraction": 1.5, "method": "dense"}, "drop_fraction=1.5"),
        ({"update_interval": 2.5}, "update_interval=2.5"),
        ({"model": ["lenet-5"]}, "model=['lenet-5']"),
        ({"pattern": "block_4"}, "'block_4x1'"),
        ({"pattern": "block_0x1"}, "Received"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match="Received") as error:
        Settings(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_method_is_made_by_its_signature(name):
    method = Settings(method=name, drop_fraction=0.4).make_method(steps=1000)
    assert type(method) is methods.NAMES[name]
    if "drop_fraction" in method.get_config():
        assert (method.drop_fraction, method.update_interval) == (0.4, 20)
    assert set(method_arguments(name)) <= set(
        method_arguments("rigl")
        + method_arguments("snfs")
        + method_arguments("snip")
        + method_arguments("magnitude")
        + method_arguments("edge_popup")
        + ["initial_sparsity", "prune_end", "gamma", "margins", "gradient_weight", "soft"]
        + ["warm_up", "phase", "last_dense", "decay"]
    )


def test_options_reach_the_method():
    method = Settings(method="snip", options={"scope": "global"}).make_method(steps=10)
    assert method.scope == "global"
    options = {"power": 1, "end_step": 0.5, "scope": "global"}
    method = Settings(method="magnitude", options=options, update_interval=7).make_method(10)
    assert (method.schedule.power, method.schedule.end_step) == (1, 0.5)
    assert (method.schedule.frequency, method.scope) == (7, "global")


def test_arguments_behind_keywords_are_those_of_the_base():
    class Longer(methods.RigL):
        def __init__(self, *args, patience=1, **kwargs):
            super().__init__(*args, **kwargs)

    names = constructor_arguments(Longer)
    assert set(names) == {"patience", *method_arguments("rigl")}


@pytest.mark.parametrize("method", ["dense", "rigl", "magnitude"])
def test_a_run_says_what_it_cost(method):
    settings = Settings(method=method, epochs=3, batch_size=512)
    model, result = runs.run(settings, verbose=0)
    assert json.loads(files.to_json(result)) == json.loads(json.dumps(result))
    report = result["report"]
    assert report["dense_params"] == result["parameters"] == 64 * 300 + 300 * 101 + 100 * 11 + 10
    assert report["params"] == result["active_parameters"]
    assert report["dense_flops"] == 2 * (64 * 300 + 300 * 100 + 100 * 10)
    active = sum(mask.sum() for mask in model.masks.values()) if method != "dense" else 50_200
    assert report["flops"] == 2 * active
    assert result["train_flops_total"] == result["train_flops"] * result["steps"] * 512
    assert "of dense" in runs.summary(result)
    if method == "dense":
        assert result["train_flops"] == 3 * report["dense_flops"]
        assert "input_connections" not in result
        return
    assert 3 * report["flops"] < result["train_flops"] < 3 * report["dense_flops"]
    found = result["input_connections"]
    assert found["shape"] == [8, 8, 1]
    assert found["epochs"] == [0, 1, 2, 3]
    first = model.masks["hidden_1/kernel"]
    assert found["counts"][-1] == first.sum(axis=1).tolist()
    if method == "magnitude":
        assert found["counts"][0] == [300] * 64
    else:
        assert {sum(counts) for counts in found["counts"]} == {int(first.sum())}
        assert found["counts"][0] != found["counts"][-1]


def test_connections_are_counted_about_six_times():
    counted = runs.InputConnections((2, 2, 1), epochs=60)
    assert sorted(counted._due) == [0, 10, 20, 30, 40, 50, 60]


def test_a_convolution_has_no_input_connections():
    settings = Settings(model="small-cnn", method="static", epochs=1, batch_size=512)
    dataset = data.load("digits", 512)
    counted = runs.InputConnections(dataset.input_shape, epochs=1)
    counted.set_model(runs.build(settings, dataset))
    counted.on_train_begin()
    counted.on_epoch_end(0)
    assert counted.result is None


def test_lists_of_numbers_take_a_line():
    value = {"a": [1, -2.5, 3e-7], "b": ["[\n1]", []], "c": [[1, 2], [3]], "d": [None]}
    text = files.to_json(value)
    assert json.loads(text) == value
    assert '"a": [1, -2.5, 3e-07]' in text
    assert "[1, 2]" in text
