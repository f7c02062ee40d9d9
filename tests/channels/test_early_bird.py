"""Early-Bird tickets: when they are drawn, and the search in low precision."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers import FEATURES, compiled, random_data, sparsify
from tf_rigl import lottery, models, plots

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


@pytest.mark.parametrize(
    ("window", "threshold", "epoch", "sparse"),
    [
        (2, 0.1, 4, False),
        (3, 0.1, 5, False),
        (2, 0.3, 2, False),
        (2, 0.25, 4, False),
        (3, 0.3, 3, False),
        (3, 0.3, 3, True),
        (3, 1.0, 2, False),
        (5, 0.1, None, False),
        (5, 0.1, None, True),
    ],
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


def test_epochs_are_those_of_a_training_that_goes_on(tmp_path, monkeypatch):
    model, bird = normalized(), lottery.EarlyBird(0.5, 1.0, window=2, stop=False)
    compiled(model, run_eagerly=True)
    model.fit(X[:8], Y[:8], initial_epoch=10, epochs=13, callbacks=[bird], verbose=0)
    assert (bird.first_epoch, bird.epoch, len(bird.history)) == (10, 11, 3)
    drawn = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    arguments = {"drawn": bird.epoch, "first": bird.first_epoch}
    plots.draw_mask_distances(bird.distances(), tmp_path / "distances.png", **arguments)
    axes = drawn[0].axes[0]
    assert axes.images[0].get_extent() == [10.5, 13.5, 13.5, 10.5]
    assert (axes.get_xlim(), axes.get_ylim()) == ((10.5, 13.5), (13.5, 10.5))
    assert [line.get_xdata()[0] for line in axes.lines][1] == 12
    model.fit(X[:8], Y[:8], callbacks=[bird], verbose=0)
    assert bird.first_epoch == 0


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


def test_a_training_without_a_ticket_says_so():
    model = lottery.with_scale_penalty(models.small_vgg((8, 8, 1), 3))
    model.compile("sgd", "mse")
    bird = lottery.EarlyBird(0.5)
    with pytest.warns(UserWarning, match="No Early-Bird ticket was found in 1 epochs: masks of 5"):
        model.fit(np.ones((2, 8, 8, 1)), np.ones((2, 3)), verbose=0, callbacks=[bird])
    assert bird.masks is None


def test_a_copy_of_rounded_kernels_is_not_cut():
    model = models.small_vgg((8, 8, 1), 3)
    copy = lottery.low_precision(model, "int8")
    masks = lottery.channel_masks(copy, 0.5)
    with pytest.raises(ValueError, match="must not be a `low_precision` copy in 'int8'"):
        lottery.remove_channels(copy, masks)
    assert lottery.remove_channels(model, masks).count_params() < model.count_params() / 2


def test_a_kernel_of_zeros_stays_so():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_initializer="zeros")])
    outputs = lottery.low_precision(model, "int8")(np.ones((2, 4), "float32"))
    np.testing.assert_array_equal(outputs, np.zeros((2, 3)))


@keras.saving.register_keras_serializable(package="tests")
class Enclosing(layers.Layer):
    """A layer that holds others, and does not say of which type."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, name="held")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def test_kernels_inside_of_other_layers_are_not_rounded_and_named():
    model = keras.Sequential(
        [
            keras.Input((5, 4)),
            layers.TimeDistributed(layers.Dense(4, name="each"), name="times"),
            Enclosing(name="block"),
            keras.Sequential([keras.Input((5, 4)), layers.Dense(2, name="head")], name="inner"),
        ]
    )
    with pytest.warns(UserWarning, match="kernels of times/each, block/held are not") as caught:
        search = lottery.low_precision(model, "int8")
    assert len(caught) == 1
    held = [type(each).__name__ for each in search._flatten_layers()]
    assert held.count("RoundedKernels") == 1
    data = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    kernel = model.get_layer("inner").get_layer("head").kernel
    kernel.assign(rounded(kernel.numpy()))
    np.testing.assert_allclose(search(data), model(data), atol=1e-5)


def test_rounding_keeps_masks_penalties_and_types(tmp_path):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 4, mask_zero=True)(inputs)
    x = layers.Dense(4, activity_regularizer="l2", bias_initializer="ones", name="first")(x)
    x = layers.Dense(4, dtype="mixed_bfloat16", name="low")(x)
    x = layers.GlobalAveragePooling1D(dtype="float64")(x)
    model = keras.Model(inputs, layers.Dense(2, dtype="float64", name="head")(x))
    search = lottery.low_precision(model, "int8")
    search.save(tmp_path / "search.keras")
    loaded = keras.models.load_model(tmp_path / "search.keras")
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(rounded(layer.kernel.numpy()))
    data = np.array([[1, 2, 3, 0, 0, 0], [4, 0, 0, 0, 0, 0]])
    expected, losses = model(data), model.losses
    for each in (search, loaded):
        found = each(data)
        assert found.dtype == "float64"
        np.testing.assert_allclose(found, expected, atol=1e-2)  # That of bfloat16.
        np.testing.assert_allclose(each.losses, losses, rtol=1e-5)
        assert len(each.losses) == 1
        assert each.get_layer("low").compute_dtype == "bfloat16"


def test_bfloat16_computes_low_on_weights_kept_in_float32():
    search = lottery.low_precision(normalized(), "bfloat16")
    assert {weight.dtype for weight in search.weights} == {"float32"}
    assert search.get_layer("hidden").compute_dtype == "bfloat16"
    assert search.output.dtype == "float32"


def headed(head):
    """The float32 layers of the search in a model that ends with another one."""
    inputs = keras.Input((FEATURES,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(8, name="hidden")(inputs))
    search = lottery.low_precision(keras.Model(inputs, head(x)), "bfloat16")
    assert {tensor.dtype for tensor in search.outputs} == {"float32"}
    found = [each for each in search._flatten_layers() if each.compute_dtype == "float32"]
    return {e.name for e in found if not isinstance(e, (keras.Model, layers.InputLayer))}


def test_the_layers_that_outputs_come_from_stay_in_float32_wherever_they_are():
    inputs = keras.Input((8,))
    first, second = (layers.Dense(2, name=name)(inputs) for name in ("one", "two"))
    both = keras.Model(inputs, [first, layers.Dense(3, name="three")(second)])
    stack = [keras.Input((8,)), layers.Dense(4, name="before"), layers.Dense(2, name="logits")]
    assert headed(keras.Sequential(stack)) == {"logits"}
    assert headed(both) == {"one", "three"}
    assert headed(lambda x: both(x)[1]) == {"three"}
    assert headed(lambda x: keras.ops.softmax(layers.Dense(2, name="last")(x))) == {"last"}


def test_layers_inside_of_others_compute_low_where_configurations_say_so():
    x = inputs = keras.Input((5, 4))
    x = layers.TimeDistributed(layers.Dense(4), name="times")(x)
    x = layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(2, return_sequences=True), name="both")(
        Enclosing(name="b")(x)
    )
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    search = lottery.low_precision(model, "bfloat16")
    for layer in search.layers[1:]:
        low = "float32" if layer.name in ("b", "head") else "bfloat16"
        assert {each.compute_dtype for each in layer._flatten_layers()} == {low}, layer.name
    assert {weight.dtype for weight in search.weights} == {"float32"}
    data = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    found, expected = search(data), model(data)
    assert (found != expected).numpy().any()
    np.testing.assert_allclose(found, expected, atol=0.05)


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
