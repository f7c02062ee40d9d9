"""`sparsify` tells trained models from new ones where it begins with random masks."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tf_rigl
from tests.helpers import (
    LAYER_CASES,
    MODEL_KINDS,
    compiled,
    layer_model,
    mlp,
    model_data,
    random_data,
)
from tf_rigl.convert.trained import is_trained

MESSAGE = "is trained already, and .* begins with a random mask"


def tells(model, method="rigl", **kwargs):
    """Whether `sparsify` says that a model is trained."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tf_rigl.sparsify(model, method, 0.5, seed=0, **kwargs)
    return any("trained already" in str(each.message) for each in caught)


def trained(model, optimizer="adam", epochs=1):
    x, y = random_data(batches=16)
    compiled(model, optimizer, run_eagerly=True).fit(x, y, epochs=epochs, batch_size=8, verbose=0)
    return model


def stack(*inner, shape=(10,)):
    return keras.Sequential([keras.Input(shape), *inner, layers.Dense(3)])


@pytest.mark.parametrize("method", ["rigl", "set", "snfs", "static"])
def test_random_masks_on_trained_weights_are_told(method):
    model = trained(mlp())
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        tf_rigl.sparsify(model, method, 0.5, seed=0)
    (told,) = (each for each in caught if each.category is UserWarning)
    assert type(tf_rigl.methods.get(method)).__name__ in str(told.message)
    assert "method='magnitude'" in str(told.message)
    assert told.filename == __file__
    assert not tells(mlp(), method)


@pytest.mark.parametrize("method", ["magnitude", "snip", "edge_popup"])
def test_methods_that_choose_their_masks_may_be_used(method):
    assert not tells(trained(mlp()), method)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_few_steps_of_any_optimizer_are_noticed(optimizer, bias):
    inner = [layers.Dense(64, "relu", use_bias=bias), layers.Dense(64, "relu", use_bias=bias)]
    model = stack(*inner)
    model.layers[-1].bias.trainable = bias
    if optimizer == "sgd":
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    assert not tells(model)
    assert tells(trained(model, optimizer, epochs=3))


@pytest.mark.parametrize("case", LAYER_CASES)
def test_new_layers_of_every_kind_are_not_trained(case):
    model = layer_model(case)[0]
    assert not tells(model)
    sparse = tf_rigl.sparsify(model, "static", 0.5, distribution="uniform_all", seed=0)
    assert not any(is_trained(item) for item in sparse.masked_weights)


@pytest.mark.parametrize("initializer", ["glorot_uniform", "he_normal", "lecun_uniform"])
def test_new_stacks_of_matrices_are_not_trained(initializer):
    """Newer versions of Keras take the axis of the stack for one of the outputs."""
    inner = layers.EinsumDense("abc,bcd->abd", (8, 9), kernel_initializer=initializer)
    assert not tells(keras.Sequential([keras.Input((8, 24)), inner]), distribution="uniform_all")


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_new_models_of_every_kind_are_not_trained_and_trained_ones_are(kind):
    model = MODEL_KINDS[kind][0]()
    assert not tells(model)
    x, y = model_data(kind)
    model(x)
    compiled(model, "adam", run_eagerly=True).fit(x, y, epochs=5, verbose=0)
    assert tells(model)


INITIALIZERS = [
    *("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform"),
    *("lecun_normal", "uniform", "normal", "truncated_normal", "orthogonal", "zeros", "ones"),
    keras.initializers.VarianceScaling(0.3, "fan_out", "untruncated_normal"),
    keras.initializers.RandomUniform(0.2, 0.4),
    keras.initializers.RandomNormal(0.5, 0.1),
    lambda shape, dtype: keras.ops.full(shape, 0.25, dtype),
]


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_new_weights_of_every_initializer_are_not_trained(initializer):
    for dtype in ("float32", "float16", "bfloat16"):
        if initializer != "orthogonal" or dtype == "float32":  # Keras knows no others.
            check_new(initializer, dtype)


def check_new(initializer, dtype):
    kinds = [
        layers.Dense(200, kernel_initializer=initializer, bias_initializer="ones", dtype=dtype),
        layers.Dense(7, kernel_initializer=initializer, bias_initializer="normal", dtype=dtype),
    ]
    constant = keras.initializers.Constant(-2.5)
    model = stack(*kinds, layers.Dense(5, bias_initializer=constant, dtype=dtype))
    assert not tells(model, distribution="uniform_all")


def test_a_model_of_keras_applications_is_not_trained():
    """Convolutions without bias, depthwise ones, normalisation."""
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    assert not tells(model, "static", distribution="uniform_all")


def test_the_layers_that_are_masked_decide():
    """A trained part that stays dense, or is frozen, does not count; a small trained part does."""
    base = trained(stack(layers.Dense(32, "relu", name="base")))
    model = stack(base.layers[0], layers.Dense(48, name="new"))
    assert tells(model)
    assert not tells(model, exclude=["base"])
    assert not tells(model, distribution={"new": 0.5})
    base.layers[0].trainable = False
    assert not tells(model)


def test_weights_that_were_set_back_are_new():
    model = mlp()
    first = model.get_weights()
    trained(model).set_weights(first)
    assert not tells(model)


def test_where_initializers_do_not_tell_the_optimizer_does():
    def ones(shape, dtype):
        return keras.ops.ones(shape, dtype)

    def build():
        return keras.Sequential(
            [keras.Input((10,)), layers.Dense(3, kernel_initializer=ones, use_bias=False)]
        )

    assert not tells(build())
    assert tells(trained(build()))


def test_a_bias_set_by_hand_is_no_training():
    """As for classes that are not balanced: in a small layer at the end."""
    model = stack(layers.Dense(64, "relu"), layers.Dense(64, "relu"))
    model.layers[-1].bias.assign(np.array([-4.0, 0.0, 4.0]))
    assert not tells(model)
