"""Copies of models: with their class, weights, vocabularies and statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    CLASSES,
    FEATURES,
    check_invariants,
    compiled,
    mlp,
    random_data,
    sparsify,
)
from tf_rigl.convert import copies


class Constructed(keras.Model):
    """A functional model with a constructor of its own, as the backbones of KerasHub."""

    def __init__(self, units=8, rate=0.5, **kwargs):
        self.hidden = keras.layers.Dense(units, name="hidden")
        self.head = keras.layers.Dense(CLASSES, name="head")
        inputs = keras.Input((FEATURES,))
        super().__init__(inputs, self.head(self.hidden(inputs)), **kwargs)
        self.units, self.rate = units, rate

    def train_step(self, data):
        return super().train_step(data)

    def get_config(self):
        return {"name": self.name, "units": self.units}


class Stack(keras.Sequential):
    """A Sequential model with a step of its own."""

    def train_step(self, data):
        return super().train_step(data)


class Graph(keras.Model):
    """A graph of layers of a class with a step and a number of its own."""

    def __init__(self, *args, temperature=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = temperature

    def train_step(self, data):
        return super().train_step(data)


def graph(**kwargs):
    dense = mlp()
    return Graph(dense.inputs, dense.outputs, **kwargs)


MODELS = {
    "constructed": Constructed,
    "sequential": lambda: Stack([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)]),
    "graph": lambda: graph(temperature=4.0),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_class_is_kept_and_with_it_the_way_of_training(name):
    model = MODELS[name]()
    sparse = sparsify(model)  # A model that is changed in place would raise here.
    assert type(sparse.model) is type(model)
    assert sparse.model is not model
    assert type(tf_rigl.strip(sparse)) is type(model)


class Backbone(Constructed):
    """Without a way of training of its own."""

    train_step = keras.Model.train_step

    def enlarged(self):
        return self.units + 1


@pytest.mark.parametrize("saved", [False, True])
def test_the_class_of_a_graph_is_kept(saved, tmp_path):
    model, (x, y) = Backbone(name="backbone"), random_data()
    sparse = compiled(sparsify(model), run_eagerly=True)
    sparse.fit(x, y, verbose=0)
    check_invariants(sparse)
    assert sparse.enlarged() == 9
    assert list(sparse.masks) == ["hidden/kernel", "head/kernel"]
    outputs = sparse(x)
    if saved:
        sparse.save(tmp_path / "model.keras")
        with keras.saving.custom_object_scope({"Backbone": Backbone}):
            sparse = keras.models.load_model(tmp_path / "model.keras")
    plain = tf_rigl.strip(sparse)
    assert type(plain) is Backbone
    np.testing.assert_array_equal(plain(x), outputs)
    assert tf_rigl.report(sparse).flops > 0


def test_numbers_that_the_configuration_lacks_are_kept():
    assert sparsify(graph(temperature=4.0)).temperature == 4.0
    model = Constructed(units=4)
    model.rate = 0.25
    sparse = sparsify(model)
    assert (sparse.units, sparse.rate) == (4, 0.25)
    sparse.rate = 0.75
    assert sparse.model.rate == 0.75
    assert not sparse.compiled


class Unclonable(Constructed):
    def __init__(self, layer):
        super().__init__()
        self.extra = layer

    def get_config(self):
        return {"name": self.name}


@pytest.mark.filterwarnings("default:Keras cannot clone")
def test_a_warning_names_the_cause():
    model = Unclonable(keras.layers.Dense(3))
    cause = r"in place\..*`from_config` of Unclonable.*argument 'name'"
    with pytest.warns(UserWarning, match=cause):
        sparse = sparsify(model)
    assert sparse.model is model  # Its layers alone would be trained in another way.


@pytest.mark.filterwarnings("default:Keras cannot clone")
def test_a_copy_of_another_type_is_no_copy():
    model = Constructed()  # Its configuration lacks the type.
    keras.config.set_dtype_policy("float16")
    try:
        with pytest.warns(UserWarning, match=r"in place\..* type float32 has .* type float16"):
            sparsify(model)
    finally:
        keras.config.set_dtype_policy("float32")


def test_statistics_of_the_data_are_copied():
    x, _ = random_data()
    x = 3 * x + 5
    norm = keras.layers.Normalization()
    norm.adapt(x)
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(norm(inputs)))
    sparse = sparsify(model, "magnitude")  # Nothing is masked yet.
    np.testing.assert_array_equal(sparse(x), model(x))
    np.testing.assert_array_equal(tf_rigl.strip(sparse)(x), model(x))
    fresh = copies.fresh_copy(model)
    np.testing.assert_array_equal(fresh.layers[1](x), norm(x))
    assert (fresh.layers[2].kernel.numpy() != model.layers[2].kernel.numpy()).any()


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("make", [keras.layers.StringLookup, keras.layers.TextVectorization])
def test_vocabularies_are_copied(make, adapted):
    words = tf.constant([["red"], ["green"], ["blue"], ["green"]])
    lookup = make()
    if adapted:
        lookup.adapt(words)
    inputs = keras.Input((1,), dtype="string")
    x = keras.layers.Embedding(8, 4)(lookup(inputs))
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
    sparse = sparsify(model, "magnitude")
    if adapted:
        np.testing.assert_array_equal(sparse(words), model(words))
    else:
        sparse.layers[1].adapt(words)
        assert sparse.layers[1].vocabulary_size() > lookup.vocabulary_size()


def test_classes_that_are_not_registered_are_copied_within_other_models():
    class Scale(keras.layers.Dense):
        pass

    nested = keras.Input((FEATURES,))
    nested = keras.Model(nested, Scale(8, name="scale")(nested))
    inputs = keras.Input((FEATURES,))
    sparse = sparsify(keras.Model(inputs, keras.layers.Dense(CLASSES)(nested(inputs))))
    assert type(sparse.layers[1].layers[1]) is Scale


def test_a_layer_that_a_nested_model_shares_stays_shared():
    """Called before and after the nested model, and in it. (Keras cannot load its file.)"""
    shared = keras.layers.Dense(FEATURES, name="shared")
    nested = keras.Input((FEATURES,))
    nested = keras.Model(nested, shared(nested), name="nested")
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, shared(nested(shared(inputs))))
    x, _ = random_data()
    sparse = compiled(sparsify(model, "magnitude"))
    assert sparse.get_layer("nested").get_layer("shared") is sparse.get_layer("shared")
    assert sparse.get_layer("shared") is not shared
    assert len(sparse.masked_weights) == 1
    np.testing.assert_array_equal(sparse(x), model(x))
    np.testing.assert_array_equal(tf_rigl.strip(sparse)(x), model(x))
