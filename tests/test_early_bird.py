"""Early-Bird tickets: when they are drawn, and the search in low precision."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers import FEATURES, compiled, random_data, sparsify
from tf_rigl import lottery, plots

X, Y = random_data(batches=4)
# The scales after each epoch: which of eight channels are the largest four.
LARGEST = [(0, 1, 2, 3), (4, 5, 6, 7), (3, 4, 5, 6), (2, 4, 5, 6), (2, 4, 5, 6), (2, 4, 5, 6)]


def normalized():
    inputs = keras.Input((FEATURES,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(8, name="hidden")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.ReLU()(x)))


class SetScales(keras.callbacks.Callback):
    """Gives the normalisation the scales of `LARGEST` at the end of each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        scales = np.isin(np.arange(8), LARGEST[epoch]) + 0.5
        (gamma,) = (v for v in self.model.weights if v.name == "gamma")
        gamma.assign(scales)


def fit(model, bird, epochs=6):
    return compiled(model).fit(
        X, Y, batch_size=8, epochs=epochs, callbacks=[SetScales(), bird], verbose=0
    )


def expected_distances(epochs):
    """The share of channels in which the largest of two epochs differ."""
    rows = [[len(set(one) ^ set(other)) / 8 for other in LARGEST] for one in LARGEST]
    return np.array(rows)[:epochs, :epochs]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("window", "threshold", "epoch"),
    [(2, 0.1, 4), (3, 0.1, 5), (2, 0.3, 2), (2, 0.25, 4), (3, 0.3, 3), (3, 1.0, 2), (5, 0.1, None)],
)
def test_training_stops_when_masks_no_longer_change(window, threshold, epoch, sparse):
    bird = lottery.EarlyBird(0.5, threshold, window)
    history = fit(sparsify(normalized()) if sparse else normalized(), bird)
    assert bird.epoch == epoch
    epochs = len(history.epoch)
    assert epochs == (len(LARGEST) if epoch is None else epoch + 1)
    for masks, largest in zip(bird.history, LARGEST, strict=False):
        assert tuple(np.flatnonzero(masks["norm"])) == largest
    assert (bird.masks is None) == (epoch is None)
    if epoch is not None:
        assert tuple(np.flatnonzero(bird.masks["norm"])) == LARGEST[epoch]
    np.testing.assert_array_equal(bird.distances(), expected_distances(epochs))


def test_training_may_go_on_with_the_ticket_kept_and_begins_anew():
    bird = lottery.EarlyBird(0.5, 1.0, window=2, stop=False)
    model = normalized()
    for _ in range(2):
        assert len(fit(model, bird).epoch) == len(bird.history) == len(LARGEST)
        assert bird.epoch == 2
        assert tuple(np.flatnonzero(bird.masks["norm"])) == LARGEST[2]


def test_a_ticket_is_removed_for_real_and_trained_on():
    model, bird = normalized(), lottery.EarlyBird(0.5)
    fit(model, bird, epochs=2)
    small = lottery.remove_channels(model, bird.history[-1])
    assert small.get_layer("hidden").units == 4
    compiled(small).fit(X, Y, batch_size=8, verbose=0)


def test_distances_are_over_all_layers():
    one = {"a": np.array([True, False]), "b": np.array([True, True, False])}
    other = {"a": np.array([True, True]), "b": np.array([False, True, True])}
    assert lottery.mask_distance(one, other) == 3 / 5
    assert lottery.EarlyBird(0.5).distances().shape == (0, 0)


def test_the_matrix_is_drawn(tmp_path):
    path = tmp_path / "distances.png"
    plots.draw_mask_distances(expected_distances(6), path, drawn=4)
    assert path.read_bytes().startswith(b"\x89PNG")
    plots.draw_mask_distances(np.zeros((1, 1)), path)
    with pytest.raises(ValueError, match="square matrix"):
        plots.draw_mask_distances(np.zeros((0, 0)), path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prune_fraction": 0.0}, "`prune_fraction` must be above 0"),
        ({"prune_fraction": 1}, "`prune_fraction` must be a number in"),
        ({"threshold": 0}, r"`threshold` must be a number in \(0, 1\]"),
        ({"threshold": True}, "`threshold` must be a number"),
        ({"window": 1}, "`window` must be an integer of at least 2"),
        ({"least": -1}, "`least` must be an integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        lottery.EarlyBird(**{"prune_fraction": 0.5, **arguments})


def test_a_model_without_scales_is_refused_before_it_is_trained():
    model = compiled(keras.Sequential([keras.Input((FEATURES,)), layers.Dense(3)]))
    before = model.get_weights()
    with pytest.raises(ValueError, match="must have `BatchNormalization`"):
        model.fit(X, Y, callbacks=[lottery.EarlyBird(0.5)], verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


# Low precision.


def convolutional():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.SeparableConv2D(5, 3, name="separable")(layers.DepthwiseConv2D(1, name="depth")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def rounded(kernel):
    step = np.abs(kernel).max() / np.float32(127)
    return np.round(kernel / step) * step


def test_kernels_are_rounded_to_8_bits_in_forward_passes():
    model = convolutional()
    search = lottery.low_precision(model, "int8")
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")
    for one, other in zip(model.get_weights(), search.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    found = search(images)
    assert np.abs(found - model(images)).max() > 1e-4
    for weight in model.weights:
        if weight.name.endswith("kernel"):
            assert len(np.unique(rounded(weight.numpy()))) <= 255
            weight.assign(rounded(weight.numpy()))
    np.testing.assert_allclose(found, model(images), atol=1e-5)
    assert lottery.channel_masks(search, 0.5).keys() == {"norm"}


def test_gradients_pass_rounding_as_if_it_were_not_there():
    model = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(3, name="only")])
    search = lottery.low_precision(model, "int8")
    search.compile(keras.optimizers.SGD(1.0), "mse")
    kernel, bias = model.get_weights()
    target = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    search.train_on_batch(X[:8], target)
    error = 2 * (X[:8] @ rounded(kernel) + bias - target) / target.size
    np.testing.assert_allclose(search.get_weights()[0], kernel - X[:8].T @ error, atol=1e-5)
    np.testing.assert_allclose(search.get_weights()[1], bias - error.sum(axis=0), atol=1e-5)


def test_a_kernel_of_zeros_stays_so():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_initializer="zeros")])
    outputs = lottery.low_precision(model, "int8")(np.ones((2, 4), "float32"))
    np.testing.assert_array_equal(outputs, np.zeros((2, 3)))


def test_bfloat16_computes_low_on_weights_kept_in_float32():
    search = lottery.low_precision(normalized(), "bfloat16")
    assert {weight.dtype for weight in search.weights} == {"float32"}
    assert search.get_layer("hidden").compute_dtype == "bfloat16"
    assert search.output.dtype == "float32"


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_search_in_low_precision_is_trained_saved_and_gives_its_weights_back(precision, tmp_path):
    model, bird = normalized(), lottery.EarlyBird(0.5)
    search = lottery.low_precision(lottery.with_scale_penalty(model), precision)
    assert search.losses
    fit(search, bird, epochs=2)
    search.save(tmp_path / "search.keras")
    loaded = keras.models.load_model(tmp_path / "search.keras")
    np.testing.assert_array_equal(loaded(X), search(X))
    model.set_weights(search.get_weights())
    assert lottery.remove_channels(model, bird.history[-1]).get_layer("hidden").units == 4


def test_other_precisions_and_models_are_refused():
    with pytest.raises(ValueError, match="`precision` must be one of 'bfloat16', 'int8'"):
        lottery.low_precision(normalized(), "int4")
    with pytest.raises(ValueError, match="`model` must be dense"):
        lottery.low_precision(sparsify(normalized()), "int8")
    with pytest.raises(ValueError, match="`model` must be a built functional"):
        lottery.low_precision(keras.Sequential([layers.Dense(3)]), "int8")
