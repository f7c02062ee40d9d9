"""Which weights are found in which layers, and under what path."""

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import FEATURES, LAYER_CASES, Projection, layer_model, mlp, sparsify
from tf_rigl import maskable


def paths(layer, **kwargs):
    return [m.path for m in maskable.find(layer, **kwargs)]


@pytest.mark.parametrize("case", LAYER_CASES)
def test_finds_kernels_and_nothing_else(case):
    model, _, _, expected = layer_model(case)
    assert paths(model, include_self=False) == [*expected, "head/kernel"]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.DepthwiseConv1D(3), (5, 4)),
        (keras.layers.DepthwiseConv2D(3), (5, 5, 4)),
        (keras.layers.BatchNormalization(), (4,)),
        (keras.layers.LayerNormalization(), (4,)),
        (keras.layers.GroupNormalization(2), (4,)),
        (keras.layers.UnitNormalization(), (4,)),
        (keras.layers.PReLU(), (4,)),
        (keras.layers.Dropout(0.5), (4,)),
        (keras.layers.ReLU(), (4,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else "",
)
def test_finds_nothing_in(layer, shape):
    layer.build((None, *shape))
    assert paths(layer) == []


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutional_recurrent_layers(rank):
    layer = getattr(keras.layers, f"ConvLSTM{rank}D")(2, 3, name="film")
    layer.build((None, 3, *(4,) * rank, 2))
    cell = "film/conv_lstm_cell"
    assert paths(layer) == [f"{cell}/kernel", f"{cell}/recurrent_kernel"]


@pytest.mark.skipif(not hasattr(keras.layers, "ReversibleEmbedding"), reason="this Keras has none")
@pytest.mark.parametrize("tied", [True, False])
def test_the_way_back_of_an_embedding(tied):
    tokens, layer = keras.Input((10,), dtype="int32"), keras.layers.ReversibleEmbedding(9, 6, tied)
    layer.name = "tokens"
    model = keras.Model(tokens, layer(layer(tokens), reverse=True))
    found = {"tokens/embeddings": 0 if not tied else 2 * 10 * 9 * 6}
    if not tied:
        found["tokens/reverse_embeddings"] = 2 * 10 * 9 * 6
    assert paths(model, include_self=False) == list(found)
    assert {row.name: row.flops for row in tf_rigl.report(model).layers} == found
    sparse = sparsify(model)
    assert {row.name: row.flops for row in tf_rigl.report(sparse).layers} == {
        path: flops / 2 for path, flops in found.items()
    }


def test_path_begins_with_the_layer_itself_unless_told_otherwise():
    assert paths(mlp("net")) == ["net/hidden/kernel", "net/head/kernel"]
    assert paths(mlp("net"), include_self=False) == ["hidden/kernel", "head/kernel"]


def test_layers_on_the_way_are_named():
    inner = mlp("inner")
    inputs = keras.Input((FEATURES,))
    found = maskable.find(keras.Model(inputs, inner(inputs)), include_self=False)
    assert [m.layers for m in found] == [("inner", "hidden"), ("inner", "head")]


def test_shared_layer_is_found_once():
    layer = keras.layers.Dense(FEATURES, name="shared")
    inputs = keras.Input((FEATURES,))
    assert paths(keras.Model(inputs, layer(layer(inputs))), include_self=False) == ["shared/kernel"]


def test_equal_names_get_unique_paths():
    """Two layers of one name can stand in one composite layer."""

    class Composite(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="composite")
            self.parts = [keras.layers.Dense(2, name="part") for _ in range(3)]

        def call(self, x):
            return sum(part(x) for part in self.parts)

    layer = Composite()
    layer(np.ones((1, 4), "float32"))
    names = ["composite/part/kernel", "composite/part/kernel_1", "composite/part/kernel_2"]
    assert paths(layer) == names


def test_unbuilt_layer_has_nothing_yet():
    assert paths(keras.layers.Dense(3)) == []


def test_subclass_of_a_known_layer_counts_as_that_layer():
    class MyDense(keras.layers.Dense):
        pass

    layer = MyDense(3, name="mine")
    layer.build((None, 4))
    assert paths(layer) == ["mine/kernel"]


def test_get_prunable_weights_wins_over_the_class():
    class Shy(keras.layers.Dense):
        def get_prunable_weights(self):
            return []

    layer = Shy(3)
    layer.build((None, 4))
    assert paths(layer) == []


def test_get_prunable_weights_must_return_variables():
    class Wrong(Projection):
        def get_prunable_weights(self):
            return [np.ones(3)]

    layer = Wrong(3, name="wrong")
    layer.build((None, 4))
    with pytest.raises(ValueError, match=r"get_prunable_weights.*Received: .*'wrong'"):
        maskable.find(layer)


@pytest.mark.parametrize("change", ["lora", "int8"])
def test_kernels_that_are_no_float_variable_are_left_out(change):
    layer = keras.layers.Dense(8)
    layer.build((None, 4))
    if change == "lora":
        layer.enable_lora(2)
    else:
        layer.quantize("int8")
    assert paths(layer) == []
