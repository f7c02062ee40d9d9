"""Names are those of the user's model, whatever a copy calls its inner layers."""

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import Feed


class Wrapped(keras.Model):
    """A model with a `call` of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.feed, self.head = Feed(name="feed"), keras.layers.Dense(64)

    def call(self, x):
        return self.head(self.feed(x))


def graph():
    inputs = keras.Input((64,))
    x = Feed(name="feed")(inputs)
    x = keras.layers.Dense(64)(x)
    return keras.Model(inputs, keras.layers.Dense(64)(x))


def subclassed():
    model = Wrapped()
    model(np.zeros((1, 64)))
    return model


def name_of(model):
    feed = next(layer for layer in model.layers if layer.name == "feed")
    return feed.second.name


MODELS = pytest.mark.parametrize("make", [graph, subclassed])


@MODELS
@pytest.mark.parametrize("argument", ["exclude", "fixed", "distribution"])
def test_arguments_take_the_names_that_the_model_has(make, argument):
    model = make()
    name = name_of(model)
    given = {"exclude": [name], "fixed": {name: 0.0}, "distribution": {name: 0.75}}[argument]
    sparse = tf_rigl.sparsify(model, sparsity=0.5, **{argument: given})
    targets = {item.path: item.target_sparsity for item in sparse.masked_weights}
    expected = {"exclude": None, "fixed": 0.0, "distribution": 0.75}[argument]
    assert targets.get(f"feed/{name}/kernel") == expected
    assert argument == "distribution" or sum(target > 0 for target in targets.values()) >= 2


def test_a_name_that_a_copy_gives_to_another_layer_is_not_taken_for_it(tmp_path):
    graph().save(tmp_path / "model.keras")
    keras.backend.clear_session()
    model = keras.models.load_model(tmp_path / "model.keras")  # Names go on where they began.
    for layer in model.layers[2:]:
        sparse = tf_rigl.sparsify(model, sparsity=0.5, exclude=[layer.name])
        assert len(sparse.masked_weights) == 3
        masked = {item.path for item in sparse.masked_weights}
        assert f"{layer.name}/kernel" not in masked


def test_compute_sparse_takes_them_too():
    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(64)(Feed(name="feed")(inputs)))
    fixed = {name_of(model): 0.75}
    sparse = tf_rigl.sparsify(
        model, sparsity=0.5, pattern="block_16x16", compute="sparse", fixed=fixed
    )
    feed = next(layer for layer in sparse.layers if layer.name == "feed")
    targets = {id(item.weight): item.target_sparsity for item in sparse.masked_weights}
    assert targets[id(feed.second.kernel)] == 0.75
    assert targets[id(feed.first.kernel)] != 0.75


@MODELS
def test_tickets_are_found(make):
    def fit(sparse):
        sparse.compile("sgd", "mse")
        return sparse.fit(np.ones((32, 64)), np.zeros((32, 64)), verbose=0)

    model = make()
    tickets = tf_rigl.lottery.find_ticket(model, fit, rounds=2, rewind_step=1)
    assert f"feed/{name_of(model)}/kernel" in tickets[-1].masks
    assert tickets[-1].model(model).sparsity == pytest.approx(0.36, abs=0.01)
