"""`training_step`: loops that users write move masks as `fit` does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    METHODS,
    check_equal_models,
    check_invariants,
    check_pruned,
    mlp,
    random_data,
    rigl,
    sparsify,
)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batches(count=9):
    x, y = random_data(batches=count)
    return [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]


def step_of(sparse, optimizer):
    def step(x, y, scale=1.0):
        with tf.GradientTape() as tape:
            loss = scale * LOSS(y, sparse(x, training=True))
        gradients = tape.gradient(loss, sparse.trainable_variables)
        optimizer.apply(gradients, sparse.trainable_variables)
        return loss

    return step


# What trains other variables than the weights, or differentiates twice, needs the library's step.
OWN_STEP_ONLY = ("edge-popup", "ste", "sr-ste", "grasp", "grasp-global")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OWN_STEP_ONLY])
def test_a_loop_by_hand_equals_fit(name):
    dense = mlp()
    fitted, by_hand = sparsify(dense, METHODS[name]()), sparsify(dense, METHODS[name]())
    fitted.compile(keras.optimizers.Adam(0.01), loss=LOSS)
    x, y = random_data(batches=9)
    fitted.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    optimizer = keras.optimizers.Adam(0.01)
    train = tf_rigl.training_step(by_hand, step_of(by_hand, optimizer), optimizer, steps=9)
    for batch in batches():
        train(*batch)
    check_pruned(by_hand)
    check_equal_models(fitted, by_hand, exact=False)


@pytest.mark.parametrize("form", ["plain", "tf.function", "eager", "jit"])
def test_forms_of_a_step(form):
    sparse, optimizer = sparsify(mlp(), rigl()), keras.optimizers.SGD(0.1, momentum=0.9)
    step = step_of(sparse, optimizer)
    step = tf.function(step) if form == "tf.function" else step
    arguments = {"run_eagerly": form == "eager", "jit_compile": True if form == "jit" else None}
    train = tf_rigl.training_step(sparse, step, optimizer, **arguments)
    before = sparse.masks
    for x, y in batches():
        train(x, y=y, scale=0.5)
    check_invariants(sparse)
    assert any((before[path] != mask).any() for path, mask in sparse.masks.items())
    assert int(optimizer.iterations) == 9 - 4  # Masks change at steps 2, 4, 6 and 8.


def test_block_sparse_weights_get_their_dense_gradient_from_the_tape_of_the_step():
    def made():
        keras.utils.set_random_seed(0)
        return sparsify(mlp(), rigl(), pattern="block_2x2", compute="sparse", sparsity=0.5)

    fitted, by_hand = made(), made()
    assert any(item.compute == "sparse" for item in fitted.masked_weights)
    by_hand.set_weights(fitted.get_weights())
    fitted.compile(keras.optimizers.Adam(0.01), loss=LOSS)
    x, y = random_data(batches=9)
    fitted.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    optimizer = keras.optimizers.Adam(0.01)
    train = tf_rigl.training_step(by_hand, step_of(by_hand, optimizer), optimizer)
    for batch in batches():
        train(*batch)
    for one, other in zip(fitted.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_dense_gradient_of_blocks_is_that_of_the_gradient_applied():
    """Two tapes, and a gradient by the input: one block-sparse layer, three backward passes."""

    def made():
        keras.utils.set_random_seed(0)
        return sparsify(mlp(), rigl(), pattern="block_2x2", compute="sparse", sparsity=0.5)

    results = []
    for noisy in (False, True):
        sparse, optimizer = made(), keras.optimizers.Adam(0.01)
        plain = step_of(sparse, optimizer)

        def step(x, y, sparse=sparse, optimizer=optimizer, plain=plain, noisy=noisy):
            if not noisy:
                return plain(x, y)
            inputs = tf.convert_to_tensor(x)
            with tf.GradientTape(persistent=True) as other:
                other.watch(inputs)
                loss = tf.reduce_sum(sparse(inputs, training=True) ** 2)
            by_input = other.gradient(loss, inputs)
            by_weight = other.gradient(loss, sparse.trainable_variables)
            plain(x, y)
            return by_input, by_weight

        train = tf_rigl.training_step(sparse, step, optimizer)
        for batch in batches():
            train(*batch)
        results.append(sparse.get_weights())
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_replicas_within_the_step():
    devices = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([device.name for device in devices[:1]])
    with strategy.scope():
        sparse, optimizer = sparsify(mlp(), rigl()), keras.optimizers.Adam(0.01)
        step = step_of(sparse, optimizer)
    train = tf_rigl.training_step(
        sparse, lambda x, y: strategy.run(step, args=(x, y)), optimizer, steps=9
    )
    before = sparse.masks
    for batch in batches():
        train(*batch)
    check_invariants(sparse)
    assert any((before[path] != mask).any() for path, mask in sparse.masks.items())


def test_a_loop_and_fit_in_turn():
    sparse, optimizer = sparsify(mlp(), rigl()), keras.optimizers.Adam(0.01)
    train = tf_rigl.training_step(sparse, step_of(sparse, optimizer), optimizer)
    train(*batches()[0])
    sparse.compile("adam", loss=LOSS)
    sparse.fit(*random_data(batches=3), batch_size=BATCH, verbose=0)
    train(*batches()[0])
    assert sparse.step == 5
    check_invariants(sparse)


def test_what_it_refuses():
    sparse, optimizer = sparsify(mlp(), rigl()), keras.optimizers.Adam()
    for arguments, message in [
        ((mlp(), print, optimizer), "`model` must be a `tf_rigl.SparseModel`"),
        ((sparse, None, optimizer), "`step` must be a function"),
        ((sparse, print, "adam"), "`optimizer` must be a `keras.optimizers.Optimizer`"),
        ((sparse, print, []), "`optimizer` must be"),
        ((sparsify(mlp(), "rigl"), print, optimizer), "`end_step` needs"),
        ((sparsify(mlp(), "edge_popup"), print, optimizer), "EdgePopup trains other variables"),
    ]:
        with pytest.raises(ValueError, match=message):
            tf_rigl.training_step(*arguments)
    with pytest.raises(ValueError, match="`steps` must be an integer"):
        tf_rigl.training_step(sparse, print, optimizer, steps=0)
