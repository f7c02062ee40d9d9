"""Factorized layers, against dense ones and NumPy."""

import json
import subprocess
import sys

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

import tf_rigl
from tf_rigl import factorized

some = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def values(rng, *shape):
    return rng.normal(size=shape).astype("float32")


@st.composite
def layers(draw):
    """A name, the arguments of an ordinary layer, and the shape of its inputs."""
    kind = draw(st.sampled_from(["Dense", "Conv2D", "EinsumDense"]))
    common = {"activation": draw(st.sampled_from([None, "tanh"]))}
    if kind == "Dense":
        common["use_bias"] = draw(st.booleans())
        return kind, {"units": draw(st.integers(1, 9)), **common}, (3, draw(st.integers(1, 9)))
    if kind == "EinsumDense":
        case = draw(st.sampled_from(EQUATIONS))
        return kind, {**case[0], **common}, case[1]
    strides = draw(st.sampled_from([1, 2, (1, 2)]))
    dilation = draw(st.sampled_from([1, (2, 1), (1, 2)])) if strides == 1 else 1
    arguments = {
        "filters": draw(st.integers(1, 6)),
        "kernel_size": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "strides": strides,
        "dilation_rate": dilation,
        "padding": draw(st.sampled_from(["same", "valid"])),
        "use_bias": draw(st.booleans()),
    }
    return kind, {**arguments, **common}, (8, 7, draw(st.integers(1, 5)))


EQUATIONS = [
    ({"equation": "abc,cd->abd", "output_shape": (None, 7), "bias_axes": "d"}, (4, 5)),
    ({"equation": "abc,cde->abde", "output_shape": (4, 3, 2), "bias_axes": "de"}, (4, 5)),
    ({"equation": "abcd,cde->abe", "output_shape": (4, 6)}, (4, 3, 2)),
    ({"equation": "...x,xy->...y", "output_shape": 6, "bias_axes": "y"}, (4, 5)),
    ({"equation": "abc,dc->abd", "output_shape": (None, 7)}, (4, 5)),
    ({"equation": "aeb,ebc->aec", "output_shape": (3, 6), "bias_axes": "c"}, (3, 5)),
]


def pair(case, **options):
    """An ordinary layer and the factorized one, with random bias, and inputs."""
    kind, arguments, shape = case
    rng = np.random.default_rng(0)
    dense, small = getattr(keras.layers, kind)(**arguments), getattr(factorized, kind)
    small = small(**arguments, **options)
    x = values(rng, 2, *shape)
    for layer in (dense, small):
        layer.build((None, *shape))
    if dense.bias is not None:
        bias = values(rng, *dense.bias.shape)
        dense.bias.assign(bias)
        small.second.bias.assign(bias)
    return dense, small, x


@some
@given(layers())
def test_full_rank_is_the_dense_layer(case):
    dense, small, x = pair(case, scale=1.0)
    small.set_kernel(dense.kernel.numpy())
    np.testing.assert_allclose(small.product(), dense.kernel, atol=1e-5)
    np.testing.assert_allclose(small(x), dense(x), rtol=1e-4, atol=1e-4)
    assert small.compute_output_shape((None, *x.shape[1:])) == dense.compute_output_shape(
        (None, *x.shape[1:])
    )


@some
@given(layers(), st.floats(0.05, 1), st.sampled_from(["spectral", "layer"]))
def test_two_small_operations_are_one_with_the_product(case, scale, initialization):
    dense, small, x = pair(case, scale=scale, initialization=initialization)
    dense.kernel.assign(small.product())
    np.testing.assert_allclose(small.second(small.first(x)), dense(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(small(x), dense(x), rtol=1e-4, atol=1e-4)
    _, inputs, outputs = small.sizes
    assert small.kernel_rank == max(1, round(scale * min(inputs, outputs)))


def as_matrices(kind, kernel):
    """The matrices of a kernel, written from the paper."""
    if kind == "Conv2D":  # Of (out * height) by (in * width); transposed here.
        height, width, inputs, outputs = kernel.shape
        matrix = np.zeros((width * inputs, height * outputs))
        for y, x, i, o in np.ndindex(*kernel.shape):
            matrix[x * inputs + i, y * outputs + o] = kernel[y, x, i, o]
        return matrix
    return kernel


@pytest.mark.parametrize(
    ("kind", "arguments", "shape"),
    [
        ("Dense", {"units": 12}, (9,)),
        ("Conv2D", {"filters": 6, "kernel_size": (3, 2), "padding": "same"}, (8, 8, 4)),
    ],
)
def test_spectral_factors_are_the_best_and_balanced(kind, arguments, shape):
    keras.utils.set_random_seed(3)
    small = getattr(factorized, kind)(**arguments, rank=3)
    small.build((None, *shape))
    dense = getattr(keras.layers, kind)(**arguments)
    dense.build((None, *shape))
    small.set_kernel(dense.kernel.numpy())
    matrix = as_matrices(kind, dense.kernel.numpy())
    left, singular, right = np.linalg.svd(matrix)
    first, second = (factor.numpy() for factor in small.factors())
    np.testing.assert_allclose(
        first @ second, left[:, :3] * singular[:3] @ right[:3], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(first.T @ first, np.diag(singular[:3]), atol=1e-5)
    np.testing.assert_allclose(second @ second.T, np.diag(singular[:3]), atol=1e-5)
    nuclear = np.linalg.norm(first @ second, "nuc")
    halves = (np.sum(first**2) + np.sum(second**2)) / 2
    np.testing.assert_allclose(halves, nuclear, rtol=1e-5)


def test_a_drawn_layer_has_the_factors_of_one_drawn_kernel():
    keras.utils.set_random_seed(0)
    small = factorized.Dense(8, scale=1.0, kernel_initializer=keras.initializers.HeNormal(seed=4))
    small.build((None, 20))
    drawn = keras.initializers.HeNormal(seed=4)((20, 8), "float32")
    np.testing.assert_allclose(small.product(), drawn, atol=1e-6)


@some
@given(layers(), st.floats(0.1, 1))
def test_the_decay_and_its_gradient(case, scale):
    """`decay / 2 ||U V||^2`, with gradients `decay U (V V^T)` and `decay (U^T U) V`."""
    _, small, _ = pair(case, scale=scale, decay=0.3)
    kernels = [small.first.kernel, small.second.kernel]
    with tf.GradientTape() as tape:
        (loss,) = small.losses
    found = tape.gradient(loss, kernels)
    first, second = (factor.numpy().astype(float) for factor in small.factors())
    np.testing.assert_allclose(loss, 0.15 * np.sum((first @ second) ** 2), rtol=1e-4)
    turned = [np.swapaxes(each, -1, -2) for each in (first, second)]
    expected = 0.3 * first @ (second @ turned[1]), 0.3 * (turned[0] @ first) @ second
    for number, (gradient, value) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(small.factor(number, gradient), value, rtol=1e-3, atol=1e-5)


def test_attention_decays_the_products_of_its_projections():
    rng = np.random.default_rng(0)
    layer = factorized.MultiHeadAttention(2, 3, value_dim=4, decay=0.5, use_bias=False)
    x = values(rng, 2, 5, 7)
    plain = keras.layers.MultiHeadAttention(2, 3, value_dim=4, use_bias=False)
    before = plain(x, x)
    layer(x, x)
    layer.set_weights(plain.get_weights())
    query, key, value, output = (np.array(w) for w in plain.get_weights())
    expected = [0.0, 0.0]
    for head in range(2):
        expected[0] += np.sum((query[:, head] @ key[:, head].T) ** 2)
        expected[1] += np.sum((value[:, head] @ output[head]) ** 2)
    np.testing.assert_allclose(np.sort(layer.losses), np.sort(0.25 * np.array(expected)), rtol=1e-5)
    layer.balance()
    assert not np.allclose(layer.query_dense.kernel, query)
    np.testing.assert_allclose(layer(x, x), before, rtol=1e-4, atol=1e-5)


def network():
    """A model with a layer of each kind, one of them in a nested model."""
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, name="stem")(inputs)
    x = keras.layers.Conv2D(16, (3, 5), strides=2, padding="same", name="conv")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Reshape((25, 16))(x)
    x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 4, name="mha")(x, x)])
    x = keras.layers.EinsumDense("abc,dec->abde", (25, 4, 6), bias_axes="de", name="einsum")(x)
    hidden = keras.layers.Dense(40, activation="gelu", name="hidden")
    x = keras.Sequential([keras.layers.Flatten(), hidden], name="nested")(x)
    return keras.Model(inputs, keras.layers.Dense(5, name="head", dtype="float32")(x))


def factorized_layers(model):
    return [x for x in model._flatten_layers() if type(x).__module__.startswith("tf_rigl.factor")]


PICTURES = np.random.default_rng(0).normal(size=(6, 12, 12, 3)).astype("float32")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_model_of_full_rank_has_the_same_outputs(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = network()
        small = factorized.factorize(model, scale=1.0, decay=1e-3)
        assert [x.name for x in factorized_layers(small)] == ["conv", "mha", "einsum", "hidden"]
        assert len(small.losses) == 5
        close = {"rtol": 1e-4, "atol": 1e-4} if policy == "float32" else {"rtol": 0.05, "atol": 0.1}
        np.testing.assert_allclose(small(PICTURES), model(PICTURES), **close)
        merged = factorized.merge(small)
        assert not factorized_layers(merged)
        assert merged.count_params() == model.count_params()
        np.testing.assert_allclose(merged(PICTURES), model(PICTURES), **close)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("parameters", [0.9, 0.3, 0.1])
def test_the_number_of_parameters_is_met(parameters):
    model = network()
    kernels = ("conv", "einsum", "hidden")
    whole = sum(np.prod(w.shape) for w in model.weights if w.path.split("/")[-2] in kernels)
    small = factorized.factorize(model, parameters=parameters)
    layers = [layer for layer in factorized_layers(small) if layer.name in kernels]
    found = sum(int(np.prod(k.shape)) for x in layers for k in (x.first.kernel, x.second.kernel))
    assert found <= parameters * whole
    # One rank more in each layer would be too many.
    assert found + sum(sum(layer.sizes[1:]) for layer in layers) > parameters * whole


@pytest.mark.parametrize(("kwargs", "names"), [
    ({"ends": True}, ["stem", "conv", "einsum", "hidden", "head"]),
    ({"exclude": ["hidden"]}, ["conv", "einsum"]),
])  # fmt: skip
def test_which_layers_are_factorized(kwargs, names):
    small = factorized.factorize(network(), scale=0.5, **kwargs)
    assert [layer.name for layer in factorized_layers(small)] == names


def trained(model, **kwargs):
    model.compile("adam", "mse", **kwargs)
    model.fit(PICTURES, np.zeros((6, 5)), epochs=3, verbose=0)
    return model


@pytest.mark.parametrize("jit", [False, True])
def test_it_trains_saves_merges_and_exports(jit, tmp_path):
    small = trained(factorized.factorize(network(), scale=0.2, decay=1e-3), jit_compile=jit)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded(PICTURES), small(PICTURES))
    assert [float(loss) for loss in loaded.losses] == [float(loss) for loss in small.losses]
    merged = factorized.merge(small)
    np.testing.assert_allclose(merged(PICTURES), small(PICTURES), rtol=1e-4, atol=1e-5)
    assert merged.count_params() == small.count_params()
    merged.save(tmp_path / "merged.keras")
    info = tf_rigl.export_tflite(merged, tmp_path / "merged.tflite")
    assert info.max_abs_error < 1e-4
    # The merged file needs Keras alone.
    code = (
        f"import keras, numpy as np\nx = np.load({str(tmp_path / 'x.npy')!r})\n"
        f"for name in ('merged', 'small'):\n"
        f"    y = keras.models.load_model({str(tmp_path)!r} + f'/{{name}}.keras')(x)\n"
        f"    np.save({str(tmp_path)!r} + f'/{{name}}.npy', y)\n"
        f"    import tf_rigl\n"
    )
    np.save(tmp_path / "x.npy", PICTURES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, model in (("small", small), ("merged", merged)):
        close = {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), model(PICTURES), **close)


def test_factors_can_be_sparse():
    small = factorized.factorize(network(), scale=0.5, decay=1e-3)
    method = tf_rigl.methods.RigL(update_interval=2, end_step=100)
    sparse = trained(tf_rigl.sparsify(small, method, sparsity=0.5, seed=0))
    assert {"conv/first/kernel", "nested/hidden/second/kernel"} <= set(sparse.masks)
    assert abs(sparse.sparsity - 0.5) < 0.01
    stripped = tf_rigl.strip(sparse)
    np.testing.assert_allclose(stripped(PICTURES), sparse(PICTURES), atol=1e-6)
    np.testing.assert_allclose(factorized.merge(stripped)(PICTURES), sparse(PICTURES), atol=1e-5)


def test_spectral_factors_begin_where_the_model_ended_and_drawn_ones_do_not():
    model = network()
    spectral = factorized.factorize(model, scale=0.9)
    drawn = factorized.factorize(model, scale=0.9, initialization="layer")
    kernel = model.get_layer("conv").kernel.numpy()
    near, far = (
        np.abs(each.get_layer("conv").product() - kernel).max() for each in (spectral, drawn)
    )
    assert near < 0.5 * far


def test_a_layer_comes_back_from_its_configuration():
    layer = factorized.Conv2D(
        8, 3, scale=0.5, decay=0.1, activation="relu", dilation_rate=2, initialization="layer"
    )
    config = layer.get_config()
    copy = factorized.Conv2D.from_config(json.loads(json.dumps(config)))
    assert copy.get_config() == config
    assert (copy.scale, copy.decay, copy.initialization) == (0.5, 0.1, "layer")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: factorized.Dense(4), "Exactly one of the arguments `rank` and `scale`"),
        (lambda: factorized.Dense(4, rank=1, scale=1.0), "Exactly one of the arguments `rank`"),
        (lambda: factorized.Dense(4, rank=0), "`rank` must be an integer of at least 1"),
        (lambda: factorized.Dense(4, scale=0), "`scale` must be above 0"),
        (lambda: factorized.Dense(4, scale=1.5), "`scale`"),
        (lambda: factorized.Dense(4, rank=5).build((None, 9)), "`rank` must be at most 4"),
        (lambda: factorized.Dense(4, rank=1, decay=-1), "`decay`"),
        (lambda: factorized.Dense(4, rank=1, initialization="svd"), "`initialization` must be one"),
        (
            lambda: factorized.Dense(4, rank=1, decay=0.1, kernel_regularizer="l2"),
            "Only one of the arguments `decay` and `kernel_regularizer`",
        ),
        (
            lambda: factorized.Dense(4, rank=1, kernel_constraint="non_neg"),
            "`kernel_constraint` must be None",
        ),
        (lambda: factorized.Conv2D(4, 3, groups=2, rank=1), "`groups` must be 1"),
        (lambda: factorized.EinsumDense("ab,b->ab", (5,), rank=1), "`equation` must sum over"),
        (lambda: factorized.MultiHeadAttention(2, 3, decay=-1), "`decay`"),
        (lambda: factorized.factorize(network()), "Exactly one of the arguments `scale`"),
        (lambda: factorized.factorize(network(), scale=1, parameters=0.5), "Exactly one of"),
        (lambda: factorized.factorize(network(), scale=2.0), "`scale`"),
        (lambda: factorized.factorize(network(), parameters=1.5), "`parameters`"),
        (lambda: factorized.factorize(network(), parameters=1e-4), "`parameters` must be at least"),
        (lambda: factorized.factorize(network(), scale=0.5, exclude=["hiden"]), "`exclude` must"),
        (lambda: factorized.factorize("model", scale=0.5), "`model` must be a built graph"),
        (
            lambda: factorized.factorize(tf_rigl.sparsify(network()), scale=0.5),
            "factorize it first, then sparsify",
        ),
        (
            lambda: factorized.factorize(
                keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), scale=0.5
            ),
            "must have layers of Dense",
        ),
        (lambda: factorized.merge(network()), "must be a graph with factorized layers"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
