"""`train_step` called by hand, and private names that a user's subclass may have as well."""

import keras
import numpy as np

import tf_rigl
from tests.helpers import compiled, mlp, random_data, sparsify


def batch():
    x, y = random_data(batches=1)
    return keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)


def test_a_step_by_hand_uses_the_optimizer_of_the_last_compile():
    model = compiled(sparsify(mlp()), keras.optimizers.SGD(0.0), run_eagerly=True)
    model.fit(*random_data(batches=2), verbose=0)
    before = [w.numpy() for w in model.trainable_weights]
    compiled(model, keras.optimizers.SGD(0.1), run_eagerly=True)
    model.train_step(batch())
    assert int(model.optimizer.iterations) == 1
    after = [w.numpy() for w in model.trainable_weights]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_a_step_by_hand_leaves_out_what_was_frozen_since():
    model = compiled(sparsify(mlp()), keras.optimizers.SGD(0.1), run_eagerly=True)
    model.fit(*random_data(batches=2), verbose=0)
    hidden, head = model.get_layer("hidden"), model.get_layer("head")
    hidden.trainable = False
    compiled(model, keras.optimizers.SGD(0.1), run_eagerly=True)
    before = hidden.kernel.numpy(), head.kernel.numpy()
    model.train_step(batch())
    np.testing.assert_array_equal(hidden.kernel.numpy(), before[0])
    assert (head.kernel.numpy() != before[1]).any()


class Own(tf_rigl.SparseModel):
    """A subclass with helpers of the names that people give them."""

    def __init__(self):
        super().__init__(method="static")
        self.hidden = tf_rigl.MaskedLayer(keras.layers.Dense(8), sparsity=0.5, seed=0)
        self.head = keras.layers.Dense(3)

    def _forward(self, x, training=False):
        return self.head(self.hidden(x))

    def _loop(self, x):
        return x

    def call(self, x, training=False):
        return self._forward(self._loop(x), training=training)


def test_a_subclass_may_have_helpers_of_common_names():
    model = compiled(Own())
    x, y = random_data((16,), batches=2)
    model.fit(x, y % 3, verbose=0)
    assert model.step > 0


class Weighted(keras.layers.Layer):
    """A layer whose attributes have names that the library asks block-sparse layers for."""

    def build(self, shape):
        self.sparse_weight = self.add_weight(shape=(shape[-1],), name="sparse_weight")
        self.stored = self.add_weight(shape=(shape[-1],), name="stored")

    def call(self, x):
        return x * self.sparse_weight + self.stored


def test_a_layer_may_have_attributes_of_any_name():
    layers = [keras.Input((16,)), Weighted(), keras.layers.Dense(8), keras.layers.Dense(3)]
    sparse = compiled(tf_rigl.sparsify(keras.Sequential(layers), "static", 0.5, seed=0))
    x, y = random_data((16,), batches=2)
    sparse.fit(x, y % 3, verbose=0)
    assert tf_rigl.report(sparse).sparsity > 0.4
