"""Patterns: units of a weight, how many are active, and which are chosen."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import rigl_numpy

from tf_rigl import patterns
from tf_rigl.patterns import Pattern, Unstructured


@pytest.fixture(autouse=True)
def fresh_start():
    """Replaces that of conftest.py, which is slow: no test here makes a model."""


def random_mask(shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.3


def random_scores(shape, seed=0):
    """With ties."""
    return np.random.default_rng(seed).integers(-5, 5, size=shape).astype("float32")


@pytest.mark.parametrize(
    ("shape", "units"), [((), 1), ((7,), 7), ((784, 300), 235_200), ((3, 3, 16, 32), 4608)]
)
def test_every_entry_is_a_unit(shape, units):
    assert Unstructured().units(shape) == units


def test_active_units_are_the_entries_set():
    mask = random_mask((10, 20))
    active = Unstructured().active(tf.constant(mask))
    assert active == np.count_nonzero(mask)
    assert active.dtype == tf.int32
    assert active.shape == ()


@pytest.mark.parametrize("count", [0, 1, 57, 120])
def test_selects_the_highest_scores(count):
    scores = random_scores((3, 2, 4, 5))
    mask = Unstructured().select(tf.constant(scores), count)
    np.testing.assert_array_equal(mask, rigl_numpy.top_k_mask(scores, count))


def test_selects_among_candidates_only():
    scores, among = random_scores((10, 20)), random_mask((10, 20))
    mask = Unstructured().select(tf.constant(scores), 30, among=tf.constant(among))
    np.testing.assert_array_equal(mask, rigl_numpy.top_k_mask(scores, 30, among))


def test_does_not_choose_again_what_is_kept():
    scores, kept = random_scores((10, 20)), random_mask((10, 20))
    mask = Unstructured().select(tf.constant(scores), 30, kept=tf.constant(kept))
    np.testing.assert_array_equal(mask, rigl_numpy.top_k_mask(scores, 30, ~kept))


def test_what_is_kept_is_no_candidate_even_where_it_is_named_as_one():
    scores, kept, among = random_scores((10, 20)), random_mask((10, 20)), random_mask((10, 20), 1)
    mask = Unstructured().select(
        tf.constant(scores), 20, among=tf.constant(among), kept=tf.constant(kept)
    )
    np.testing.assert_array_equal(mask, rigl_numpy.top_k_mask(scores, 20, among & ~kept))


def test_everything_else_can_be_chosen_beside_what_is_kept():
    kept = random_mask((10, 20))
    scores = tf.constant(random_scores((10, 20)))
    mask = Unstructured().select(scores, np.count_nonzero(~kept), kept=tf.constant(kept))
    np.testing.assert_array_equal(mask, ~kept)


def test_select_compiles_with_xla():
    select = tf.function(Unstructured().select, jit_compile=True)
    scores, kept, among = random_scores((10, 20)), random_mask((10, 20)), random_mask((10, 20), 1)
    mask = select(tf.constant(scores), tf.constant(20), tf.constant(among), tf.constant(kept))
    np.testing.assert_array_equal(mask, rigl_numpy.top_k_mask(scores, 20, among & ~kept))


def test_patterns_of_one_class_and_configuration_are_equal():
    class Other(Pattern):
        pass

    assert Unstructured() == Unstructured()
    assert hash(Unstructured()) == hash(Unstructured())
    assert Unstructured() != Other()
    assert Unstructured() != "unstructured"


def test_a_pattern_reads_like_the_call_that_makes_it():
    assert repr(Unstructured()) == "Unstructured()"


def test_a_pattern_is_serialised_by_keras():
    config = keras.saving.serialize_keras_object(Unstructured())
    assert keras.saving.deserialize_keras_object(config) == Unstructured()


def test_get_finds_it_by_name():
    assert patterns.get("unstructured") == Unstructured()


def test_get_passes_patterns_through():
    pattern = Unstructured()
    assert patterns.get(pattern) is pattern


def test_get_offers_the_closest_name():
    message = r"`pattern`.*Did you mean 'unstructured'.*Received: pattern='unstructred'"
    with pytest.raises(ValueError, match=message):
        patterns.get("unstructred")


@pytest.mark.parametrize("identifier", [None, 4, Unstructured])
def test_get_refuses_what_is_neither_a_name_nor_a_pattern(identifier):
    with pytest.raises(ValueError, match=r"`pattern` must be one of .*'unstructured'"):
        patterns.get(identifier)
