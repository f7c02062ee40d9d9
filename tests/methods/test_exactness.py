"""The library takes the same steps as the papers' algorithms written out in NumPy."""

import functools
import itertools

import keras
import numpy as np
import pytest
from references import pruning_numpy
from references.rigl_numpy import SparseMLP, zeros

import tf_rigl

STEPS = 500
SCHEDULE = {"drop_fraction": 0.3, "update_interval": 5, "end_step": 450}
# The same sparsity in both layers, so that the masks of both move.
UNIFORM = functools.partial(tf_rigl.distributions.uniform, first_layer_dense=False)
LEARNING_RATE = 0.125  # Exact in float32, the type in which Keras keeps it.


def make_model(method, sparsity, seed):
    """A sparse MLP in float64, where rounding cannot make or break a tie."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((20,), dtype="float64"),
            keras.layers.Dense(30, activation="relu", dtype="float64"),
            keras.layers.Dense(5, dtype="float64"),
        ]
    )
    sparse = tf_rigl.sparsify(model, method, sparsity, distribution=UNIFORM, seed=seed)
    sparse.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64"),
    )
    return sparse


def make_reference(sparse):
    """The NumPy model at the point where the library's stands."""
    return SparseMLP(weights_of(sparse), masks_of(sparse), learning_rate=LEARNING_RATE, **SCHEDULE)


def masks_of(sparse):
    return list(sparse.masks.values())


def weights_of(sparse):
    return [v.numpy() for v in sparse.trainable_variables]


def reading_off(sparse):
    """What the library has grown at random: new, as much as asked for, and no more is dropped."""

    def read_off(layer, kept, k):
        mask = masks_of(sparse)[layer]
        assert not np.any(kept & ~mask), "something was dropped that the reference keeps"
        grown = mask & ~kept
        assert np.count_nonzero(grown) == k
        return grown

    return read_off


def make_batches(seed, count=STEPS):
    """Batches of a task that can be learned: the label is a random linear function's."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(20, 5))
    inputs = rng.normal(size=(count, 16, 20))
    return list(zip(inputs, (inputs @ teacher).argmax(axis=-1), strict=True))


@pytest.mark.parametrize(
    ("shape", "sparsity", "zeros"), [((20, 50), 0.5, 500), ((20, 50), 0.9, 900), ((7, 9), 0.8, 50)]
)
def test_a_model_of_one_layer_has_exactly_the_zeros_asked_for(shape, sparsity, zeros):
    """floor(S N), and not one less because of how S was computed."""
    model = keras.Sequential([keras.Input(shape[:1]), keras.layers.Dense(shape[1])])
    sparse = tf_rigl.sparsify(model, sparsity=sparsity, seed=0)
    (mask,) = masks_of(sparse)
    assert np.count_nonzero(~mask) == zeros


@pytest.mark.parametrize(("sparsity", "seed"), [(0.5, 0), (0.9, 1)])
def test_rigl_has_the_masks_of_the_reference_at_every_step(sparsity, seed):
    sparse = make_model(tf_rigl.methods.RigL(**SCHEDULE), sparsity, seed)
    follow(sparse, make_reference(sparse), seed, STEPS)


def test_rigl_under_fit_has_the_masks_of_the_reference_at_every_step():
    sparse = make_model(tf_rigl.methods.RigL(**SCHEDULE), 0.8, seed=2)
    reference = make_reference(sparse)
    batches = make_batches(2, count=100)
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(masks_of(sparse))
    )
    x, y = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    sparse.fit(x, y, batch_size=16, epochs=5, shuffle=False, callbacks=[record], verbose=0)

    assert len(seen) == STEPS
    for step, masks in enumerate(seen):
        reference.train_on_batch(*batches[step % 100])
        for mask, expected in zip(masks, reference.masks, strict=True):
            np.testing.assert_array_equal(mask, expected, err_msg=f"step {step}")


def test_set_drops_what_the_reference_drops_and_grows_as_many():
    sparse = make_model(tf_rigl.methods.SET(**SCHEDULE), 0.8, seed=0)
    reference = make_reference(sparse)

    read_off = reading_off(sparse)
    for x, y in make_batches(0):
        before = masks_of(sparse)
        updates = reference.is_update_step()
        sparse.train_on_batch(x, y)
        reference.train_on_batch(x, y, choose=read_off)
        if not updates:
            np.testing.assert_equal(masks_of(sparse), before)
        for weight, expected in zip(weights_of(sparse), reference.weights, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-9, atol=1e-12)


def test_set_grows_other_entries_at_each_update_step():
    sparse = make_model(tf_rigl.methods.SET(**SCHEDULE), 0.5, seed=0)
    grown = []
    for step, (x, y) in enumerate(make_batches(0, count=21)):
        before = masks_of(sparse)[0]
        sparse.train_on_batch(x, y)
        if step in (5, 10, 15, 20):
            grown.append(masks_of(sparse)[0] & ~before)
    for first, second in itertools.pairwise(grown):
        assert np.any(first != second)


# Variants of RigL, and SNFS.


def follow(sparse, reference, seed, steps):
    """Trains both on the same batches: equal masks at every step, close weights in the end."""
    begun = masks_of(sparse)
    for step, (x, y) in enumerate(make_batches(seed, steps)):
        sparse.train_on_batch(x, y)
        reference.train_on_batch(x, y)
        for mask, expected in zip(masks_of(sparse), reference.masks, strict=True):
            np.testing.assert_array_equal(mask, expected, err_msg=f"step {step}")
    for weight, expected in zip(weights_of(sparse), reference.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-9, atol=1e-12)
    for mask, first in zip(masks_of(sparse), begun, strict=True):
        assert np.any(mask != first), "equal masks say little if none ever moves"


def reference_like(cls, sparse, **kwargs):
    """A NumPy model of a class at the point where the library's stands."""
    return cls(
        weights_of(sparse), masks_of(sparse), learning_rate=LEARNING_RATE, **SCHEDULE, **kwargs
    )


@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.0])
def test_snfs_has_the_masks_and_the_momentum_of_the_reference(momentum):
    sparse = make_model(tf_rigl.methods.SNFS(**SCHEDULE, momentum=momentum), 0.8, seed=0)
    reference = reference_like(pruning_numpy.SnfsMLP, sparse, beta=momentum)
    follow(sparse, reference, seed=0, steps=300)
    states = [item.state["gradient"].numpy() for item in sparse.masked_weights]
    for state, expected in zip(states, reference.momentum[::2], strict=True):
        # `past` is handed over in float32.
        np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batches", [2, 4, 5])
def test_rigl_grows_by_the_mean_gradient_of_the_last_batches(batches):
    method = tf_rigl.methods.RigL(**SCHEDULE, gradient_batches=batches)
    sparse = make_model(method, 0.8, seed=1)
    reference = reference_like(pruning_numpy.AveragingMLP, sparse, batches=batches)
    follow(sparse, reference, seed=1, steps=200)


def test_the_optimizer_goes_first_where_it_is_applied_on_update_steps():
    """By the old mask; then weights drop as it left them, and the batch's gradient grows."""
    method = tf_rigl.methods.RigL(**SCHEDULE, apply_optimizer_on_update=True)
    sparse = make_model(method, 0.8, seed=2)
    follow(sparse, reference_like(pruning_numpy.DescendingMLP, sparse), seed=2, steps=200)


# Pruning.


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_snip_has_the_masks_of_the_reference(scope, batches):
    sparse = make_model(tf_rigl.methods.SNIP(scope=scope, batches=batches), 0.8, seed=3)
    reference = pruning_numpy.SnipMLP(
        weights_of(sparse),
        learning_rate=LEARNING_RATE,
        sparsity=0.8,
        scope=scope,
        batches=batches,
    )
    follow(sparse, reference, seed=3, steps=30)


def floored(entries, sparsity):
    """What all methods keep at the end."""
    return entries - zeros(sparsity, entries)


def rounded(entries, sparsity):
    """What tensorflow-model-optimization keeps."""
    return max(1, round(entries * (1 - sparsity)))


def floored_each(sizes, sparsity):
    """What a global scope keeps on the way to the target, and here at its end as well."""
    return sum(floored(entries, sparsity) for entries in sizes)


def rounded_together(sizes, sparsity):
    """What it keeps where the schedule has an end of its own."""
    return rounded(sum(sizes), sparsity)


# What is to come is a power of two, so that every fraction of it is exact.
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("final", "begin", "length", "frequency"),
    [(0.9, 1, 64, 4), (None, 8, 32, 1), (0.5, 3, 64, 7), (None, 1, 64, 5)],
)
def test_magnitude_pruning_has_the_masks_of_the_reference(scope, final, begin, length, frequency):
    sparsity = 0.8 if final is None else final
    schedule = tf_rigl.schedules.PolynomialDecay(
        final_sparsity=final, begin_step=begin, end_step=begin + length, frequency=frequency
    )
    method = tf_rigl.methods.MagnitudePruning(schedule, scope=scope)
    sparse = make_model(method, sparsity, seed=4)
    reference = pruning_numpy.MagnitudeMLP(
        weights_of(sparse),
        learning_rate=LEARNING_RATE,
        scope=scope,
        count=floored if final is None else rounded,
        count_all=floored_each if final is None else rounded_together,
        frequency=frequency,
        initial=0.0,
        final=sparsity,
        begin=begin,
        end=begin + length,
    )
    follow(sparse, reference, seed=4, steps=80)
