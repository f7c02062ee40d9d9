"""Initial weights scaled to the inputs that each unit has under its mask."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tf_rigl

LAYERS = {
    "Dense": lambda i: (L.Dense(12, kernel_initializer=i), (9,)),
    "Conv1D": lambda i: (L.Conv1D(8, 3, kernel_initializer=i), (7, 6)),
    "Conv2D": lambda i: (L.Conv2D(8, 3, kernel_initializer=i), (7, 7, 4)),
    "Conv2DTranspose": lambda i: (L.Conv2DTranspose(6, 2, kernel_initializer=i), (5, 5, 8)),
    "EinsumDense": lambda i: (
        L.EinsumDense("abc,cde->abde", (None, 3, 4), kernel_initializer=i),
        (5, 8),
    ),
}
# Of a kernel: the axes of inputs, those of outputs, and taps that belong to both.
AXES = {
    "Dense": ([0], [1], []),
    "Conv1D": ([1], [2], [0]),
    "Conv2D": ([2], [3], [0, 1]),
    "Conv2DTranspose": ([3], [2], [0, 1]),
    "EinsumDense": ([0], [1, 2], []),
}
MODES = {"he_normal": "in", "lecun_uniform": "in", "glorot_uniform": "avg", "glorot_normal": "avg"}


def model_of(kind, initializer):
    layer, shape = LAYERS[kind](initializer)
    return keras.Sequential([keras.Input(shape), layer])


def sparsify(model, **kwargs):
    given = {"method": "static", "sparsity": 0.8, "distribution": "uniform_all", "seed": 0}
    return tf_rigl.sparsify(model, **{**given, **kwargs})


def fans(mask, kind):
    """For each entry, how many active entries share its output, and how many its input."""
    inputs, outputs, taps = AXES[kind]
    fan_in, fan_out = np.zeros(mask.shape), np.zeros(mask.shape)
    for index in np.ndindex(mask.shape):
        for other in np.ndindex(mask.shape):
            fan_in[index] += mask[other] and all(index[a] == other[a] for a in outputs)
            fan_out[index] += mask[other] and all(index[a] == other[a] for a in inputs)
    del taps  # Neither an output nor an input fixes them: both sums run over all of them.
    return fan_in, fan_out


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("initializer", MODES)
def test_entries_are_scaled_as_a_loop_says(kind, initializer):
    keras.utils.set_random_seed(1)
    model = model_of(kind, initializer)
    dense = model.layers[0].kernel.numpy()
    (item,) = sparsify(model, initialization="sparse").masked_weights
    mask, weight = item.mask.numpy(), item.weight.numpy()
    (fan_in, fan_out), (dense_in, dense_out) = fans(mask, kind), fans(np.ones_like(mask), kind)
    if MODES[initializer] == "in":
        factor = np.sqrt(dense_in / np.maximum(fan_in, 1))
    else:
        factor = np.sqrt((dense_in + dense_out) / np.maximum(fan_in + fan_out, 1))
    np.testing.assert_allclose(weight, np.where(mask, dense * factor, 0), rtol=1e-5)


def spread_of_outputs(**kwargs):
    """The spread of the outputs of ten layers, over that of their inputs."""
    keras.utils.set_random_seed(0)
    hidden = [L.Dense(256, "relu", kernel_initializer="he_normal") for _ in range(10)]
    model = keras.Sequential([keras.Input((256,)), *hidden])
    x = np.random.default_rng(0).normal(size=(512, 256)).astype("float32")
    dense = np.sqrt((model(x).numpy() ** 2).mean())
    sparse = sparsify(model, sparsity=0.95, **kwargs)
    return np.sqrt((sparse(x).numpy() ** 2).mean()) / dense


def test_a_signal_keeps_its_size_through_deep_sparse_layers():
    assert spread_of_outputs() < 1e-4
    assert 0.3 < spread_of_outputs(initialization="sparse") < 3


def test_models_that_are_built_later():
    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = L.Dense(12, kernel_initializer="he_normal")

        def call(self, x):
            return self.head(x)

    with pytest.warns(UserWarning, match="cannot clone"):
        sparse = sparsify(Late(), initialization="sparse")
    sparse(np.ones((1, 64), "float32"))
    (item,) = sparse.masked_weights
    values = item.active_values()
    assert values.std() == pytest.approx(np.sqrt(2 / (0.2 * 64)), rel=0.15)


def test_the_file_of_the_model_holds_what_was_scaled(tmp_path):
    sparse = sparsify(model_of("Dense", "he_normal"), initialization="sparse")
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(sparse.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("initializer", ["random_normal", "orthogonal"])
def test_where_nothing_is_scaled_it_says_so(initializer):
    model = model_of("Dense", initializer)
    before = model.layers[0].kernel.numpy()
    with pytest.warns(UserWarning, match=r"changed no weight.*'dense.*kernel' \(no initializer"):
        (item,) = sparsify(model, initialization="sparse").masked_weights
    np.testing.assert_array_equal(item.weight, before * item.mask.numpy())


def test_trained_weights_stay():
    model = model_of("Dense", "he_normal")
    model.layers[0].bias.assign(np.ones(12))
    with (
        pytest.warns(UserWarning, match="is trained already"),
        pytest.warns(UserWarning, match=r"\(trained\)"),
    ):
        sparsify(model, initialization="sparse")


def test_methods_that_begin_dense_scale_nothing():
    with pytest.warns(UserWarning, match="changed no weight"):
        sparsify(model_of("Dense", "he_normal"), method="magnitude", initialization="sparse")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initialization": "dense"}, "`initialization` must be one of 'model', 'sparse'"),
        ({"initialization": "sparse", "method": "ste"}, "must be 'model' with `compute='sparse'`"),
        (
            {"initialization": "sparse", "compute": "sparse", "pattern": "block_4x4"},
            "must be 'model' with `compute='sparse'`",
        ),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparsify(model_of("Dense", "he_normal"), **arguments)
