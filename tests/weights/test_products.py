"""Which variables of custom layers are found to be kernels, by what the layer does."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import CLASSES, Experts, compiled, fit, random_data, sparsify, uniform
from tf_rigl import maskable
from tf_rigl.weights import products

k, ops = keras.layers, keras.ops


class Own(k.Layer):
    """A layer with variables of given shapes, and a function of itself and the input."""

    def __init__(self, use, **shapes):
        super().__init__(name="own")
        self.use, self.shapes = use, shapes

    def build(self, input_shape):
        for name, shape in self.shapes.items():
            setattr(self, name, self.add_weight(shape=shape, name=name))

    def call(self, x):
        return self.use(self, x)


def weights_of(layer, shape, dtype="float32"):
    """The names of the maskable weights of a layer in a model."""
    model = keras.Sequential([keras.Input(shape, dtype=dtype), layer])
    return [found.path for found in maskable.find(model, include_self=False)]


@tf.function
def _compiled_product(x, w):
    return x @ w


SEQUENCE, IMAGE = (5, 6), (7, 7, 3)
MATRIX = {"w": (6, 8)}
# Name: shape of the input, shapes of the variables, the function.
KERNELS = {
    "matmul": (SEQUENCE, MATRIX, lambda own, x: x @ own.w),
    "a vector": ((6,), MATRIX, lambda own, x: ops.matmul(x, own.w)),
    "transposed": (SEQUENCE, {"w": (8, 6)}, lambda own, x: ops.matmul(x, ops.transpose(own.w))),
    "on the left": (SEQUENCE, {"w": (4, 5)}, lambda own, x: ops.matmul(own.w, x)),
    "tensordot": (SEQUENCE, {"w": (5, 6, 4)}, lambda own, x: ops.tensordot(x, own.w, 2)),
    "einsum": (SEQUENCE, {"w": (3, 6, 8)}, lambda own, x: ops.einsum("btd,edh->beth", x, own.w)),
    "cast": (SEQUENCE, MATRIX, lambda own, x: ops.cast(x, "float16") @ ops.cast(own.w, "float16")),
    "a part": (
        SEQUENCE,
        MATRIX,
        lambda own, x: x @ own.w[:, :4] + x @ ops.split(own.w, 2, axis=1)[1],
    ),
    "scaled": (
        SEQUENCE,
        {**MATRIX, "scale": ()},
        lambda own, x: x @ (own.w * own.scale) + x @ (2 * own.w),
    ),
    "raised": (SEQUENCE, MATRIX, lambda own, x: ops.relu(x) @ ops.expand_dims(own.w, 0)),
    "convolution": (IMAGE, {"w": (3, 3, 3, 4)}, lambda own, x: ops.conv(x, own.w)),
    "a convolution back": (
        IMAGE,
        {"w": (3, 3, 4, 3)},
        lambda own, x: ops.conv_transpose(x, own.w, strides=2),
    ),
}
OTHERS = {
    "added": (SEQUENCE, {"w": SEQUENCE}, lambda own, x: x + own.w),
    "added, then multiplied": (
        SEQUENCE,
        {"w": SEQUENCE},
        lambda own, x: ops.matmul(x + own.w, ops.transpose(x, (0, 2, 1))),
    ),
    "in front": (
        SEQUENCE,
        {"w": (1, 6)},
        lambda own, x: ops.concatenate([ops.broadcast_to(own.w, (1, 1, 6)), x[:1]], axis=1),
    ),
    "a factor": (SEQUENCE, {"w": SEQUENCE}, lambda own, x: x * own.w),
    "looked up": (SEQUENCE, {"w": (9, 6)}, lambda own, x: ops.take(own.w, ops.cast(x, "int32"), 0)),
    "standardised": (SEQUENCE, MATRIX, lambda own, x: x @ (own.w - ops.mean(own.w, 0))),
    "normalised": (SEQUENCE, MATRIX, lambda own, x: x @ (own.w / ops.norm(own.w))),
    "twice": (SEQUENCE, MATRIX, lambda own, x: x @ own.w + ops.sum(own.w)),
    "a codebook": (SEQUENCE, MATRIX, lambda own, x: ops.sum(own.w**2, 0) - 2 * x @ own.w),
    "without data": (
        SEQUENCE,
        {"w": (4, 7), "v": (7, 6)},
        lambda own, x: ops.matmul(x, ops.transpose(own.w @ own.v)),
    ),
    "of each channel": (IMAGE, {"w": (3, 3, 3, 1)}, lambda own, x: ops.depthwise_conv(x, own.w)),
    "an input": (
        IMAGE,
        {"w": (1, 4, 4, 3), "v": (1, 1, 3, 4)},
        lambda own, x: ops.conv(own.w, own.v) + x[:1, :4, :4, :1],
    ),
    "of places": (SEQUENCE, {"relative": (6, 9)}, lambda own, x: x @ own.relative),
    "not used": (SEQUENCE, MATRIX, lambda own, x: ops.relu(x)),
    "in a function": (SEQUENCE, MATRIX, lambda own, x: _compiled_product(x, own.w.value)),
    "a vector": (SEQUENCE, {"w": (6,)}, lambda own, x: ops.matmul(x, own.w)),
}


@pytest.mark.parametrize("case", KERNELS)
def test_kernels_of_products_are_found(case):
    shape, shapes, use = KERNELS[case]
    assert weights_of(Own(use, **shapes), shape) == ["own/w"]


@pytest.mark.parametrize("case", OTHERS)
def test_what_a_zero_would_change_is_left_alone(case):
    shape, shapes, use = OTHERS[case]
    assert weights_of(Own(use, **shapes), shape) == []


class Cell(k.Layer):
    """A recurrent cell with kernels of its own."""

    def __init__(self, units):
        super().__init__(name="cell")
        self.state_size = self.output_size = units

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], self.state_size), name="w")
        self.u = self.add_weight(shape=(self.state_size, self.state_size), name="u")

    def call(self, x, states):
        state = ops.tanh(x @ self.w + states[0] @ self.u)
        return state, [state]


class Gated(k.Dense):
    """A known layer with a matrix more."""

    def build(self, input_shape):
        super().build(input_shape)
        self.gate = self.add_weight(shape=self.kernel.shape, name="gate")

    def call(self, x):
        return super().call(x) * ops.sigmoid(x @ self.gate)


def test_a_subclass_of_a_known_layer_may_have_kernels_more():
    layer = Gated(8, name="gated")
    assert weights_of(layer, SEQUENCE) == ["gated/kernel", "gated/gate"]
    model = keras.Sequential([keras.Input(SEQUENCE), layer])
    report = tf_rigl.report(model)
    assert [(row.name, row.flops) for row in report.layers] == [
        ("gated/kernel", 2 * 5 * 6 * 8),
        ("gated/gate", 2 * 5 * 6 * 8),
    ]


def test_cells_of_recurrent_layers():
    assert weights_of(k.RNN(Cell(4), name="rnn"), SEQUENCE) == ["rnn/cell/w", "rnn/cell/u"]


class Subclassed(keras.Model):
    """Experts after tokens, and a layer with two inputs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens = k.Embedding(9, 6, name="tokens")
        self.experts = Experts(4, name="experts")
        self.head = k.Dense(CLASSES, name="head")

    def call(self, x):
        return self.head(self.experts(self.tokens(x)))


def test_models_without_a_graph_built_or_not():
    for is_built in (True, False):
        model = Subclassed()
        x = np.zeros((1, 5), "int32")
        if is_built:
            model(x)
        sparse = sparsify(model)
        sparse(x)
        found = [item.path for item in sparse.masked_weights]
        assert found == ["tokens/embeddings", "experts/up", "experts/down", "head/kernel"]


def test_a_model_that_cannot_be_called_has_its_layers_called():
    class Pair(keras.Model):
        """Like a GAN: two networks and no `call`."""

        def __init__(self):
            super().__init__()
            one, two = (
                keras.Sequential([keras.Input(SEQUENCE), Experts(4, name="e")], name=name)
                for name in ("one", "two")
            )
            self.one, self.two = one, two

    found = [each.path for each in maskable.find(Pair(), include_self=False)]
    assert found == ["one/e/up", "one/e/down", "two/e/up", "two/e/down"]


def test_a_call_that_fails_leaves_everything_as_it_is():
    class Failing(Own):
        """Needs an argument that nobody knows."""

        def call(self, x, secret):
            self.seen = secret
            return x @ self.w

    layer = Failing(None, **MATRIX)
    layer.build((None, 6))
    model = keras.Sequential([keras.Input((6,)), k.Dense(6, name="dense")])
    model.extra = layer
    before = dict(vars(layer))
    assert [each.path for each in maskable.find(model, include_self=False)] == ["dense/kernel"]
    assert vars(layer) == before


def test_a_wrapped_layer_names_its_weights():
    """Files of layers wrapped by hand do not say which weights have masks."""
    with pytest.raises(ValueError, match="must have maskable weights"):
        tf_rigl.MaskedLayer(Experts(4))(np.zeros((1, *SEQUENCE), "float32"))


def test_models_are_traced_once_and_not_kept(monkeypatch):
    calls = []
    trace = products.tracing.trace
    monkeypatch.setattr(products.tracing, "trace", lambda *a: calls.append(1) or trace(*a))
    model = keras.Sequential([keras.Input(SEQUENCE), Experts(4)])
    for _ in range(3):
        maskable.find(model)
    assert len(calls) == 1
    gone = weakref.ref(model.layers[0])
    keras.backend.clear_session()
    del model
    gc.collect()
    assert gone() is None


def test_experts_train_sparse_and_load(tmp_path):
    inputs = keras.Input(SEQUENCE)
    x = k.Flatten()(Experts(4, name="experts")(inputs))
    sparse = compiled(sparsify(keras.Model(inputs, k.Dense(CLASSES, name="head")(x))))
    before = sparse.masks
    x, y = random_data(SEQUENCE)
    fit(sparse, x, y)
    assert all((sparse.masks[path] != before[path]).any() for path in before)
    assert np.count_nonzero(sparse.get_layer("experts").place) == 5 * 6
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert list(loaded.masks) == list(sparse.masks) == ["experts/up", "experts/down", "head/kernel"]
    np.testing.assert_array_equal(loaded(x), sparse(x))
    planned = tf_rigl.plan(tf_rigl.strip(sparse), 0.5, uniform)
    assert [row.name for row in planned.layers if row.masked] == list(sparse.masks)
