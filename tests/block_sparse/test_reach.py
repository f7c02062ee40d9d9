"""`compute="sparse"` says if it reaches little of a model."""

import warnings

import keras
import pytest
from keras import layers

import tf_rigl
from tests.helpers import Feed


def cnn(kernel_size, head=128):
    """Most of its products are in the convolutions, most of its weights in "wide"."""
    return keras.Sequential(
        [
            keras.Input((16, 16, 32)),
            layers.Conv2D(32, kernel_size, padding="same", activation="relu", name="first"),
            layers.Conv2D(64, kernel_size, padding="same", activation="relu", name="second"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(head, activation="relu", name="wide"),
            layers.Dense(head, name="head"),
        ]
    )


def made(model, **kwargs):
    """A sparse model, and the warnings about its layers."""
    arguments = {"sparsity": 0.75, "distribution": "uniform_all", "pattern": "block_8x8", **kwargs}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparse = tf_rigl.sparsify(model, "static", seed=0, compute="sparse", **arguments)
    return sparse, [str(each.message) for each in caught if each.category is UserWarning]


def test_a_network_of_convolutions_that_is_not_reached_is_told():
    """By multiplications, not by weights; the figure is that of the report."""
    sparse, (text,) = made(cnn(3))
    report = tf_rigl.report(sparse)
    assert sum(row.params for row in report.layers if row.compute == "sparse") > report.params / 2
    left = sum(row.flops if row.compute == "sparse" else row.dense_flops for row in report.layers)
    assert left / report.dense_flops > 0.9
    figure = f"about {left / report.dense_flops:.3g} of its multiplications are left, 0.25 were"
    assert figure in text
    assert "second/kernel (blocks of single taps; pattern 'channels_8x8' has none), first/" in text
    assert made(cnn(3), pattern="channels_8x8")[1] == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": cnn(1)},
        {"model": cnn(3), "distribution": {"wide": 0.75, "head": 0.75}},  # Dense as asked for.
        {"model": cnn(3), "exclude": ["first", "second"]},
        {"model": keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Dense(64)])},
    ],
)
def test_nothing_is_said_where_it_reaches_what_was_asked_for(arguments):
    assert made(**arguments)[1] == []


def test_projections_of_attention_count_once_for_each_position():
    inputs = keras.Input((32, 16))
    x = layers.MultiHeadAttention(2, 8, name="attention")(inputs, inputs)
    x = layers.Conv1D(16, 5, padding="same", name="conv")(x)
    model = keras.Model(inputs, layers.Dense(512, name="head")(layers.Flatten()(x)))
    assert made(model)[1] == []  # The head holds most of the multiplications.
    assert len(made(keras.Model(inputs, x), exclude=["attention"])[1]) == 1  # No layer is reached.


def test_layers_that_a_copy_names_anew_keep_their_targets():
    keras.layers.Dense(1)  # Takes a name.
    inputs = keras.Input((64,))
    x = keras.layers.Dense(64, name="wide")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(Feed(name="feed")(x)))
    first, second = (layer.name for layer in (model.layers[2].first, model.layers[2].second))
    fixed = {f"feed/{first}": 0.25, f"feed/{second}": 0.75, "head": 0.0}
    sparse, _ = made(model, sparsity=0.5, distribution="erk", pattern="block_16x16", fixed=fixed)
    feed = next(layer for layer in sparse.layers if layer.name == "feed")
    targets = {id(item.weight): item.target_sparsity for item in sparse.masked_weights}
    assert [targets[id(each.kernel)] for each in (feed.first, feed.second)] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("method", "rows", "warns"),
    [("rigl", 32, True), ("rigl", 16, False), ("static", 32, False),
     (tf_rigl.methods.SET(grow_initializer="glorot_normal"), 32, False)],
)  # fmt: skip
def test_columns_of_a_single_block_that_may_move_are_told(method, rows, warns):
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((128,)), *layers])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tf_rigl.sparsify(
            model, method, 0.75, "uniform_all", f"block_{rows}x32", exclude=["dense_1"], seed=0,
            compute="sparse",
        )  # fmt: skip
    assert any("single block in 'dense/kernel'" in str(each.message) for each in caught) == warns


@pytest.mark.parametrize("compute", ["masked", "sparse"])
def test_blocks_too_large_for_the_sparsity_are_told(compute):
    sizes = [keras.layers.Dense(size) for size in (128, 128, 10)]
    model = keras.Sequential([keras.Input((64,)), *sizes])
    with pytest.warns(UserWarning, match=r"density differs .* times the requested number"):
        sparse = tf_rigl.sparsify(
            model, "rigl", 0.9, "uniform_all", "block_64x64", seed=0, compute=compute
        )
    assert sparse.sparsity < 0.7
