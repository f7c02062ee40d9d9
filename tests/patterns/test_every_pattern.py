"""What holds for every pattern of `ALL`: units, masks, exact counts, XLA, and training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import BATCH, CLASSES, compiled, equal_masks, random_data, rigl, sparsify
from tests.patterns.test_patterns import ALL
from tf_rigl import maskable

every_pattern = pytest.mark.parametrize("pattern", ALL, ids=repr)

# Layers whose inputs and outputs are not where those of the others are. Few patterns divide them.
LAYERS = {
    "dense": (keras.layers.Dense(6), (20, 6)),
    "convolution": (keras.layers.Conv2D(7, 3), (3, 2, 10, 7)),
    "transposed": (keras.layers.Conv2DTranspose(5, 2), (2, 2, 5, 18)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture(autouse=True)
def fresh_start():
    """Replaces that of conftest.py, which is slow: only one test here makes a model."""


def fitted(pattern, kind):
    """A pattern as it is for a layer (`LiteRT` becomes another), and the shape of the kernel."""
    layer, shape = LAYERS[kind]
    return pattern.fitted(layer, shape, maskable.axes(layer, shape)), shape


def numbers_to_keep(pattern, shape):
    """Few units, a third, as many as a sparse weight can have, and all."""
    units = pattern.units(shape)
    return sorted({1, -(-units // 3), int(units * (1 - pattern.min_sparsity)), units} - {0})


def draw(rng, shape):
    """Scores, some of them equal."""
    return tf.constant(rng.integers(-20, 20, shape), tf.float32)


@every_pattern
@every_layer
def test_each_unit_has_one_score_and_one_entry_of_the_mask(pattern, kind):
    pattern, shape = fitted(pattern, kind)
    units, rng = pattern.units(shape), np.random.default_rng(0)
    assert type(units) is int
    assert pattern.unit_scores(draw(rng, shape)).shape == (units,)
    assert pattern.unit_mask(tf.constant(rng.random(shape) < 0.5)).shape == (units,)


@every_pattern
@every_layer
def test_expand_is_the_inverse_of_unit_mask(pattern, kind):
    pattern, shape = fitted(pattern, kind)
    rng = np.random.default_rng(0)
    for share in (0, 0.1, 0.5, 1):
        units = rng.random(pattern.units(shape)) < share
        mask = pattern.expand(tf.constant(units), shape)
        assert (mask.shape, mask.dtype) == (shape, tf.bool)
        np.testing.assert_array_equal(pattern.unit_mask(mask), units)
        assert pattern.active(mask) == units.sum()


@every_pattern
@every_layer
def test_each_score_is_that_of_its_own_unit(pattern, kind):
    """Where the entries of some units score 1 and all others 0, those units score more."""
    pattern, shape = fitted(pattern, kind)
    units = np.random.default_rng(0).random(pattern.units(shape)) < 0.5
    scores = tf.cast(pattern.expand(tf.constant(units), shape), tf.float32)
    scores = pattern.unit_scores(scores).numpy()
    assert scores[units].min() > scores[~units].max()


@every_pattern
@every_layer
def test_select_keeps_as_many_units_as_are_possible(pattern, kind):
    pattern, shape = fitted(pattern, kind)
    scores = draw(np.random.default_rng(0), shape)
    for count in numbers_to_keep(pattern, shape):
        mask = pattern.select(scores, count)
        assert (mask.shape, mask.dtype) == (shape, tf.bool)
        assert pattern.active(mask) == pattern.possible(shape, count)
        assert_whole(pattern, mask)
    assert not pattern.select(scores, 0).numpy().any()


def assert_whole(pattern, mask):
    """A unit is kept or dropped as a whole."""
    np.testing.assert_array_equal(pattern.expand(pattern.unit_mask(mask), mask.shape), mask)


@every_pattern
@every_layer
def test_what_is_kept_and_what_grows_is_as_much_as_before(pattern, kind):
    pattern, shape = fitted(pattern, kind)
    rng = np.random.default_rng(0)
    some = int(pattern.units(shape) * (1 - pattern.min_sparsity) / 2)
    count = pattern.possible(shape, some)
    mask = pattern.select(draw(rng, shape), count)
    kept = pattern.keep(draw(rng, shape), count // 2, mask)
    grown = pattern.select(draw(rng, shape), count - count // 2, kept=kept)
    assert pattern.active(kept) == count // 2
    assert not (kept & ~mask).numpy().any()
    assert not (kept & grown).numpy().any()
    assert pattern.active(kept | grown) == count


@every_pattern
def test_compiled_by_xla_the_choice_is_the_same(pattern):
    pattern, shape = fitted(pattern, "convolution")
    rng = np.random.default_rng(0)
    scores, others = draw(rng, shape), draw(rng, shape)

    def update(count):
        mask = pattern.select(scores, count)
        kept = pattern.keep(others, count // 2, mask)
        return mask, kept, pattern.select(scores, count - count // 2, kept=kept)

    compiled_update = tf.function(update, jit_compile=True)
    for count in numbers_to_keep(pattern, shape)[:-1]:
        masks = compiled_update(tf.constant(count))
        assert pattern.active(masks[0]) == pattern.possible(shape, count)
        for one, other in zip(masks, update(tf.constant(count)), strict=True):
            np.testing.assert_array_equal(one, other)


@every_pattern
def test_rigl_moves_units_and_their_number_stays(pattern):
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(12, activation="tanh", name="hidden")
    dense = keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(CLASSES)])
    sparsity = max(0.5, pattern.min_sparsity)  # N:M has a least one.
    model = compiled(sparsify(dense, rigl(), sparsity, pattern=pattern), run_eagerly=True)
    before = model.masks
    x, y = random_data((64,), batches=5)
    for start in range(0, len(x), BATCH):
        model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
        for item in model.masked_weights:
            mask, weight = item.mask.numpy(), item.weight.numpy()
            assert item.active() == item.target_active()
            assert_whole(item.pattern, tf.constant(mask))
            assert (weight[~mask] == 0).all()
    assert not equal_masks(model.masks, before)
