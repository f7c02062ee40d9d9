"""The methods since RigL where optimizers, replicas and patterns are not the usual ones."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import compiled, mlp, random_data
from tf_rigl.weights import ends

ROOT = pathlib.Path(__file__).parents[2]


@keras.saving.register_keras_serializable(package="tests")
class TwoOptimizers(keras.Model):
    """TwoOptimizers networks, each with an optimizer of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [mlp(), mlp()]

    def build(self, input_shape):
        for part in self.parts:
            part.build(input_shape)
        self.built = True

    def call(self, x):
        return self.parts[0](x) + self.parts[1](x)

    def compile(self, **kwargs):
        super().compile(**kwargs)
        self.optimizers = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)]

    def train_step(self, data):
        x, y = data
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, part(x, training=True))
            weights = part.trainable_weights
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_granet_prunes_each_network_of_an_own_train_step(initial):
    keras.utils.set_random_seed(0)
    x, y = random_data(batches=4)
    model = TwoOptimizers()
    model(x[:1])
    method = tf_rigl.methods.GraNet(update_interval=2, end_step=20, initial_sparsity=initial)
    sparse = tf_rigl.sparsify(model, method, 0.8, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sparse.compile(optimizer="sgd", loss=loss)
    sparse.fit(x, y, batch_size=16, epochs=12, verbose=0)
    assert sparse.sparsity == pytest.approx(0.8, abs=0.01)
    counts = [int(np.sum(mask)) for mask in sparse.masks.values()]
    half = len(counts) // 2
    first, second = sum(counts[:half]), sum(counts[half:])
    assert 0.6 < first / second < 1.7, counts  # Each update may round by one.


DECAY = """
import sys, keras, numpy as np, tensorflow as tf
replicas, scaling = int(sys.argv[1]), sys.argv[2]
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * replicas
)
import tf_rigl
strategy = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(replicas)])
with strategy.scope():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, use_bias=False)])
    method = tf_rigl.methods.SRSTE(decay=0.1)
    sparse = tf_rigl.sparsify(model, method, 0.5, "uniform_all", seed=0)
    optimizer = keras.optimizers.SGD(0.5, loss_scale_factor=128 if scaling == "factor" else None)
    if scaling == "dynamic":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024)
    sparse.compile(optimizer, "mse")
(item,) = sparse.masked_weights
before, unused = item.state["dense"].numpy(), ~np.asarray(item.mask)
sparse.fit(np.zeros((8, 8), "float32"), np.zeros((8, 6), "float32"), batch_size=8, verbose=0)
after = item.state["dense"].numpy()
np.testing.assert_allclose(after[~unused], before[~unused])
np.testing.assert_allclose(after[unused], 0.95 * before[unused], rtol=1e-5)
"""


@pytest.mark.parametrize(
    ("replicas", "scaling"), [(1, "none"), (2, "none"), (1, "factor"), (2, "dynamic")]
)
def test_the_decay_of_srste_counts_once(replicas, scaling):
    """Neither replicas nor the scale of the loss change what decays."""
    command = [sys.executable, "-c", DECAY, str(replicas), scaling]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_soft_mest_refuses_a_constant_fan_in():
    method = tf_rigl.methods.MEST(soft=True)
    with pytest.raises(ValueError, match="must not have a constant fan-in"):
        tf_rigl.sparsify(mlp(), method, 0.5, pattern="constant_fan_in")
    hard = tf_rigl.sparsify(mlp(), tf_rigl.methods.MEST(), 0.5, pattern="constant_fan_in")
    assert hard.sparsity == pytest.approx(0.5, abs=0.01)


def test_soft_mest_ends_at_its_target_whatever_the_interval():
    x, y = random_data(batches=10)
    method = tf_rigl.methods.MEST(update_interval=5, end_step=9, soft=True)
    sparse = compiled(tf_rigl.sparsify(mlp(), method, 0.5, "uniform_all", seed=0))
    sparse.fit(x, y, batch_size=len(x) // 10, verbose=0)
    assert sparse.step == 10
    assert sparse.sparsity == pytest.approx(0.5, abs=0.005)


def test_srigl_keeps_most_outputs_at_high_sparsity():
    """The threshold is a part of the entries that an output has, not of all its inputs."""
    inputs = keras.Input((200,))
    x = keras.layers.Dense(60, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(x))
    method = tf_rigl.methods.SRigL(update_interval=2, end_step=8)
    sparse = tf_rigl.sparsify(model, method, 0.97, "uniform_all", seed=0)
    sparse.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    sparse.fit(rng.normal(size=(160, 200)), rng.integers(4, size=160), 16, verbose=0)
    hidden = np.asarray(next(iter(sparse.masks.values())))
    assert np.count_nonzero(hidden.any(axis=0)) > 30


@pytest.mark.parametrize("method", ["ste", "sr_ste"])
def test_regularizers_of_masked_weights_count(method):
    """The optimizer trains dense weights, but the loss is that of the masked ones."""

    def make():
        keras.utils.set_random_seed(0)
        regularizer = keras.regularizers.L2(0.5)
        layers = [keras.layers.Dense(8, use_bias=False, kernel_regularizer=regularizer)]
        return keras.Sequential([keras.Input((8,)), *layers])

    sparse = tf_rigl.sparsify(make(), method, 0.5, "uniform_all", seed=0)
    (item,) = sparse.masked_weights
    expected = 0.5 * np.sum(np.square(item.weight.numpy()))
    np.testing.assert_allclose(sum(sparse.losses), expected, rtol=1e-5)
    sparse.compile(keras.optimizers.SGD(0.1), "mse")
    dense, used = item.state["dense"].numpy(), np.asarray(item.mask)
    x = np.zeros((8, 8), "float32")
    history = sparse.fit(x, x, batch_size=8, verbose=0).history["loss"]
    np.testing.assert_allclose(history[0], expected, rtol=1e-5)
    after = item.state["dense"].numpy()
    np.testing.assert_allclose(after[used], 0.9 * dense[used], rtol=1e-4)


def test_srigl_keeps_the_outputs_of_all_heads():
    inputs = keras.Input((60,))
    x = keras.layers.Dense(40, activation="relu", name="hidden")(inputs)
    neck = keras.Sequential([keras.Input((40,)), keras.layers.Dense(30, name="neck")])(x)
    main = keras.layers.Softmax(name="softmax")(keras.layers.Dense(10, name="main")(neck))
    aux = keras.layers.Dense(5, name="aux")(keras.layers.BatchNormalization()(x))
    aux = keras.ops.add(2 * aux, 1.0)
    model = keras.Model(inputs, {"main": main, "aux": aux})
    method = tf_rigl.methods.SRigL(update_interval=2, end_step=8, gamma=1.0)
    sparse = tf_rigl.sparsify(model, method, 0.8, "uniform_all", seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sparse.compile("sgd", {"main": "sparse_categorical_crossentropy", "aux": loss})
    rng = np.random.default_rng(0)
    labels = {"main": rng.integers(10, size=160), "aux": rng.integers(5, size=160)}
    sparse.fit(rng.normal(size=(160, 60)), labels, 16, verbose=0)
    left = {
        item.path.split("/")[-2]: np.count_nonzero(item.mask.numpy().any(axis=0))
        for item in sparse.masked_weights
    }
    assert (left["main"], left["aux"]) == (10, 5)
    assert left["hidden"] < 40
    assert left["neck"] < 30
    marked = ends.marked(sparse, sparse.masked_weights)
    assert {item.path.split("/")[-2] for item in marked if item.gives_output} == {"aux", "main"}


def test_granet_that_cannot_reach_its_target_is_told():
    with pytest.raises(ValueError, match="`prune_end` must not be after `end_step`"):
        tf_rigl.methods.GraNet(end_step=0.3)
    planned = tf_rigl.plan(mlp(), 0.3)
    with pytest.raises(ValueError, match="`report` must be of a sparsity of at least 0"):
        tf_rigl.train_flops(planned, "granet", steps=100)


def test_grasp_refuses_an_own_train_step_at_once():
    x, _ = random_data(batches=1)
    model = TwoOptimizers()
    model(x)
    with pytest.raises(ValueError, match="differentiates the loss twice"):
        tf_rigl.sparsify(model, "grasp", 0.8)
