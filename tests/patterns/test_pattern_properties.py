"""What holds for every pattern, shape and count: agreement with loops in plain Python."""

import json
import math

import keras
import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from references import patterns_numpy as reference
from references import rigl_numpy

from tf_rigl import methods
from tf_rigl.patterns import NM, Block, Unstructured

# The same examples everywhere, and no files left behind.
FIXED = {"deadline": None, "derandomize": True, "database": None}
many = settings(max_examples=100, **FIXED)
some = settings(max_examples=50, **FIXED)
few = settings(max_examples=6, **FIXED)

shapes = st.one_of(
    hnp.array_shapes(min_dims=1, max_dims=2, max_side=12),
    hnp.array_shapes(min_dims=3, max_dims=4, max_side=5),
)
# Whole numbers, of which sums are exact in any order; few, hence ties.
whole = st.integers(-4, 4).map(float)
odd = st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan])
scores = st.one_of(whole, odd)


def arrays(shape, elements):
    return hnp.arrays(np.float32, shape, elements=elements)


@st.composite
def axes_of(draw, shape, ascending=False):
    """None, or any choice of axes for inputs (at least one) and outputs."""
    if draw(st.booleans()):
        return None
    order = draw(st.permutations(range(len(shape))))
    inputs = draw(st.integers(1, len(shape)))
    outputs = draw(st.integers(0, len(shape) - inputs))
    groups = order[:inputs], order[inputs : inputs + outputs]
    if ascending:
        groups = map(sorted, groups)
    elif draw(st.booleans()):
        groups = ([axis - len(shape) for axis in group] for group in groups)
    return tuple(tuple(group) for group in groups)


@st.composite
def blocks(draw, shape):
    sizes = st.integers(1, 6)
    score = draw(st.sampled_from(["sum", "mean", "max"]))
    taps = draw(st.sampled_from(["each", "all"]))
    return Block(draw(sizes), draw(sizes), score, draw(axes_of(shape)), taps=taps)


def axes_for(pattern):
    """The axes of blocks, as the reference takes them."""
    return (*(pattern.axes or ()), "all") if pattern.taps == "all" else pattern.axes


@st.composite
def ratios(draw, shape):
    m = draw(st.integers(2, 6))
    return NM(draw(st.integers(1, m - 1)), m, draw(axes_of(shape, ascending=True)))


def any_pattern(shape):
    return st.one_of(st.just(Unstructured()), blocks(shape), ratios(shape))


# The reference, and what a mask has to be.


def expected(pattern, scores, count, among=None, kept=None):
    """The mask that the reference selects."""
    if isinstance(pattern, Block):
        how = pattern.rows, pattern.cols, pattern.score, axes_for(pattern)
        return reference.block_mask(scores, count, *how, among=among, kept=kept)
    if isinstance(pattern, NM):
        how = pattern.n, pattern.m, pattern.axes
        return reference.nm_mask(scores, count, *how, among=among, kept=kept)
    among = np.ones(scores.shape, bool) if among is None else among
    among = among if kept is None else among & ~kept
    return rigl_numpy.top_k_mask(scores, count, among)


def units_kept(pattern, mask):
    if isinstance(pattern, Block):
        return reference.blocks_kept(mask, pattern.rows, pattern.cols, axes_for(pattern))
    return np.count_nonzero(mask)


def capacity(pattern, shape):
    """How many units a sparse mask can have."""
    if isinstance(pattern, NM):
        return reference.nm_capacity(shape, pattern.n, pattern.m, pattern.axes)
    return pattern.units(shape)


def holds(pattern, mask):
    if isinstance(pattern, Block):
        return reference.are_whole(mask, pattern.rows, pattern.cols, axes_for(pattern))
    if isinstance(pattern, NM):
        return reference.holds_nm(mask, pattern.n, pattern.m, pattern.axes)
    return True


def a_mask(draw, pattern, shape, most=None):
    """A valid mask of any number of units up to `most`."""
    most = capacity(pattern, shape) if most is None else most
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    order = rng.integers(-100, 100, size=shape).astype("float32")
    return expected(pattern, order, draw(st.integers(0, most)))


@st.composite
def selections(draw, patterns):
    """A pattern, scores, a count, and what may be chosen and what is kept, or None."""
    shape = draw(shapes)
    pattern = draw(patterns(shape))
    kept = a_mask(draw, pattern, shape) if draw(st.booleans()) else None
    among = draw(hnp.arrays(bool, shape)) if draw(st.booleans()) else None
    free = np.ones(shape, bool) if among is None else among
    if isinstance(pattern, Block):
        units = reference.members(shape, pattern.rows, pattern.cols, axes_for(pattern))
        taken = np.zeros(shape, bool) if kept is None else kept
        most = sum(any(free[i] for i in unit) and not any(taken[i] for i in unit) for unit in units)
    else:
        most = np.count_nonzero(free if kept is None else free & ~kept)
    values = draw(arrays(shape, draw(st.sampled_from([whole, scores]))))
    return pattern, values, draw(st.integers(0, most)), among, kept


def select(pattern, scores, count, among, kept):
    among, kept = (None if m is None else tf.constant(m) for m in (among, kept))
    return pattern.select(tf.constant(scores), count, among, kept).numpy()


# Selection.


@many
@given(selections(blocks))
def test_blocks_are_chosen_as_by_the_reference(case):
    pattern, _, count, _, kept = case
    mask = select(*case)
    np.testing.assert_array_equal(mask, expected(*case))
    assert holds(pattern, mask)
    assert units_kept(pattern, mask) == count == pattern.active(tf.constant(mask))
    if kept is not None:
        assert not (mask & kept).any()


@many
@given(st.data())
def test_the_scores_of_blocks(data):
    shape = data.draw(shapes)
    pattern = data.draw(blocks(shape))
    values = data.draw(arrays(shape, scores))
    received = pattern.unit_scores(tf.constant(values)).numpy()
    how = pattern.rows, pattern.cols, pattern.score, axes_for(pattern)
    np.testing.assert_allclose(received, reference.block_scores(values, *how), rtol=1e-6)
    assert len(received) == pattern.units(shape)


@many
@given(selections(ratios))
def test_n_of_m_are_chosen_as_by_the_reference(case):
    mask = select(*case)
    np.testing.assert_array_equal(mask, expected(*case))
    assert np.count_nonzero(mask) == case[2]


@many
@given(st.data())
def test_n_of_m_hold_up_to_what_there_is_room_for(data):
    shape = data.draw(shapes)
    pattern = data.draw(ratios(shape))
    values = data.draw(arrays(shape, scores))
    room = capacity(pattern, shape)
    assert room >= math.prod(shape) - math.floor(pattern.min_sparsity * math.prod(shape) + 1e-6)
    count = data.draw(st.integers(0, math.prod(shape)))
    mask = select(pattern, values, count, None, None)
    assert holds(pattern, mask) == (count <= room)
    groups = reference.kept_in_groups(mask, pattern.m, pattern.axes)
    if count >= room:
        assert all(kept >= min(pattern.n, size) for kept, size in groups)
    if count == room:
        assert all(kept == min(pattern.n, size) for kept, size in groups)


@some
@given(selections(any_pattern))
def test_of_more_none_that_was_chosen_of_less_is_left_out(case):
    """What pruning step by step relies on."""
    pattern, values, count, among, kept = case
    if count:
        less = select(pattern, values, count - 1, among, kept)
        assert not (less & ~select(*case)).any()


@some
@given(st.data())
def test_a_choice_among_what_was_chosen_is_that_of_the_best(data):
    """Pruning in two steps by the same scores is pruning in one."""
    shape = data.draw(shapes)
    pattern = data.draw(any_pattern(shape))
    values = data.draw(arrays(shape, whole))
    first = data.draw(st.integers(0, pattern.units(shape)))
    second = data.draw(st.integers(0, first))
    once = select(pattern, values, first, None, None)
    np.testing.assert_array_equal(
        select(pattern, values, second, once, None), select(pattern, values, second, None, None)
    )


@some
@given(st.data())
def test_units_and_masks_are_each_others_inverse(data):
    shape = data.draw(shapes)
    pattern = data.draw(any_pattern(shape))
    mask = a_mask(data.draw, pattern, shape)
    units = pattern.unit_mask(tf.constant(mask))
    assert units.shape == (pattern.units(shape),)
    np.testing.assert_array_equal(pattern.expand(units, shape), mask)
    flags = data.draw(hnp.arrays(bool, (pattern.units(shape),)))
    restored = pattern.unit_mask(pattern.expand(tf.constant(flags), shape))
    np.testing.assert_array_equal(restored, flags)


@few
@given(selections(any_pattern))
def test_compiled_by_xla_it_is_the_same(case):
    pattern, values, count, among, kept = case
    compiled = tf.function(pattern.select, jit_compile=True)
    among, kept = (None if m is None else tf.constant(m) for m in (among, kept))
    mask = compiled(tf.constant(values), tf.constant(count), among, kept)
    np.testing.assert_array_equal(mask, select(*case))


@some
@given(st.data())
def test_a_pattern_outlives_a_file(data):
    shape = data.draw(shapes)
    pattern = data.draw(any_pattern(shape))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(pattern)))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy == pattern
    assert (hash(copy), repr(copy), str(copy)) == (hash(pattern), repr(pattern), str(pattern))


# One change of a mask.


@st.composite
def updates(draw):
    """A pattern, a weight that is zero under its mask, a gradient, and what moves."""
    shape = draw(shapes)
    pattern = draw(any_pattern(shape))
    mask = a_mask(draw, pattern, shape)
    weight = np.where(mask, draw(arrays(shape, whole)), np.float32(0))
    gradient = draw(arrays(shape, draw(st.sampled_from([whole, scores]))))
    return pattern, weight, gradient, mask, draw(st.integers(0, units_kept(pattern, mask)))


def update(method, pattern, weight, gradient, mask, moved, seed=(1, 2)):
    new_mask, new_weight = method.update(
        tf.constant(weight),
        tf.constant(gradient),
        tf.constant(mask),
        tf.constant(units_kept(pattern, mask) - moved),
        tf.constant(moved),
        pattern,
        tf.constant(seed),
    )
    return new_mask.numpy(), new_weight.numpy()


@many
@given(st.sampled_from([methods.RigL(), methods.SET(), methods.SNFS()]), updates())
def test_an_update_keeps_the_count_and_the_pattern(method, case):
    pattern, weight, _, mask, moved = case
    new_mask, new_weight = update(method, *case)
    count = units_kept(pattern, mask)
    assert units_kept(pattern, new_mask) == count
    assert holds(pattern, new_mask)
    kept = expected(pattern, np.abs(weight), count - moved, among=mask)
    assert not (kept & ~new_mask).any()
    assert (new_weight[~new_mask] == 0).all()
    assert (new_weight[new_mask & ~mask] == 0).all()
    np.testing.assert_array_equal(new_weight[new_mask & mask], weight[new_mask & mask])


@some
@given(updates())
def test_rigl_moves_units_as_the_reference_does(case):
    pattern, weight, gradient, mask, moved = case
    kept = expected(pattern, np.abs(weight), units_kept(pattern, mask) - moved, among=mask)
    grown = expected(pattern, np.abs(gradient), moved, kept=kept)
    new_mask, new_weight = update(methods.RigL(), *case)
    np.testing.assert_array_equal(new_mask, kept | grown)
    np.testing.assert_array_equal(new_weight, rigl_numpy.moved(weight, mask, kept | grown))


# Pruning.


@st.composite
def pools(draw):
    """Weights with patterns of their own, zero under their masks, and the units to keep."""
    found = []
    for shape in draw(st.lists(shapes, min_size=1, max_size=3)):
        pattern = draw(any_pattern(shape))
        # Dense, or what some pruning has left of it.
        most = pattern.units(shape)
        count = most if draw(st.booleans()) else draw(st.integers(0, most))
        mask = expected(pattern, draw(arrays(shape, whole)), count)
        weight = np.where(mask, draw(arrays(shape, whole)), np.float32(0))
        gradient = draw(arrays(shape, whole))
        found.append((pattern, weight, gradient, mask, draw(st.integers(0, count))))
    return found


def prune(method, pool):
    """The masks after an update as the training step makes it, and the weights."""
    scored = [
        (tf.constant(weight), tf.constant(gradient), tf.constant(mask), tf.constant([1, 2]))
        for _, weight, gradient, mask, _ in pool
    ]
    patterns = [pattern for pattern, *_ in pool]
    counts = [(tf.constant(keep), tf.constant(0)) for *_, keep in pool]
    shares = method.share(counts, scored, patterns)
    updated = [
        method.update(*arguments[:3], keep, grow, pattern, arguments[3])
        for arguments, pattern, (keep, grow) in zip(scored, patterns, shares, strict=True)
    ]
    return [mask.numpy() for mask, _ in updated], [weight.numpy() for _, weight in updated]


def pruning(scope):
    return st.sampled_from([methods.SNIP(scope=scope), methods.MagnitudePruning(scope=scope)])


def scores_of(method, weight, gradient):
    return np.abs(weight * gradient if isinstance(method, methods.SNIP) else weight)


@some
@given(pruning("layer"), pools())
def test_pruning_by_layer_keeps_the_best_units_of_each(method, pool):
    masks, weights = prune(method, pool)
    for mask, new, (pattern, weight, gradient, old, keep) in zip(masks, weights, pool, strict=True):
        assert units_kept(pattern, mask) == keep
        scores = scores_of(method, weight, gradient)
        np.testing.assert_array_equal(mask, expected(pattern, scores, keep, among=old))
        np.testing.assert_array_equal(new, np.where(mask, weight, 0))


def pooled_units(method, pool):
    """All units that are kept so far, as (is second choice, NaN, -score, weight, unit)."""
    units = []
    for number, (pattern, weight, gradient, old, _) in enumerate(pool):
        scores = scores_of(method, weight, gradient)
        if isinstance(pattern, Block):
            how = pattern.rows, pattern.cols
            values = reference.block_scores(scores, *how, pattern.score, axes_for(pattern))
            members = reference.members(scores.shape, *how, axes_for(pattern))
            alive = [any(old[index] for index in block) for block in members]
            first = alive
        else:
            values, alive = scores.ravel().tolist(), old.ravel().tolist()
            most = min(np.count_nonzero(old), _fitting(pattern, old))
            first = expected(pattern, scores, most, among=old).ravel().tolist()
        units += [(not first[n], -value, number, n) for n, value in enumerate(values) if alive[n]]
    return sorted(units)


def _fitting(pattern, mask):
    """How many entries of a mask fit."""
    if not isinstance(pattern, NM):
        return np.count_nonzero(mask)
    groups = reference.kept_in_groups(mask, pattern.m, pattern.axes)
    return sum(min(pattern.n, kept) for kept, _ in groups)


@some
@given(pruning("global"), pools())
def test_pruning_of_all_keeps_the_best_units_of_all(method, pool):
    """Of n of m, those that fit go before all that do not, of whatever weight."""
    masks, weights = prune(method, pool)
    total = sum(keep for *_, keep in pool)
    chosen = pooled_units(method, pool)[:total]
    for number, (mask, new, (pattern, weight, gradient, old, _)) in enumerate(
        zip(masks, weights, pool, strict=True)
    ):
        keep = sum(unit[2] == number for unit in chosen)
        scores = scores_of(method, weight, gradient)
        np.testing.assert_array_equal(mask, expected(pattern, scores, keep, among=old))
        np.testing.assert_array_equal(new, np.where(mask, weight, 0))
