"""Patterns: units of a weight, how many are active, which are chosen; names and configurations."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import patterns_numpy, rigl_numpy

from tf_rigl import maskable, patterns
from tf_rigl._base.arguments import constructor_arguments
from tf_rigl.patterns import NM, Block, Compact, ConstantFanIn, LiteRT, Pattern, Unstructured


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


@pytest.mark.parametrize(
    "pattern",
    [
        Unstructured(),
        Block(4, 3, "max"),
        Block(4, 3, axes=((1,), (0,))),
        Block(4, 3, constant_fan_in=True),
        NM(2, 4),
    ],
)
def test_select_compiles_with_xla(pattern):
    select = tf.function(pattern.select, jit_compile=True)
    scores, kept, among = random_scores((10, 20)), np.zeros((10, 20), bool), random_mask((10, 20))
    kept[4:8, :3] = True
    scores[0, 0] = np.nan
    arguments = tf.constant(scores), tf.constant(4), tf.constant(among), tf.constant(kept)
    np.testing.assert_array_equal(select(*arguments), pattern.select(*arguments))


# Blocks.


@pytest.mark.parametrize(
    ("shape", "pattern", "units"),
    [
        ((784, 300), Block(16, 1), 49 * 300),
        ((300, 100), Block(16, 1), 19 * 100),
        ((6, 5), Block(4, 3), 2 * 2),
        ((2, 2), Block(16, 16), 1),
        ((3, 3, 16, 32), Block(4, 1), 9 * 4 * 32),
        ((3, 16, 5), Block(16, 2), 3 * 3),
        ((3, 3, 32, 16), Block(4, 1, axes=((-1,), (-2,))), 9 * 32 * 4),
        ((2, 3, 8), Block(4, 1, axes=((0, 1), (2,))), 2 * 8),
        ((8, 2, 3), Block(4, 2, axes=((0,), (1, 2))), 2 * 3),
        ((10,), Block(4, 1), 3),
        ((10,), Block(4, 7), 3),
        ((), Block(4, 1), 1),
    ],
)
def test_how_many_blocks_there_are(shape, pattern, units):
    assert pattern.units(shape) == units
    axes = pattern.axes
    assert len(patterns_numpy.members(shape, pattern.rows, pattern.cols, axes)) == units


def test_rows_of_a_block_are_inputs_and_columns_outputs():
    kernel = np.zeros((4, 6), "float32")
    kernel[1, 4] = 1.0
    mask = Block(2, 3).select(tf.constant(kernel), 1).numpy()
    assert np.argwhere(mask).tolist() == [[i, o] for i in (0, 1) for o in (3, 4, 5)]


def test_spatial_positions_of_a_convolution_have_blocks_of_their_own():
    kernel = np.zeros((2, 2, 4, 3), "float32")
    kernel[1, 0, 2, 1] = 1.0
    mask = Block(4, 1).select(tf.constant(kernel), 1).numpy()
    assert np.argwhere(mask).tolist() == [[1, 0, i, 1] for i in range(4)]


def test_a_transposed_convolution_has_its_inputs_last():
    layer = keras.layers.Conv2DTranspose(2, 1)
    kernel = np.zeros((1, 1, 2, 4), "float32")
    kernel[0, 0, 1, 3] = 1.0
    pattern = Block(2, 1).fitted(layer, kernel.shape, maskable.axes(layer, kernel.shape))
    mask = pattern.select(tf.constant(kernel), 1).numpy()
    assert np.argwhere(mask).tolist() == [[0, 0, 1, 2], [0, 0, 1, 3]]


def test_a_last_block_may_be_smaller():
    scores = tf.constant([[1.0], [1.0], [1.0], [1.0], [5.0]])
    assert Block(4, 1).unit_scores(scores).numpy().tolist() == [4.0, 5.0]
    assert Block(4, 1).select(scores, 1).numpy().ravel().tolist() == [False] * 4 + [True]
    assert Block(4, 1).select(scores, 2).numpy().all()


@pytest.mark.parametrize(
    ("score", "expected"), [("sum", [7.0, 6.0]), ("mean", [3.5, 6.0]), ("max", [4.0, 6.0])]
)
def test_the_score_of_a_block(score, expected):
    scores = tf.constant([[3.0], [4.0], [6.0]])
    assert Block(2, 1, score).unit_scores(scores).numpy().tolist() == expected


@pytest.mark.parametrize("score", ["sum", "mean", "max"])
def test_a_block_with_nan_is_the_last_to_be_chosen(score):
    scores = tf.constant([[np.nan], [9.0], [-np.inf], [-5.0]])
    mask = Block(2, 1, score).select(scores, 1).numpy().ravel()
    assert mask.tolist() == [False, False, True, True]


@pytest.mark.parametrize("score", ["sum", "mean", "max"])
def test_a_smaller_block_has_no_advantage_where_all_is_minus_infinity(score):
    scores = tf.fill([5, 1], -np.inf)
    mask = Block(4, 1, score).select(tf.cast(scores, tf.float32), 1).numpy().ravel()
    assert mask.tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("score", ["sum", "mean", "max"])
def test_of_equal_blocks_the_lower_one_wins(score):
    mask = Block(2, 2, score).select(tf.ones((2, 4, 4)), 3).numpy()
    assert mask[0, :2].all()
    assert mask[0, 2:, :2].all()
    assert mask.sum() == 12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("score", ["sum", "mean", "max"])
def test_blocks_of_every_float(dtype, score):
    scores = random_scores((7, 5))
    mask = Block(3, 2, score).select(tf.cast(scores, dtype), 4)
    expected = patterns_numpy.block_mask(scores, 4, 3, 2, score)
    np.testing.assert_array_equal(mask, expected)


def test_many_small_scores_of_half_precision_do_not_overflow():
    scores = np.full((8, 2), 60_000, "float16")
    scores[0, 0] = 59_000
    mask = Block(8, 1).select(tf.constant(scores), 1).numpy()
    assert mask[:, 1].all()
    assert not mask[:, 0].any()


@pytest.mark.parametrize("score", ["sum", "mean", "max"])
def test_random_integers_choose_every_block_alike(score):
    """Masks begin so, and SET grows so: smaller blocks have the chances of others."""
    pattern, chosen = Block(4, 1, score), np.zeros(12)
    rng = np.random.default_rng(0)
    for _ in range(300):
        draws = rng.integers(-(2**31), 2**31, size=(13, 3), dtype=np.int32)
        chosen += pattern.unit_mask(pattern.select(tf.constant(draws), 3)).numpy()
    assert chosen.sum() == 900
    assert chosen.min() > 50
    assert chosen.max() < 100


# Blocks of which each column has as many.

SAME = Block(2, 3, constant_fan_in=True)


def test_each_column_keeps_its_best_blocks():
    scores = np.zeros((4, 6), "float32")
    scores[0, :3], scores[2, 3:] = [3, 2, 1], 0.1  # All of the left ones are better.
    mask = SAME.select(tf.constant(scores), 2).numpy()
    assert mask[:2, :3].all()
    assert mask[2:, 3:].all()
    assert mask.sum() == 12


def test_of_equal_blocks_in_a_column_the_upper_one_wins():
    mask = SAME.select(tf.ones((8, 6)), 4).numpy()
    assert mask[:4].all()
    assert not mask[4:].any()


def test_what_is_kept_is_the_best_of_all_and_growing_fills_columns_up():
    scores = tf.constant(np.repeat(np.arange(8.0, dtype="float32"), 3).reshape(8, 3))
    scores = tf.concat([scores, scores + 10], axis=1)
    mask = SAME.select(scores, 4)
    kept = SAME.keep(scores, 2, mask).numpy()
    assert patterns_numpy.kept_in_columns(kept, 2, 3) == [0, 2]
    grown = SAME.select(-scores, 2, kept=tf.constant(kept)).numpy()
    assert np.argwhere(grown)[:, 0].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert not grown[:, 3:].any()


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 7, 8])
def test_counts_are_rounded_to_whole_rows_but_of_something_at_least_one_is_left(count):
    mask = SAME.select(tf.constant(random_scores((8, 6))), count).numpy()
    each = max(round(count / 2), min(count, 1))
    assert patterns_numpy.kept_in_columns(mask, 2, 3) == [each, each]


def test_possible_counts():
    assert [SAME.possible((8, 6), n) for n in (1, 2, 3, 5, 8)] == [2, 2, 4, 4, 8]
    assert [Block(2, 3).possible((8, 6), n) for n in (1, 2, 3)] == [1, 2, 3]
    assert SAME.step((3, 3, 8, 7)) == 27
    assert Block(2, 3).step((8, 6)) == 1


def test_every_position_of_a_convolution_has_columns_of_its_own():
    scores = random_scores((2, 2, 4, 6))
    mask = SAME.select(tf.constant(scores), SAME.step(scores.shape)).numpy()
    np.testing.assert_array_equal(mask, patterns_numpy.fan_in_mask(scores, 1, 2, 3))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "int64"])
def test_every_type_of_scores_has_a_constant_fan_in(dtype):
    scores = random_scores((7, 5))
    mask = SAME.select(tf.cast(scores, dtype), 4)
    np.testing.assert_array_equal(mask, patterns_numpy.fan_in_mask(scores, 2, 2, 3))


# n of m.


def test_two_of_four_along_the_inputs():
    scores = tf.constant([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 9.0]])
    mask = NM(2, 4).select(scores, 4).numpy()
    assert mask.tolist() == [[True, True], [True, False], [False, False], [False, True]]


def test_the_best_of_a_group_stay_where_the_others_are_better():
    """Three to keep, two a group: the third is of the other group, though it scores less."""
    scores = tf.constant([[9.0], [8.0], [7.0], [6.0], [1.0], [0.0], [0.0], [0.0]])
    mask = NM(2, 4).select(scores, 3).numpy().ravel()
    assert mask.tolist() == [True, True, False, False, True, False, False, False]


def test_what_does_not_fit_is_taken_only_when_all_that_fits_is():
    scores = tf.constant([[9.0], [8.0], [7.0], [6.0], [1.0], [0.0], [0.0], [0.0]])
    mask = NM(2, 4).select(scores, 5).numpy().ravel()
    assert mask.tolist() == [True, True, True, False, True, True, False, False]


def test_what_is_grown_fits_beside_what_is_kept():
    kept = tf.constant([[True], [True], [False], [False], [True], [False], [False], [False]])
    scores = tf.constant([[0.0], [0.0], [9.0], [9.0], [0.0], [1.0], [2.0], [3.0]])
    mask = NM(2, 4).select(scores, 1, kept=kept).numpy().ravel()
    assert np.flatnonzero(mask).tolist() == [7]


def test_a_last_group_may_be_smaller():
    mask = NM(2, 4).select(tf.ones((5, 1)), 3).numpy().ravel()
    assert mask.tolist() == [True, True, False, False, True]


def test_groups_lie_along_the_inputs_wherever_those_are():
    pattern = NM(1, 2, axes=((-1,), (-2,)))
    mask = pattern.select(tf.constant([[1.0, 2.0, 4.0, 3.0]]), 2).numpy()
    assert mask.tolist() == [[False, True, True, False]]


def test_the_lowest_integers_are_scores_like_any_other():
    lowest = np.iinfo(np.int32).min
    scores = tf.constant([[lowest], [lowest + 1], [lowest], [lowest], [lowest]])
    among = tf.constant([[True], [True], [False], [True], [True]])
    mask = NM(1, 4).select(scores, 2, among=among).numpy().ravel()
    assert mask.tolist() == [False, True, False, False, True]


def test_everything_can_be_chosen():
    assert NM(2, 4).select(tf.ones((6, 3)), 18).numpy().all()
    assert not NM(2, 4).select(tf.ones((6, 3)), 0).numpy().any()


@pytest.mark.parametrize(("n", "m", "least"), [(2, 4, 0.5), (1, 4, 0.75), (3, 4, 0.25)])
def test_the_least_sparsity(n, m, least):
    assert NM(n, m).min_sparsity == least
    assert Block(4, 1).min_sparsity == Unstructured().min_sparsity == 0


# What LiteRT runs fast.


@pytest.mark.parametrize(
    ("layer", "shape", "name"),
    [
        (keras.layers.Dense(3), (784, 3), "block_16x1"),
        (keras.layers.Dense(3), (16, 3), "block_16x1"),
        (keras.layers.Dense(3), (300, 3), "block_4x1"),
        (keras.layers.Dense(3), (8, 3), "block_4x1"),
        (keras.layers.Dense(3), (10, 3), "unstructured"),
        (keras.layers.Conv2D(16, 3), (3, 3, 16, 16), "unstructured"),
        (keras.layers.EinsumDense("abc,cd->abd", (None, 16)), (16, 16), "block_16x1"),
        (keras.layers.EinsumDense("hab,hbc->hac", (3, 16)), (4, 16, 16), "unstructured"),
        (keras.layers.LSTMCell(8), (16, 32), "block_16x1"),
        (keras.layers.Embedding(16, 16), (16, 16), "unstructured"),
    ],
)
def test_litert_chooses_for_each_layer(layer, shape, name):
    fitted = LiteRT().fitted(layer, shape, maskable.axes(layer, shape))
    assert str(fitted) == name
    assert patterns.get(name) == fitted


def test_axes_of_projections_are_those_that_are_summed_and_made():
    layer = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3))
    assert maskable.axes(layer, (4, 2, 3)) == ((0,), (1, 2))
    layer = keras.layers.EinsumDense("abcd,cde->abe", (None, 4))
    assert maskable.axes(layer, (2, 3, 4)) == ((0, 1), (2,))
    layer = keras.layers.EinsumDense("...x,xy->...y", 4)
    assert maskable.axes(layer, (2, 3)) is None
    layer = keras.layers.EinsumDense("abc,dc->abd", (None, 4))
    assert maskable.axes(layer, (4, 3)) == ((1,), (0,))
    layer = keras.layers.EinsumDense("hab,hbc->hac", (3, 4))
    assert maskable.axes(layer, (5, 2, 4)) is None


# Names, configurations, equality.

AXES = ((-1,), (-2,))
# At least one of each class. What holds for all of them is in test_every_pattern.py as well.
ALL = [
    Unstructured(),
    LiteRT(),
    Compact(),
    Block(4, 1),
    Block(16, 1, "mean"),
    Block(16, 1, "max", AXES),
    Block(2, 3, axes=((0, 1), (2,))),
    Block(16, 1, constant_fan_in=True),
    Block(1, 2, taps="all"),
    Block(4, 3, constant_fan_in=True, taps="all"),
    ConstantFanIn(),
    ConstantFanIn(AXES, taps=False),
    NM(2, 4),
    NM(1, 8, AXES),
]


def test_patterns_of_one_class_and_configuration_are_equal():
    class Other(Pattern):
        pass

    assert Unstructured() == Unstructured()
    assert hash(Unstructured()) == hash(Unstructured())
    assert Unstructured() != Other()
    assert Unstructured() != "unstructured"


@pytest.mark.parametrize("pattern", ALL, ids=repr)
def test_a_copy_is_equal_and_no_other_is(pattern):
    copy = type(pattern).from_config(pattern.get_config())
    assert copy == pattern
    assert hash(copy) == hash(pattern)
    assert (repr(copy), str(copy)) == (repr(pattern), str(pattern))
    assert [other for other in ALL if other == pattern] == [pattern]
    assert len({*ALL, copy}) == len(ALL)


@pytest.mark.parametrize("pattern", ALL, ids=repr)
def test_a_pattern_is_serialised_by_keras(pattern):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(pattern)))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy == pattern
    assert hash(copy) == hash(pattern)


# Arguments that are in a configuration only where they are not the default, by class.
SOMETIMES = {Block: {"constant_fan_in", "taps"}}


@pytest.mark.parametrize("pattern", ALL, ids=repr)
def test_a_config_has_all_arguments(pattern):
    """One that `get_config` does not return is lost when a model is saved."""
    names, sometimes = set(pattern.get_config()), SOMETIMES.get(type(pattern), set())
    assert names | sometimes == set(constructor_arguments(type(pattern)))


@pytest.mark.parametrize("pattern", ALL, ids=repr)
def test_a_pattern_reads_like_the_call_that_makes_it(pattern):
    assert eval(repr(pattern), vars(patterns)) == pattern


def test_how_patterns_read():
    assert repr(Unstructured()) == "Unstructured()"
    assert repr(Block(16, 1)) == "Block(rows=16, cols=1, score='sum')"
    assert repr(NM(2, 4, AXES)) == "NM(n=2, m=4, axes=((-1,), (-2,)))"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("unstructured", Unstructured()),
        ("litert", LiteRT()),
        ("block_4x1", Block(4, 1)),
        ("block_16x1", Block(16, 1)),
        ("block_12x345", Block(12, 345)),
        ("constant_fan_in_32x16", Block(32, 16, constant_fan_in=True)),
        ("constant_fan_in_channels_1x32", Block(1, 32, taps="all", constant_fan_in=True)),
        ("constant_fan_in_compact", Compact(constant_fan_in=True)),
        ("2:4", NM(2, 4)),
        ("1:16", NM(1, 16)),
    ],
)
def test_names(name, pattern):
    assert patterns.get(name) == pattern
    assert str(patterns.get(name)) == name


def test_get_passes_patterns_through():
    pattern = Unstructured()
    assert patterns.get(pattern) is pattern


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("unstructred", "unstructured"),
        ("lite_rt", "litert"),
        ("block_4x", "block_4x1"),
        ("block_4", "block_4x1"),
        ("block4x1", "block_4x1"),
        ("blocks_16x1", "block_16x1"),
        ("block_-4x1", "block_4x1"),
        ("block_16x1 ", "block_16x1"),
        ("2 : 4", "2:4"),
        ("2:4:8", "2:4"),
        ("constant_fanin", "constant_fan_in"),
    ],
)
def test_get_offers_the_closest_name(name, closest):
    message = rf"`pattern`.*Did you mean .*'{closest}'.*Received: pattern='{name}'"
    with pytest.raises(ValueError, match=message):
        patterns.get(name)


@pytest.mark.parametrize("identifier", [None, 4, Unstructured, "", b"2:4", ("block", 4, 1)])
def test_get_refuses_what_is_neither_a_name_nor_a_pattern(identifier):
    with pytest.raises(ValueError, match=r"`pattern` must be one of .*'unstructured'"):
        patterns.get(identifier)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(0, 1), "`rows` must be an integer of at least 1. Received: rows=0"),
        (lambda: Block(4, -1), "`cols` must be an integer of at least 1. Received: cols=-1"),
        (lambda: Block(4.0, 1), "`rows` must be .* Received: rows=4.0"),
        (lambda: Block(4, True), "`cols` must be .* Received: cols=True"),
        (lambda: Block(4, "1"), "`cols` must be .* Received: cols='1'"),
        (lambda: Block(4, 1, "summ"), "`score` must be .* Did you mean 'sum'.*score='summ'"),
        (lambda: Block(4, 1, None), "`score` must be .* Received: score=None"),
        (lambda: patterns.get("block_0x1"), "`rows` must be .* Received: pattern='block_0x1'"),
        (lambda: patterns.get("block_4x0"), "`cols` must be .* Received: pattern='block_4x0'"),
        (lambda: NM(0, 4), "`n` must be an integer of at least 1. Received: n=0"),
        (lambda: NM(1, 1), "`m` must be an integer of at least 2. Received: m=1"),
        (lambda: NM(4, 4), "`n` must be less than `m`. Received: n=4, m=4"),
        (lambda: NM(2.5, 4), "`n` must be .* Received: n=2.5"),
        (lambda: patterns.get("4:2"), "less than `m`. Did you mean '2:4'.*pattern='4:2'"),
        (lambda: patterns.get("0:4"), "`n` must be .* Received: pattern='0:4'"),
        (lambda: Block(1, 1, axes=3), "`axes` must be two tuples of integers.* axes=3"),
        (lambda: Block(1, 1, axes=((0,), ("a",))), "`axes` must be two tuples of integers"),
        (lambda: NM(2, 4, axes=((0,),)), "`axes` must be two tuples of integers"),
        (lambda: Block(1, 1, constant_fan_in="no"), "`constant_fan_in` must be True or False"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_of_numpy_are_sizes():
    assert Block(np.int64(4), np.int32(1)) == Block(4, 1)
    assert NM(np.int64(2), np.int64(4)).get_config() == NM(2, 4).get_config()


@pytest.mark.parametrize("shape", [(8, 3), (7, 3), (3, 3, 6, 4)])
@pytest.mark.parametrize("rest", [0, 1])
def test_groups_that_are_all_full_are_selected_at_once(shape, rest):
    """A number that fills all groups, as an int, and as a tensor of which that is not known."""
    pattern, values = NM(2, 4), random_scores(shape, rest)
    values.flat[3] = np.nan
    count = pattern._capacity(shape) - rest
    one = pattern.select(tf.constant(values), count)
    other = pattern.select(tf.constant(values), tf.constant(count))
    np.testing.assert_array_equal(one, other)
    assert np.count_nonzero(one) == count
