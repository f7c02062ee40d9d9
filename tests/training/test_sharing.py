"""Weights that two models, or two optimizers of one model, train in turn."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    check_invariants,
    compiled,
    fit,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tests.training.test_slots import make
from tf_rigl import MaskedLayer, SparseModel, block_sparse, methods, schedules
from tf_rigl.training.slots import find_slots


def pair(make_layer, method=rigl):
    """Two models with a layer in common, each with a head of its own."""
    shared, inputs = make_layer(), keras.Input((FEATURES,))
    x = shared(inputs)
    models = [
        SparseModel(inputs, keras.layers.Dense(CLASSES, name=name)(x), method=method(), seed=n)
        for n, name in enumerate(["one", "other"])
    ]
    return shared, models


def masked():
    return MaskedLayer(keras.layers.Dense(8, name="shared"), sparsity=0.5, seed=0)


def blocks():
    return block_sparse.Dense(8, block_size=2, density=0.4, seed=0, name="shared")


class Follower:
    """Says which entries of a weight have been trained without a break by each model."""

    def __init__(self, models):
        self.models = models
        self.weights = [model.masked_weights[0] for model in models]
        self.mask = self.weights[0].mask.numpy()

    def check(self):
        """After a step: wherever the mask has changed, all slots are empty."""
        new = self.weights[0].mask.numpy()
        stay, self.mask = self.mask & new, new
        if stay.sum() == new.sum():
            return 0
        for model, weight in zip(self.models, self.weights, strict=True):
            slots = find_slots(model.optimizer)[id(weight.weight)]
            assert slots
            for slot in slots:
                value = weight.dense(slot.variable).numpy()
                empty = weight.dense().numpy() if slot.empty is None else slot.empty
                expected = np.where(new, empty, 0 if slot.empty is None else slot.empty)
                if weight.compute == "sparse":
                    expected = np.where(new, expected, 0)
                np.testing.assert_array_equal(value[~stay], expected.astype(value.dtype)[~stay])
        return 1


@pytest.mark.parametrize("name", ["Adam", "Adagrad", "use_ema"])
@pytest.mark.parametrize("layer", [masked, blocks])
def test_models_that_train_a_layer_in_turn(layer, name):
    """Batch by batch; the masks change at the steps of either model."""
    _, models = pair(layer)
    for model in models:
        compiled(model, make(name), run_eagerly=name != "Adam")
    follower, changes = None, 0
    x, y = random_data(batches=10)
    for start in range(0, len(x), BATCH):
        for model in models:
            model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
            if start == 0:
                follower = Follower(models) if model is models[1] else None
                continue
            changes += follower.check()
    assert [model.step for model in models] == [10, 10]
    assert changes == 8
    if layer is masked:
        for model in models:
            check_invariants(model)


def test_two_models_that_prune_a_layer():
    """Each knows how many entries the other has left."""

    def pruning():
        rising = schedules.PolynomialDecay(begin_step=1, end_step=6, frequency=2)
        return methods.MagnitudePruning(rising)

    layer = lambda: MaskedLayer(  # noqa: E731
        keras.layers.Dense(8, name="shared"), sparsity=0.8, seed=0, initial_mask="ones"
    )
    _, models = pair(layer, pruning)
    active, (x, y) = [], random_data(batches=1)
    for model in models:
        compiled(model, keras.optimizers.Adam(), run_eagerly=True)
    for _ in range(8):
        for model in models:
            model.train_on_batch(x, y)
            weight = model.masked_weights[0]
            assert (weight.weight.numpy()[~weight.mask.numpy()] == 0).all()
            active.append(weight.active())
    assert active == sorted(active, reverse=True)
    assert active[-1] == weight.target_active()


def test_a_model_that_goes_back_to_an_earlier_optimizer():
    """Slots of the first one follow the masks that change with the second one."""
    first, second = keras.optimizers.Adam(0.05), keras.optimizers.Adam(0.05)
    model = sparsify(mlp())
    fit(compiled(model, first), *random_data(batches=4))
    kept = model.masks
    own = [(item, find_slots(first)[id(item.weight)]) for item in model.masked_weights]
    follower = lambda: {p: kept[p] & mask for p, mask in model.masks.items()}  # noqa: E731

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kept.update(follower())

    compiled(model, second)
    fit(model, *random_data(batches=6), callbacks=[Keep()])
    regrown = 0
    for item, slots in own:
        gone = ~kept[item.path]
        regrown += (gone & model.masks[item.path]).sum()
        for slot in slots:
            assert (slot.variable.numpy()[gone] == 0).all()
    assert regrown > 0
    fit(compiled(model, first), *random_data(batches=4))


def test_a_functional_model_within_two_others():
    """In alternating calls of `fit`, with one optimizer each."""
    inputs = keras.Input((FEATURES,))
    inner = keras.Sequential([keras.Input((FEATURES,)), masked(), keras.layers.ReLU()])
    models = [
        SparseModel(inputs, keras.layers.Dense(CLASSES)(inner(inputs)), method=rigl(), seed=n)
        for n in range(2)
    ]
    for model in models:
        compiled(model, keras.optimizers.Adam(0.05), run_eagerly=True)
        fit(model, *random_data(batches=1))
    follower = Follower(models)
    for number in range(4):
        fit(models[number % 2], *random_data(batches=2))
        assert follower.check() == 1


class TwoOptimizers(SparseModel):
    """Trains the same weights by two losses, each with an optimizer of its own."""

    def __init__(self):
        super().__init__(method=rigl(), seed=0)
        self.hidden = MaskedLayer(keras.layers.Dense(8), sparsity=0.5, seed=0)
        self.head = keras.layers.Dense(CLASSES)
        self.second = keras.optimizers.Adam(0.05)
        self.share = 1.0  # Of the second loss.

    def call(self, x):
        return self.head(self.hidden(x))

    def train_step(self, data):
        x, y, *_ = data
        for optimizer, share in [(self.optimizer, 1.0), (self.second, self.share)]:
            with tf.GradientTape() as tape:
                loss = share * self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def test_two_optimizers_in_one_step():
    """Masks change where the first one is applied; the slots of the second one follow them."""
    model = compiled(TwoOptimizers(), keras.optimizers.Adam(0.05), run_eagerly=True)
    x, y = random_data(batches=1)
    changes = 0
    for step in range(7):
        model.share = float(step % 2)  # At updates the second optimizer has no gradient.
        before = model.masks if model.built else None
        model.train_on_batch(x, y)
        if before is None:
            continue
        (weight,), (old,), (new,) = model.masked_weights, before.values(), model.masks.values()
        if (old == new).all():
            continue
        changes += 1
        for optimizer in (model.optimizer, model.second):
            for slot in find_slots(optimizer)[id(weight.weight)]:
                assert (slot.variable.numpy()[~(old & new)] == 0).all()
                assert (slot.variable.numpy()[old & new] != 0).any()
    assert changes == 3
