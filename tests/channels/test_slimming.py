"""Network slimming: the penalty, channel masks, and the masked model."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers import FEATURES, compiled, random_data, sparsify
from tf_rigl import lottery
from tf_rigl.convert import copies


def normalized(*sizes, **kwargs):
    """A functional model of `Dense` layers with normalisation, "norm_0" and so on."""
    x = inputs = keras.Input((FEATURES,))
    for number, size in enumerate(sizes):
        x = layers.Dense(size, use_bias=False, name=f"dense_{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"norm_{number}", **kwargs)(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def with_scales(*gammas):
    """Such a model with given scales."""
    model = normalized(*map(len, gammas))
    for number, gamma in enumerate(gammas):
        model.get_layer(f"norm_{number}").gamma.assign(gamma)
    return model


def test_the_penalty_is_the_sum_of_all_scales():
    model = normalized(4, 6)
    rng = np.random.default_rng(0)
    for number in range(2):
        layer = model.get_layer(f"norm_{number}")
        layer.gamma.assign(rng.normal(size=layer.gamma.shape))
    slim = lottery.with_scale_penalty(model, factor=0.25)
    assert not model.losses
    total = sum(np.abs(model.get_layer(f"norm_{n}").gamma.numpy()).sum() for n in range(2))
    np.testing.assert_allclose(sum(map(float, slim.losses)), 0.25 * total, rtol=1e-6)
    for one, other in zip(model.get_weights(), slim.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sparse", [False, True])
def test_scales_shrink_under_the_penalty_and_it_is_saved(sparse, tmp_path):
    x, y = random_data()
    sums = []
    for factor in (0.0, 0.05):
        keras.utils.set_random_seed(0)
        model = lottery.with_scale_penalty(normalized(4, 6), factor)
        model = compiled(sparsify(model) if sparse else model)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        sums.append(sum(np.abs(v).sum() for v in model.weights if v.name == "gamma"))
    assert sums[1] < sums[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(float(sum(loaded.losses)), 0.05 * sums[1], rtol=1e-6)


def test_one_threshold_holds_for_the_whole_network():
    model = with_scales([3.0, -0.1, 0.2, -5.0], [0.3, 0.4, -0.05])
    masks = lottery.channel_masks(model, 0.5)  # floor(3.5) channels.
    assert list(masks) == ["norm_0", "norm_1"]
    np.testing.assert_array_equal(masks["norm_0"], [True, False, False, True])
    np.testing.assert_array_equal(masks["norm_1"], [True, True, False])


def test_of_equal_scales_the_lower_index_is_kept():
    masks = lottery.channel_masks(with_scales([1.0] * 4, [1.0] * 4), 0.5, least=0)
    assert masks["norm_0"].all()
    assert not masks["norm_1"].any()


def test_every_layer_keeps_its_largest_channels():
    model = with_scales([1.0, 2.0, 3.0, 4.0], [0.1, 0.3, 0.2, 0.1])
    masks = lottery.channel_masks(model, 0.5, least=2)
    np.testing.assert_array_equal(masks["norm_0"], [False, False, True, True])
    np.testing.assert_array_equal(masks["norm_1"], [False, True, True, False])


def test_a_scale_that_is_not_a_number_is_the_lowest():
    masks = lottery.channel_masks(with_scales([np.nan, 0.0, 1.0, 2.0]), 0.25)
    np.testing.assert_array_equal(masks["norm_0"], [False, True, True, True])


def test_masks_are_drawn_alike_from_dense_sparse_and_nested_models():
    class Subclassed(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.norm, self.head = layers.BatchNormalization(name="norm"), layers.Dense(3)

        def call(self, x, training=False):
            return self.head(self.norm(x, training=training))

        def get_config(self):
            return super().get_config()

    subclassed = Subclassed()
    subclassed(np.zeros((2, FEATURES), "float32"))
    subclassed.norm.gamma.assign(np.arange(FEATURES))
    inner = with_scales(np.arange(1.0, 5.0))
    outer = keras.Sequential([keras.Input((FEATURES,)), keras.Model(inner.input, inner.output)])
    for model in (subclassed, outer):
        dense, sparse = (lottery.channel_masks(each, 0.5) for each in (model, sparsify(model)))
        assert dense.keys() == sparse.keys()
        for path, mask in dense.items():
            np.testing.assert_array_equal(mask, sparse[path])
    (path,) = lottery.channel_masks(outer, 0.5)
    assert path == f"{outer.layers[0].name}/norm_0"


def test_masked_channels_are_zero_and_the_model_stays_as_it_was():
    model = normalized(4)
    layer = model.get_layer("norm_0")
    layer.beta.assign([1.0, 2.0, 3.0, 4.0])
    keep = np.array([True, False, False, True])
    masked = lottery.mask_channels(model, {"norm_0": keep}).get_layer("norm_0")
    np.testing.assert_array_equal(masked.gamma, [1, 0, 0, 1])
    np.testing.assert_array_equal(masked.beta, [1, 0, 0, 4])
    np.testing.assert_array_equal(layer.beta, [1, 2, 3, 4])
    model = normalized(4, center=False)
    assert lottery.mask_channels(model, {"norm_0": keep}).get_layer("norm_0").beta is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: lottery.with_scale_penalty(m, -1), "`factor` must be a number of at least 0"),
        (lambda m: lottery.with_scale_penalty(m, "l1"), "`factor` must be.*Received: factor='l1'"),
        (lambda m: lottery.with_scale_penalty(sparsify(m)), "`model` must be dense"),
        (lambda m: lottery.with_scale_penalty(5), "`model` must be a built"),
        (
            lambda m: lottery.with_scale_penalty(normalized(4, gamma_regularizer="l2")),
            "no other regularizers of scales than L1.*L2.*'norm_0'",
        ),
        (lambda m: lottery.channel_masks(m, 1.0), r"`prune_fraction` must be a number in \[0, 1\)"),
        (lambda m: lottery.channel_masks(m, 0.5, least=-1), "`least` must be an integer"),
        (lambda m: lottery.channel_masks(m, 0.9, least=2), "keeps 1 of 9 channels"),
        (
            lambda m: lottery.channel_masks(normalized(4, scale=False), 0.5),
            "must have `BatchNormalization` layers with `scale=True`",
        ),
        (
            lambda m: lottery.channel_masks(keras.Sequential([layers.BatchNormalization()]), 0.5),
            "`model` must be a built",
        ),
        (lambda m: lottery.mask_channels(sparsify(m), {}), "`model` must be dense"),
        (lambda m: lottery.mask_channels(m, {"norm": np.ones(4, bool)}), "one of .*norm_0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(normalized(4, 5))


def test_a_model_that_cannot_be_cloned_is_refused():
    class Stubborn(layers.Dense):
        def get_config(self):
            raise NotImplementedError("nope")

    stack = [keras.Input((FEATURES,)), Stubborn(3), layers.BatchNormalization()]
    model = keras.Sequential(stack)
    with pytest.raises(ValueError, match=r"`model` must be a model that Keras can clone.*nope"):
        lottery.with_scale_penalty(model)
    with pytest.raises(ValueError, match="cannot clone the layer 'stubborn': nope"):
        copies.twin(model.layers[0])
