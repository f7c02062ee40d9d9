"""Removed channels change no output, whatever the graph, the masks and the zeros in kernels."""

import keras
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from keras import layers

from tf_rigl import lottery
from tf_rigl.channels import slimming

FIXED = {"deadline": None, "derandomize": True, "database": None}
few = settings(max_examples=40, phases=[Phase.explicit, Phase.generate], **FIXED)
many = settings(max_examples=50, **FIXED)

DATA = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
ACTIVATIONS = ["relu", "relu", "tanh", "gelu", "sigmoid", None]
counts = st.integers(4, 8)


def norm(x, draw):
    scales = {"scale": draw(st.integers(0, 4)) > 0, "center": draw(st.integers(0, 4)) > 0}
    return layers.Activation(draw(st.sampled_from(ACTIVATIONS[:4])))(
        layers.BatchNormalization(**scales)(x)
    )


def convolution(x, draw, channels=None):
    x = layers.Conv2D(
        channels or draw(counts),
        draw(st.sampled_from([1, 3])),
        padding="same",
        use_bias=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
    )(x)
    return norm(x, draw) if draw(st.booleans()) else x


def depthwise(x, draw):
    times = draw(st.integers(1, 2))
    bias = draw(st.booleans())
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=times, use_bias=bias)(x)
    return convolution(norm(x, draw), draw)


def separable(x, draw):
    return layers.SeparableConv2D(draw(counts), 3, padding="same", activation="relu")(x)


def transposed(x, draw):
    return layers.Conv2DTranspose(draw(counts), 3, padding="same")(x)


def residual(x, draw):
    branch = convolution(convolution(x, draw), draw, x.shape[-1])
    return layers.Add()([x, branch]) if draw(st.booleans()) else keras.ops.relu(x + branch)


def concatenation(x, draw):
    return layers.Concatenate()([convolution(x, draw), x, convolution(x, draw)])


def gate(x, draw):
    return layers.Multiply()([convolution(x, draw, x.shape[-1]), x])


def rearranged(x, draw):
    kinds = [layers.MaxPooling2D(3, 1, "same"), layers.UpSampling2D(), layers.ZeroPadding2D(1)]
    kinds += [layers.LayerNormalization(), layers.PReLU(), layers.SpatialDropout2D(0.5)]
    return draw(st.sampled_from(kinds))(x)


def nested(x, draw):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, convolution(convolution(inputs, draw), draw))(x)


BLOCKS = [convolution, norm, depthwise, separable, transposed, residual, concatenation, gate]
BLOCKS += [rearranged, nested]


def graph(draw):
    """A model with random weights, many of whose rows and columns are zero, and masks for it."""
    inputs = x = keras.Input(DATA.shape[1:])
    for make in draw(st.lists(st.sampled_from(BLOCKS), min_size=3, max_size=5)):
        x = make(x, draw)
    ends = [layers.Flatten, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D]
    x = draw(st.sampled_from(ends))()(x)
    x = layers.Dense(8, activation="relu", use_bias=draw(st.booleans()))(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.BatchNormalization()(x)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    for weight in model.weights:
        value = rng.normal(size=weight.shape)
        if weight.name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, size=weight.shape)
        elif len(weight.shape) > 1:
            value *= np.sqrt(2 / max(1, np.prod(weight.shape[:-1])))
            for axis in (-1, -2):
                shape = np.ones(len(weight.shape), int)
                shape[axis] = weight.shape[axis]
                value *= rng.random(shape) < 0.9
        else:  # Some are zero, as where there are no biases.
            value *= 0.4 * (rng.random() < 0.6) * (rng.random(weight.shape) < 0.8)
        weight.assign(value)
    found = slimming.scaled(model)
    masks = {path: rng.random(bn.gamma.shape) < 0.8 for path, bn in found.items()}
    return model, masks


@few
@given(st.data())
def test_outputs_are_those_of_the_masked_model(data):
    model, masks = graph(data.draw)  # Not a strategy: Keras draws seeds of its own.
    large = lottery.mask_channels(model, masks)
    small = lottery.remove_channels(model, masks)
    expected, found = (each(DATA, training=False).numpy() for each in (large, small))
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)
    assert small.count_params() <= model.count_params()
    # There is no more to be removed.
    shapes = [tuple(weight.shape) for weight in small.weights]
    again = lottery.remove_channels(small)
    assert [tuple(weight.shape) for weight in again.weights] == shapes


@st.composite
def scales(draw):
    """Scales of some layers, many of them equal, a fraction, and what is kept at least."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    values = st.sampled_from([0.0, -0.5, 0.5, 1.0, 2.0])
    gammas = [draw(st.lists(values, min_size=n, max_size=n)) for n in sizes]
    return gammas, draw(st.integers(0, 99)) / 100, draw(st.integers(0, 2))


@many
@given(scales())
def test_channel_masks_agree_with_a_plain_sort(case):
    gammas, fraction, least = case
    inputs = [keras.Input((len(gamma),)) for gamma in gammas]
    norms = [layers.BatchNormalization(name=f"norm_{n}") for n in range(len(gammas))]
    model = keras.Model(inputs, [norm(x) for norm, x in zip(norms, inputs, strict=True)])
    for layer, gamma in zip(norms, gammas, strict=True):
        layer.gamma.assign(gamma)
    ranked = [(-abs(g), layer, n) for layer, each in enumerate(gammas) for n, g in enumerate(each)]
    ranked.sort()  # Of equal scales the lower index first.
    keep = len(ranked) - round(100 * fraction) * len(ranked) // 100
    chosen = [[e for e in ranked if e[1] == layer][:least] for layer in range(len(gammas))]
    chosen = [entry for own in chosen for entry in own]
    if len(chosen) > keep:
        with pytest.raises(ValueError, match="Argument `least` must leave room"):
            lottery.channel_masks(model, fraction, least=least)
        return
    chosen += [entry for entry in ranked if entry not in chosen][: keep - len(chosen)]
    masks = lottery.channel_masks(model, fraction, least=least)
    found = [(f"norm_{layer}", n) for _, layer, n in chosen]
    assert sorted(found) == sorted(
        (path, int(n)) for path, mask in masks.items() for n in np.flatnonzero(mask)
    )
