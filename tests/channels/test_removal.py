"""Channels removed for real: what is cut, what has to stay, and that outputs are the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_rigl
from tests.helpers import Detached, compiled, mlp, random_data, sparsify
from tf_rigl import lottery, models
from tf_rigl.channels import slimming

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")


def filled(model, seed=0):
    """Gives a model random weights, none of them zero, and returns it."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        low = 0.5 if weight.name in ("gamma", "moving_variance") else 0.1
        sign = 1 if weight.name in ("gamma", "moving_variance") else rng.choice([-1, 1])
        weight.assign(sign * rng.uniform(low, 1.5 if sign == 1 else 0.4, weight.shape))
    return model


def shapes(model):
    return {weight.path: tuple(weight.shape) for weight in model.weights}


def check_same(large, small, data=IMAGES):
    """The outputs of two models are the same, to rounding."""
    old, new = (keras.tree.flatten(model(data, training=False)) for model in (large, small))
    for one, other in zip(old, new, strict=True):
        one = keras.ops.convert_to_numpy(one)
        scale = max(1.0, np.abs(one).max())
        np.testing.assert_allclose(one / scale, other / scale, atol=2e-5)


def mask(size, *kept):
    """A mask of a number of channels with some of them."""
    return np.isin(np.arange(size), kept)


def conv_norm(x, channels, number, size=3, **kwargs):
    x = layers.Conv2D(
        channels, size, padding="same", use_bias=False, name=f"conv_{number}", **kwargs
    )(x)
    return layers.BatchNormalization(name=f"norm_{number}")(x)


def small_of(model, masks=None):
    """The smaller model, checked against the masked large one."""
    before = [np.array(value) for value in model.get_weights()]
    small = lottery.remove_channels(model, masks)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    large = model if masks is None else lottery.mask_channels(model, masks)
    rng = np.random.default_rng(1)
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    data = keras.tree.map_structure(
        lambda tensor: rng.normal(size=(3, *tensor.shape[1:])).astype("float32"), inputs
    )
    check_same(large, small, data)
    return small


def test_a_stack_of_convolutions_is_cut_to_what_masks_keep():
    inputs = x = keras.Input((8, 8, 3))
    for number, channels in enumerate((6, 8), start=1):
        x = layers.ReLU()(conv_norm(x, channels, number))
        x = layers.MaxPooling2D()(layers.Dropout(0.1)(x))
    outputs = layers.Dense(4, name="head")(layers.Flatten()(x))
    model = filled(keras.Model(inputs, outputs, name="stack"))
    masks = {"norm_1": mask(6, 1, 4), "norm_2": mask(8, 0, 2, 7)}
    small = small_of(model, masks)
    assert small.name == "stack"
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    # By hand: kernels of 3x3, four variables of each normalisation, 2x2 positions flattened.
    assert small.count_params() == 9 * 3 * 2 + 4 * 2 + 9 * 2 * 3 + 4 * 3 + 4 * 3 * 4 + 4
    kernel = model.get_layer("conv_2").get_weights()[0]
    np.testing.assert_array_equal(
        small.get_layer("conv_2").get_weights()[0], kernel[:, :, [1, 4]][..., [0, 2, 7]]
    )
    head = model.get_layer("head").get_weights()[0].reshape(2, 2, 8, 4)
    np.testing.assert_array_equal(
        small.get_layer("head").get_weights()[0], head[:, :, [0, 2, 7]].reshape(12, 4)
    )


def test_a_sequential_model_with_biases_and_activations():
    model = filled(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Conv2D(6, 3),
                layers.BatchNormalization(name="norm"),
                layers.Activation("gelu"),
                layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="relu"),
                layers.UpSampling2D(),
                layers.Conv2DTranspose(4, 3, activation="tanh"),
                layers.PReLU(shared_axes=[1, 2]),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3, activation="softmax"),
            ]
        )
    )
    small = small_of(model, {"norm": mask(6, 0, 5)})
    assert small.layers[1].filters == 2
    assert shapes(small)["separable_conv2d/depthwise_kernel"] == (3, 3, 2, 2)


def channels_first(data_format):
    """A network of all that moves channels along, and the masks of its normalisations."""
    first = data_format == "channels_first"
    axis, form = 1 if first else -1, {"data_format": data_format}

    def conv_norm(x, channels, number, kind=layers.Conv2D, **kwargs):
        x = kind(channels, 3, padding="same", name=f"conv_{number}", **form, **kwargs)(x)
        x = layers.BatchNormalization(axis=axis, name=f"norm_{number}")(x)
        return layers.ReLU()(x)

    inputs = keras.Input((3, 8, 8) if first else (8, 8, 3))
    x = conv_norm(layers.Dropout(0.1)(inputs), 6, 1)
    y = conv_norm(layers.MaxPooling2D(**form)(x), 6, 2, layers.SeparableConv2D)
    y = layers.UpSampling2D(**form)(y)
    x = layers.Concatenate(axis=axis)([layers.Add()([x, y]), y])
    x = layers.DepthwiseConv2D(3, **form)(x)
    x = conv_norm(layers.Activation("tanh")(x), 5, 3, layers.Conv2DTranspose)
    x = layers.AveragePooling2D(3, **form)(layers.ZeroPadding2D(**form)(x))
    z = layers.GlobalMaxPooling2D(**form)(x)
    x = layers.Concatenate()([layers.Flatten(**form)(x), z])
    model = filled(keras.Model(inputs, layers.Dense(4, name="head")(x)))
    for weight in model.weights:  # A bias would keep a channel that is zero.
        if weight.name == "bias":
            weight.assign(keras.ops.zeros_like(weight))
    masks = {"norm_1": mask(6, 1), "norm_2": mask(6, 1, 4), "norm_3": mask(5, 0, 3)}
    return model, masks


def test_channels_can_be_first():
    """All that is cut with channels last is cut, and outputs are the same."""
    last, masks = channels_first("channels_last")
    expected = small_of(last, masks)
    model, masks = channels_first("channels_first")
    small = lottery.remove_channels(model, masks)
    sizes = [[tuple(weight.shape) for weight in each.weights] for each in (small, expected)]
    assert sizes[0] == sizes[1]
    assert small.count_params() < 0.6 * model.count_params()
    large, data = lottery.mask_channels(model, masks), np.moveaxis(IMAGES, -1, 1)
    # XLA runs convolutions with channels first on a CPU too.
    outputs = [tf.function(each, jit_compile=True)(data) for each in (large, small)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs[1], expected(IMAGES), rtol=1e-4, atol=1e-4)


def test_layers_of_different_data_formats_keep_their_channels():
    """A layer that takes rows for channels is no reason to cut rows."""
    inputs = keras.Input((4, 4, 4))
    x = layers.Conv2D(4, 1, use_bias=False)(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(3, 1, data_format="channels_first", name="next")(x)
    model = filled(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    message = "No channel was removed, though the masks prune some.*'next', 'head'"
    with pytest.warns(UserWarning, match=message):
        small = lottery.remove_channels(model, {"norm": mask(4, 1)})
    assert shapes(small) == shapes(model)


def residual():
    inputs = keras.Input((8, 8, 3))
    x = shortcut = layers.ReLU()(conv_norm(inputs, 6, 1))
    x = layers.ReLU()(conv_norm(x, 6, 2))
    x = conv_norm(x, 6, 3)
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    outputs = layers.Dense(4)(layers.GlobalMaxPooling2D()(x))
    return filled(keras.Model(inputs, outputs))


def test_branches_of_a_sum_keep_what_any_of_them_needs():
    masks = {"norm_1": mask(6, 0, 1), "norm_2": mask(6, 5), "norm_3": mask(6, 1, 2)}
    small = shapes(small_of(residual(), masks))
    assert small["conv_1/kernel"] == (3, 3, 3, 3)  # 0, 1 and 2.
    assert small["conv_2/kernel"] == (3, 3, 3, 1)
    assert small["conv_3/kernel"] == (3, 3, 1, 3)
    assert small["dense/kernel"] == (3, 4)


def test_concatenated_channels_are_cut_each_in_its_branch():
    inputs = keras.Input((8, 8, 3))
    parts = [layers.ReLU()(conv_norm(inputs, channels, n)) for n, channels in ((1, 3), (2, 5))]
    x = layers.Conv2D(4, 1, name="after")(layers.Concatenate()(parts))
    model = filled(keras.Model(inputs, layers.Flatten()(x)))
    small = shapes(small_of(model, {"norm_1": mask(3, 2), "norm_2": mask(5, 0, 3)}))
    assert small["conv_1/kernel"] == (3, 3, 3, 1)
    assert small["conv_2/kernel"] == (3, 3, 3, 2)
    assert small["after/kernel"] == (1, 1, 3, 4)


def test_depthwise_convolutions_lose_the_channels_on_both_sides():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU(6.0)(conv_norm(inputs, 6, 1, 1))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="depthwise")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(name="norm_2")(x))
    x = layers.Conv2D(4, 1, name="after")(x)
    model = filled(keras.Model(inputs, x))
    # Of the twelve channels, 2n and 2n + 1 are made of n. Normalisation makes a constant of 5.
    masks = {"norm_1": mask(6, 0, 3, 4), "norm_2": mask(12, 0, 1, 7, 8, 10)}
    small = shapes(small_of(model, masks))
    assert small["depthwise/kernel"] == (3, 3, 4, 2)
    masks = {"norm_1": mask(6, 0, 3, 4), "norm_2": mask(12, 0, 1, 7)}
    small = shapes(small_of(model, masks))
    assert small["depthwise/kernel"] == (3, 3, 2, 2)  # Nothing looks at what is made of 4.
    assert small["conv_1/kernel"] == (1, 1, 3, 2)


def test_a_bias_makes_a_constant_of_a_channel_that_is_zero():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(conv_norm(inputs, 6, 1, 1))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    model = filled(keras.Model(inputs, layers.Conv2D(4, 1)(x)))
    kernel, bias = model.get_layer("depthwise").get_weights()
    bias[[0, 1]] = 0
    model.get_layer("depthwise").set_weights([kernel, np.abs(bias)])
    small = shapes(small_of(model, {"norm_1": mask(6, 0, 5)}))
    assert small["depthwise/kernel"] == (3, 3, 5, 1)  # All but 1.


def test_a_gate_closes_channels_of_what_it_is_multiplied_with():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="main")(inputs)
    gate = layers.Reshape((1, 1, 6))(layers.Dense(6, "relu", name="gate")(layers.Flatten()(inputs)))
    outputs = layers.Conv2D(2, 1)(layers.Multiply()([x, layers.UpSampling2D(6)(gate)]))
    model = filled(keras.Model(inputs, outputs))
    kernel, bias = model.get_layer("gate").get_weights()
    kernel[:, 2:] = bias[2:] = 0
    model.get_layer("gate").set_weights([kernel, bias])
    small = small_of(model)
    assert small.get_layer("main").filters == small.get_layer("gate").units == 2


def test_units_without_connections_are_removed_from_a_stripped_sparse_model():
    stack = [keras.Input((10,)), *(layers.Dense(12, "relu", use_bias=False) for _ in range(3))]
    sparse = sparsify(keras.Sequential([*stack, layers.Dense(3, use_bias=False)]), sparsity=0.9)
    kernels = [value != 0 for value in tf_rigl.strip(sparse).get_weights()]
    reached, needed = np.ones(10, bool), np.ones(3, bool)
    forward, backward = [], []
    for kernel in kernels:
        reached = kernel[reached].any(axis=0)
        forward.append(reached)
    for kernel in reversed(kernels):
        backward.insert(0, needed)
        needed = kernel[:, needed].any(axis=1)
    alive = [max(1, np.count_nonzero(f & b)) for f, b in zip(forward, backward, strict=True)]
    assert max(alive[:-1]) < 12
    small = small_of(tf_rigl.strip(sparse))
    assert [layer.units for layer in small.layers[1:]] == [*alive[:-1], 3]


def test_channels_that_no_later_layer_looks_at_are_removed():
    model = filled(mlp())
    kernel, bias = model.get_layer("head").get_weights()
    kernel[[0, 5]] = 0
    model.get_layer("head").set_weights([kernel, bias])
    assert small_of(model).get_layer("hidden").units == 6


def test_what_is_not_zero_at_zero_keeps_its_channels():
    inputs = keras.Input((8, 8, 3))
    x = layers.Activation("sigmoid")(conv_norm(inputs, 6, 1))
    model = filled(keras.Model(inputs, layers.Conv2D(4, 1)(x)))
    small = small_of(model, {"norm_1": mask(6, 0)})
    assert small.count_params() == model.count_params()


@keras.saving.register_keras_serializable(package="tests")
class Doubled(layers.Dense):
    """A dense layer that does something of its own."""

    def call(self, x):
        return 2 * super().call(x)[..., ::-1]


def _attention(x):
    x = layers.Reshape((36, 6))(x)
    return layers.MultiHeadAttention(2, 3)(x, x)


@pytest.mark.parametrize(
    "unknown",
    [
        lambda: layers.Conv2D(6, 3, groups=3),
        lambda: layers.LayerNormalization(),
        lambda: layers.GroupNormalization(2),
        lambda: layers.Softmax(),
        lambda: layers.Activation("softmax"),
        lambda: layers.BatchNormalization(axis=1),
        lambda: layers.TimeDistributed(layers.Dense(4)),
        lambda: layers.Lambda(lambda x: x[..., ::-1] + 1),
        lambda: layers.Permute((3, 1, 2)),
        lambda: layers.ConvLSTM1D(3, 3),
        lambda: Doubled(4),
        lambda: Detached(),
        lambda: _attention,
        lambda: lambda x: 1 - x,
        lambda: lambda x: x + keras.ops.mean(x, axis=-1, keepdims=True),
        lambda: lambda x: keras.ops.split(x, 2, axis=-1)[1],
    ],
)
def test_other_layers_keep_all_channels_around_them(unknown):
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(conv_norm(inputs, 5, 1))
    x = layers.ReLU(name="before")(conv_norm(x, 6, 2, strides=1))
    x = layers.Cropping2D(1)(x)
    x = unknown()(x)
    model = filled(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    small = small_of(model, {"norm_1": mask(5, 2, 3), "norm_2": mask(6, 1)})
    assert shapes(small)["conv_2/kernel"] == (3, 3, 2, 6)


def test_a_layer_that_is_shared_keeps_its_weights():
    inputs = keras.Input((8, 8, 3))
    shared, relu = layers.Conv2D(6, 3, padding="same", name="shared"), layers.ReLU()
    first = relu(conv_norm(inputs, 6, 1))
    x = relu(shared(relu(shared(first))))
    model = filled(keras.Model(inputs, layers.Conv2D(2, 1)(x)))
    small = small_of(model, {"norm_1": mask(6, 2)})
    assert small.count_params() == model.count_params()
    assert sum(layer.name == "shared" for layer in small.layers) == 1


def block(name):
    inputs = keras.Input((8, 8, 6))
    x = layers.ReLU()(conv_norm(inputs, 4, 1))
    return keras.Model(inputs, conv_norm(x, 6, 2), name=name)


def test_nested_models_are_dissolved():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(conv_norm(inputs, 6, 1))
    inner = block("inner")
    frozen = keras.Sequential([keras.Input((8, 8, 6)), block("core")], name="frozen")
    frozen.trainable = False
    x = layers.Add()([x, inner(x)])
    x = layers.Add()([x, frozen(x, training=False)])
    model = filled(keras.Model(inputs, layers.Conv2D(2, 1)(x)))
    masks = {"inner/norm_1": mask(4, 1), "frozen/core/norm_1": mask(4, 2, 3)}
    small = small_of(model, masks)
    assert not any(isinstance(layer, keras.Model) for layer in small.layers)
    found = shapes(small)
    assert found["conv_1_1/kernel"] == (3, 3, 6, 1)
    assert found["conv_1_2/kernel"] == (3, 3, 6, 2)
    assert not small.get_layer("conv_1_2").trainable
    assert not small.get_layer("norm_2_1").trainable
    assert small.get_layer("conv_1").trainable
    # Frozen statistics are used in training too, as in the large one.
    before = small.get_layer("norm_1_2").get_weights()
    small(IMAGES, training=True)
    for old, new in zip(before, small.get_layer("norm_1_2").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_nested_model_called_twice_stays_shared():
    inputs = keras.Input((8, 8, 6))
    inner = block("inner")
    model = filled(keras.Model(inputs, inner(inner(inputs))))
    small = small_of(model, {"inner/norm_1": mask(4, 1)})
    assert small.count_params() == model.count_params()


def test_operators_and_structures_of_inputs_and_outputs():
    inputs = {"b": keras.Input((8, 8, 3), name="b"), "a": keras.Input((8, 8, 2), name="a")}
    parts = [conv_norm(inputs[name], 6, n) for n, name in enumerate("ab")]
    x = keras.ops.relu(parts[0] + parts[1])
    x = x * layers.Conv2D(6, 1, activation="relu", name="gate")(x)
    outputs = {"y": layers.Conv2D(3, 1)(x), "x": [layers.GlobalAveragePooling2D()(parts[0])]}
    model = filled(keras.Model(inputs, outputs))
    assert set(small_of(model, {"norm_0": mask(6, 1), "norm_1": mask(6, 1)}).output) == {"x", "y"}
    model = filled(keras.Model(inputs, outputs["y"]))
    small = small_of(model, {"norm_0": mask(6, 1, 5), "norm_1": mask(6, 1)})
    assert small.get_layer("gate").filters == small.get_layer("conv_0").filters == 2


def test_a_layer_keeps_at_least_a_channel():
    masks = {"norm_1": mask(6), "norm_2": mask(6), "norm_3": mask(6)}
    small = shapes(small_of(residual(), masks))
    assert small["conv_3/kernel"] == (3, 3, 1, 1)
    assert small["dense/kernel"] == (1, 4)


@pytest.mark.parametrize("name", ["small-cnn", "small-mobilenet", "small-vgg", "wide-resnet-22-2"])
def test_models_on_offer(name):
    model = models.get(name)((8, 8, 3), 4)
    for layer in slimming.scaled(model).values():
        layer.gamma.assign(np.random.default_rng(0).uniform(0.5, 1.5, layer.gamma.shape))
    masks = lottery.channel_masks(model, 0.6)
    small = small_of(model, masks)
    assert small.count_params() < 0.6 * model.count_params()


def test_the_small_model_is_saved_loaded_and_trained(tmp_path):
    model = models.small_vgg((8, 8, 3), 3)
    small = lottery.remove_channels(model, lottery.channel_masks(model, 0.5))
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(small(IMAGES), loaded(IMAGES))
    x, y = random_data((8, 8, 3), batches=2)
    before = loaded.get_weights()
    history = compiled(loaded).fit(x, y, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert any((old != new).any() for old, new in zip(before, loaded.get_weights(), strict=True))


def test_types_and_frozen_layers_are_kept():
    inputs = keras.Input((8, 8, 3))
    x = conv_norm(inputs, 6, 1, dtype="mixed_bfloat16", trainable=False)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.ReLU()(x)))
    small = lottery.remove_channels(model, {"norm_1": mask(6, 0, 1)})
    layer = small.get_layer("conv_1")
    assert layer.dtype_policy.name == "mixed_bfloat16"
    assert not layer.trainable_weights
    assert layer.filters == 2


class Own(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "masks", "message"),
    [
        (lambda: "model", None, "must be a built functional"),
        (lambda: keras.Sequential([layers.Dense(3)]), None, "must be a built functional"),
        (Own, None, "must be a built functional"),
        (lambda: sparsify(mlp()), None, "must be dense"),
        (mlp, {"norm": mask(8, 1)}, "must have `BatchNormalization` layers"),
        (residual, {"norm_9": mask(6, 1)}, r"one of \['norm_1', .*Received: .*'norm_9'"),
        (residual, {"norm_1": mask(5, 1)}, r"shape \(6,\)\. Received: shape \(5,\) for 'norm_1'"),
        (residual, {"norm_1": np.ones(6)}, "boolean arrays. Received: float64 for 'norm_1'"),
        (residual, [mask(6, 1)], "must be a dict"),
    ],
)
def test_bad_input(model, masks, message):
    with pytest.raises(ValueError, match=message):
        lottery.remove_channels(model(), masks)


def difference():
    """A nested model whose inputs are not in the order of their names."""
    parts = [keras.Input((4,), name=name) for name in "ba"]
    return keras.Model(parts, layers.Dense(3)(layers.Subtract()(parts)), name="inner")


@pytest.mark.parametrize(
    "call",
    [
        lambda inner, p, q: inner({"b": p, "a": q}),
        lambda inner, p, q: inner({"c": p, "b": p, "a": q}),
        lambda inner, p, q: inner(inputs={"b": p, "a": q}),
        lambda inner, p, q: inner([p, q]),
    ],
)
def test_inputs_of_nested_models_are_found_by_their_names(call):
    inputs = [keras.Input((4,), name=name) for name in "pq"]
    small_of(filled(keras.Model(inputs, call(difference(), *inputs))))


def test_inputs_of_nested_models_get_the_type_that_these_are_made_for():
    inputs = keras.Input((4,))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(layers.Dense(6)(inputs)))
    whole = keras.Input((6,), dtype="int32")
    inner = keras.Model(whole, keras.ops.cast(whole, "float32"))
    model = filled(keras.Model(inputs, layers.Dense(2)(inner(x))))
    assert small_of(model, {"norm": mask(6, 0, 1, 2, 3)}).layers[1].units == 4


@pytest.mark.parametrize(("own", "given"), [((4, 1), (4,)), ((4,), (4, 1))])
def test_inputs_of_nested_models_get_the_rank_that_these_are_made_for(own, given):
    inside, inputs = keras.Input(own), keras.Input(given)
    inner = keras.Model(inside, layers.Dense(3)(inside))
    small_of(filled(keras.Model(inputs, inner(inputs))))


@pytest.mark.parametrize(
    "join",
    [
        lambda x, one: layers.Concatenate()([x, one]),
        lambda x, one: layers.Concatenate(axis=1)([x, one]),
        lambda x, one: layers.Add()([x, x, one]),
        lambda x, one: keras.ops.concatenate([one, x]),
    ],
)
def test_constants_among_inputs_keep_all_channels(join):
    inputs = keras.Input((8, 8, 3), batch_size=3)
    x = layers.ReLU()(conv_norm(inputs, 6, 1))
    x = join(x, np.ones((3, 8, 8, 6), "float32"))
    model = filled(keras.Model(inputs, layers.Conv2D(2, 1)(x)))
    small = small_of(model, {"norm_1": mask(6, 1)})
    assert small.count_params() == model.count_params()


def test_the_penalty_on_scales_is_left_out_where_masks_are_given():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(conv_norm(inputs, 6, 1, kernel_regularizer=keras.regularizers.L1(1.0)))
    other = layers.BatchNormalization(name="other", beta_regularizer="l1", gamma_regularizer="l2")
    once = layers.BatchNormalization(name="norm_2")
    model = filled(keras.Model(inputs, layers.Conv2D(2, 1)(once(once(x)))))
    slim = lottery.with_scale_penalty(model, 0.5)
    inputs = keras.Input((8, 8, 3))
    slim = keras.Model(inputs, other(slim(inputs)))
    masks = {path: mask(6, 0, 1) for path in (f"{slim.layers[1].name}/norm_1",)}
    small = lottery.remove_channels(slim, masks)
    for name in ("norm_1", "norm_2"):
        layer = small.get_layer(name)
        assert layer.gamma_regularizer is layer.gamma.regularizer is None
    assert len(small.losses) == 3  # Of the convolution and of the other normalisation.
    assert len(lottery.remove_channels(slim).losses) == 5


def test_a_nested_model_called_with_more_than_its_inputs_is_refused():
    inner = block("inner")
    inputs = keras.Input((8, 8, 6))
    with pytest.warns(UserWarning, match="mask"):  # Of Keras.
        with_mask = inner(inputs, mask=keras.ops.ones_like(inputs))
    with pytest.raises(ValueError, match="'inner' is called on 2 tensors"):
        lottery.remove_channels(keras.Model(inputs, with_mask))


def test_a_nested_model_called_with_a_constant_is_refused():
    inputs = keras.Input((4,))
    outputs = difference()([inputs, keras.ops.ones((3, 4))])
    with pytest.raises(ValueError, match="inputs must not be constants"):
        lottery.remove_channels(keras.Model(inputs, outputs))
