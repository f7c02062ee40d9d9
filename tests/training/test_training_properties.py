"""What holds for every input: counts, invariants, and agreement with plain NumPy."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from references import pruning_numpy, rigl_numpy

import tf_rigl
from tf_rigl import distributions, methods, schedules
from tf_rigl.patterns import Unstructured
from tf_rigl.patterns.selection import top_k_mask

# The same examples everywhere, and no files left behind.
FIXED = {"deadline": None, "derandomize": True, "database": None}
many = settings(max_examples=100, **FIXED)
some = settings(max_examples=50, **FIXED)
# A training is not shrunk when it fails: that would take minutes.
few = settings(max_examples=16, phases=[Phase.explicit, Phase.generate], **FIXED)

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=12)
# Few values, hence ties; and all there are.
floats = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan]),
    st.floats(width=32),
)
finite = st.one_of(st.sampled_from([-1.0, 0.5, 1.0, 2.0]), st.floats(-4, 4, width=32))
thousandths = st.integers(0, 999).map(lambda n: n / 1000)


def arrays(shape, elements):
    return hnp.arrays(np.float32, shape, elements=elements)


# Selection.


@st.composite
def selections(draw):
    """Scores, candidates, and how many of them to choose."""
    shape = draw(shapes)
    scores = draw(arrays(shape, floats))
    among = draw(hnp.arrays(bool, shape))
    return scores, among, draw(st.integers(0, np.count_nonzero(among)))


@many
@given(selections())
def test_selection_agrees_with_a_stable_sort(case):
    scores, among, k = case
    mask = top_k_mask(tf.constant(scores), k, tf.constant(among)).numpy()
    assert np.count_nonzero(mask) == k
    assert not np.any(mask & ~among)
    np.testing.assert_array_equal(mask, rigl_numpy.top_k_mask(scores, k, among))


@some
@given(selections())
def test_of_equal_scores_the_lower_index_is_chosen(case):
    scores, among, k = case
    mask = top_k_mask(tf.constant(scores), k, tf.constant(among)).numpy().ravel()
    scores, among = scores.ravel(), among.ravel()
    for value in np.unique(scores):
        tied = np.isnan(scores) if np.isnan(value) else scores == value
        chosen = mask[tied & among]
        assert np.all(chosen[:-1] >= chosen[1:])


# One change of a mask.


@st.composite
def updates(draw):
    """A method, a weight that is zero under its mask, a gradient, and what moves."""
    shape = draw(shapes)
    mask = draw(hnp.arrays(bool, shape))
    weight = np.where(mask, draw(arrays(shape, finite)), np.float32(0))
    gradient = draw(arrays(shape, floats))
    method = draw(st.sampled_from([methods.RigL(), methods.SET()]))
    return method, weight, gradient, mask, draw(st.integers(0, np.count_nonzero(mask)))


def update(method, weight, gradient, mask, k, seed=(1, 2)):
    """The new mask and weight of `Method.update`, and what the reference keeps."""
    new_mask, new_weight = method.update(
        tf.constant(weight),
        tf.constant(gradient),
        tf.constant(mask),
        tf.constant(np.count_nonzero(mask) - k),
        tf.constant(k),
        Unstructured(),
        tf.constant(seed),
    )
    return new_mask.numpy(), new_weight.numpy(), rigl_numpy.drop(weight, mask, k)


@some
@given(updates())
def test_an_update_keeps_what_it_should_and_grows_as_many_beside_it(case):
    _, _, _, mask, k = case
    new_mask, _, kept = update(*case)
    assert np.count_nonzero(new_mask) == np.count_nonzero(mask)
    assert not np.any(kept & ~new_mask)
    assert np.count_nonzero(new_mask & ~kept) == k


@some
@given(updates())
def test_an_update_of_values(case):
    """What was active and is, keeps its value, dropped and grown at once or not."""
    _, weight, _, mask, _ = case
    new_mask, new_weight, _ = update(*case)
    np.testing.assert_array_equal(new_weight[mask & new_mask], weight[mask & new_mask])
    assert np.all(new_weight[~mask & new_mask] == 0)
    assert np.all(new_weight[~new_mask] == 0)
    assert new_weight.dtype == weight.dtype


@some
@given(updates())
def test_rigl_grows_where_the_gradient_is_largest(case):
    _, weight, gradient, mask, k = case
    new_mask, new_weight, kept = update(methods.RigL(), weight, gradient, mask, k)
    expected = kept | rigl_numpy.grow(gradient, kept, k)
    np.testing.assert_array_equal(new_mask, expected)
    np.testing.assert_array_equal(new_weight, rigl_numpy.moved(weight, mask, expected))


@some
@given(updates(), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_set_grows_the_same_whatever_the_gradient(case, seed, step):
    _, weight, gradient, mask, k = case
    one, _, _ = update(methods.SET(), weight, gradient, mask, k, (seed, step))
    other, _, _ = update(methods.SET(), weight, -gradient[::-1], mask, k, (seed, step))
    np.testing.assert_array_equal(one, other)


# Pruning.


@st.composite
def pools(draw):
    """Weights that are zero under their masks, gradients, and how many units to keep of each."""
    found = []
    for shape in draw(st.lists(shapes, min_size=1, max_size=4)):
        mask = draw(hnp.arrays(bool, shape))
        weight = np.where(mask, draw(arrays(shape, floats)), np.float32(0))
        gradient = draw(arrays(shape, floats))
        found.append((weight, gradient, mask, draw(st.integers(0, np.count_nonzero(mask)))))
    return found


def pruning(scope):
    return st.sampled_from([methods.SNIP(scope=scope), methods.MagnitudePruning(scope=scope)])


def prune(method, pool):
    """The masks after an update as the training step makes it, and the weights."""
    scored = [
        (tf.constant(weight), tf.constant(gradient), tf.constant(mask), tf.constant([1, 2]))
        for weight, gradient, mask, _ in pool
    ]
    patterns = [Unstructured()] * len(pool)
    counts = [(tf.constant(keep), tf.constant(0)) for *_, keep in pool]
    shares = method.share(counts, scored, patterns)
    updated = [
        method.update(*arguments[:3], keep, grow, pattern, arguments[3])
        for arguments, pattern, (keep, grow) in zip(scored, patterns, shares, strict=True)
    ]
    return [mask.numpy() for mask, _ in updated], [weight.numpy() for _, weight in updated]


def scores_of(method, weight, gradient):
    # TensorFlow takes subnormal numbers for zero, as factors and as products.
    weight, gradient = without_subnormals(weight), without_subnormals(gradient)
    with np.errstate(all="ignore"):
        scores = np.abs(weight * gradient if isinstance(method, methods.SNIP) else weight)
    return without_subnormals(scores)


def without_subnormals(values):
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


@some
@given(pruning("layer"), pools())
def test_pruning_by_layer_keeps_the_highest_scores_of_each(method, pool):
    masks, weights = prune(method, pool)
    for mask, new, (weight, gradient, old, keep) in zip(masks, weights, pool, strict=True):
        expected = rigl_numpy.top_k_mask(scores_of(method, weight, gradient), keep, old)
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(new, np.where(mask, weight, 0))


@some
@given(pruning("global"), pools())
def test_pruning_of_all_keeps_the_highest_scores_of_all(method, pool):
    masks, weights = prune(method, pool)
    total = sum(keep for *_, keep in pool)
    assert sum(np.count_nonzero(mask) for mask in masks) == total
    scores = [scores_of(method, weight, gradient) for weight, gradient, *_ in pool]
    expected = pruning_numpy.global_masks(scores, total, [old for *_, old, _ in pool])
    for mask, other, new, (weight, *_) in zip(masks, expected, weights, pool, strict=True):
        np.testing.assert_array_equal(mask, other)
        np.testing.assert_array_equal(new, np.where(mask, weight, 0))


# Pruning schedules.


@st.composite
def polynomials(draw):
    """A polynomial that rises, with an end as a step."""
    low, high = sorted(draw(st.tuples(thousandths, thousandths)))
    begin = draw(st.integers(0, 200))
    return schedules.PolynomialDecay(
        low,
        high,
        begin_step=begin,
        end_step=begin + draw(st.integers(0, 300)),
        power=draw(st.sampled_from([0.5, 1, 2, 3, 3.7])),
        frequency=draw(st.integers(1, 120)),
    )


@st.composite
def constants(draw):
    begin = draw(st.integers(0, 200))
    end = draw(st.one_of(st.just(-1), st.integers(begin, begin + 300)))
    return schedules.ConstantSparsity(0.5, begin, end, draw(st.integers(1, 120)))


@many
@given(polynomials())
def test_a_polynomial_rises_from_its_initial_to_its_final_sparsity(schedule):
    begin, end = schedule.begin_step, schedule.end_step
    values = [schedule(step)[1] for step in range(max(0, begin - 2), end + 3)]
    assert all(a <= b + 1e-7 for a, b in itertools.pairwise(values))
    if end > begin:
        assert schedule(begin)[1] == pytest.approx(schedule.initial_sparsity, abs=1e-6)
    assert schedule(end + 1)[1] == np.float32(schedule.final_sparsity)
    due, reached = schedule(end)
    assert due, "what is asked for has to be reached"
    assert reached == pytest.approx(schedule.final_sparsity, abs=1e-3)


@many
@given(st.one_of(polynomials(), constants()), st.integers(0, 600))
def test_the_next_step_is_the_first_that_is_due(schedule, step):
    due = (t for t in range(step, 800) if schedule(t)[0])
    assert schedule.next_step(step) == next(due, None)


@many
@given(
    st.sampled_from([schedules.PolynomialDecay, schedules.ConstantSparsity]),
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 50),
    st.integers(0, 500),
    st.integers(1, 500),
)
def test_an_end_as_a_fraction_lies_within_the_run(cls, fraction, begin, first, steps):
    schedule = cls(begin_step=begin, end_step=fraction, frequency=7)
    if int(fraction * steps) < begin:
        with pytest.raises(ValueError, match="must not be less than `begin_step`"):
            schedule.over(first, steps)
        return
    schedule = schedule.over(first, steps)
    assert not schedule.needs_length
    assert schedule.begin_step == first + begin
    assert schedule.begin_step <= schedule.end_step <= first + steps


# Distributions.


@st.composite
def layers(draw):
    """Shapes of layers, dense and convolutional, and a sparsity in thousandths."""
    size = st.integers(1, 64)
    dense = st.tuples(size, size)
    convolution = st.tuples(st.integers(1, 5), st.integers(1, 5), size, size)
    found = draw(st.lists(st.one_of(dense, convolution), min_size=1, max_size=6))
    return {f"layer_{n}": shape for n, shape in enumerate(found)}, draw(thousandths)


balanced = st.sampled_from(["erdos_renyi", "erk"])


def asked_of(shapes, sparsity):
    """How many zeros there are to be in all: floor(S N) of each layer, in whole numbers."""
    return sum(round(1000 * sparsity) * math.prod(shape) // 1000 for shape in shapes.values())


def zeros_of(shapes, sparsities):
    """How many zeros the layers get in all."""
    return sum(rigl_numpy.zeros(sparsities[n], math.prod(s)) for n, s in shapes.items())


@many
@given(layers(), st.sampled_from(["uniform", "erdos_renyi", "erk"]))
def test_sparsities_leave_something_in_every_layer(case, name):
    shapes, sparsity = case
    sparsities = distributions.get(name)(shapes, sparsity)
    assert list(sparsities) == list(shapes)
    assert all(0 <= s < 1 for s in sparsities.values())


@many
@given(layers(), balanced)
def test_zeros_are_those_asked_for_within_one_entry_per_layer(case, name):
    shapes, sparsity = case
    sparsities = distributions.get(name)(shapes, sparsity)
    asked = asked_of(shapes, sparsity)
    assert asked - len(shapes) < zeros_of(shapes, sparsities) <= asked


@many
@given(layers(), balanced)
def test_of_equal_layers_each_has_exactly_the_zeros_asked_for(case, name):
    shapes, sparsity = case
    shape = shapes["layer_0"]
    equal = dict.fromkeys(shapes, shape)
    entries = math.prod(shape)
    for value in distributions.get(name)(equal, sparsity).values():
        assert distributions.zeros(value, entries) == asked_of({"one": shape}, sparsity)


@many
@given(layers(), balanced)
def test_balanced_distributions_agree_with_the_reference(case, name):
    shapes, sparsity = case
    reference = {"erdos_renyi": rigl_numpy.erdos_renyi, "erk": rigl_numpy.erdos_renyi_kernel}
    expected = reference[name](shapes, sparsity)
    sparsities = distributions.get(name)(shapes, sparsity)
    np.testing.assert_allclose(list(sparsities.values()), list(expected.values()), atol=1e-9)


@many
@given(layers(), balanced, st.data())
def test_fixed_layers_keep_their_sparsity_and_leave_the_others_alone(case, name, data):
    shapes, sparsity = case
    chosen = data.draw(st.sets(st.sampled_from(list(shapes))))
    fixed = {n: data.draw(thousandths) for n in sorted(chosen)}
    sparsities = distributions.get(name)(shapes, sparsity, fixed=fixed)
    rest = {n: shape for n, shape in shapes.items() if n not in fixed}
    assert sparsities == {**distributions.get(name)(rest, sparsity), **fixed}


# Training.


def mlp(widths):
    layers = [keras.layers.Dense(width, activation="relu") for width in widths]
    return keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(3)])


def cnn(widths):
    layers = [keras.layers.Conv2D(width, 3, activation="relu") for width in widths]
    ends = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((8, 8, 2)), *layers, *ends])


METHODS = {
    "rigl": lambda: methods.RigL(drop_fraction=0.5, update_interval=2, end_step=100),
    "set": lambda: methods.SET(drop_fraction=0.5, update_interval=2, end_step=100),
    "snfs": lambda: methods.SNFS(drop_fraction=0.5, update_interval=2, end_step=100),
    "rigl-batches": lambda: methods.RigL(
        drop_fraction=0.5, update_interval=2, end_step=100, gradient_batches=2
    ),
    "static": methods.Static,
}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
}


def compile_sparse(sparse, optimizer, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sparse.compile(optimizer=OPTIMIZERS[optimizer](), loss=loss, **kwargs)


def batches(model, count=8, seed=0):
    """Random inputs of the model's shape, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 10, *model.input_shape[1:])).astype("float32")
    return list(zip(x, rng.integers(0, 3, size=(count, 10)), strict=True))


def slots_of(optimizer, weight):
    """The optimizer's slots of a weight, as NumPy arrays."""
    names = ("momentums", "_momentums", "_velocities")
    lists = {id(s): s for s in (getattr(optimizer, name, None) for name in names) if s}
    index = optimizer._get_variable_index(weight)
    return [slots[index].numpy() for slots in lists.values()]


def active_of(sparse):
    return [np.count_nonzero(mask) for mask in sparse.masks.values()]


@few
@given(
    make=st.sampled_from([mlp, cnn]),
    widths=st.lists(st.integers(4, 10), min_size=1, max_size=2),
    sparsity=st.floats(0.2, 0.95),
    distribution=st.sampled_from(["erk", "erdos_renyi", "uniform"]),
    method=st.sampled_from(list(METHODS)),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    eager=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_training_keeps_every_invariant(
    make, widths, sparsity, distribution, method, optimizer, eager, seed
):
    model = make(widths)
    sparse = tf_rigl.sparsify(
        model, METHODS[method](), sparsity, distribution=distribution, seed=seed
    )
    compile_sparse(sparse, optimizer, run_eagerly=eager)
    items, active = sparse.masked_weights, active_of(sparse)
    sizes = [math.prod(item.weight.shape) for item in items]
    for item, count, size in zip(items, active, sizes, strict=True):
        assert size - count == rigl_numpy.zeros(item.target_sparsity, size)
    target = sum(item.target_sparsity * size for item, size in zip(items, sizes, strict=True))

    for step, (x, y) in enumerate(batches(model, seed=seed)):
        before = sparse.masks
        sparse.train_on_batch(x, y)
        assert sparse.step == step + 1
        assert active_of(sparse) == active
        assert abs(sparse.sparsity * sum(sizes) - target) <= len(items)
        masks = sparse.masks
        if method == "static" or step % 2 == 1 or step == 0:
            np.testing.assert_equal(masks, before)
        for item in items:
            mask, weight = masks[item.path], item.weight.numpy()
            assert np.all(np.isfinite(weight))
            assert np.all(weight[~mask] == 0)
            slots = slots_of(sparse.optimizer, item.weight)
            assert slots
            grown = mask & ~before[item.path]
            for array in (weight, *slots):
                assert np.all(array[grown] == 0)
            for slot in slots:
                assert np.all(slot[~mask] == 0)


@pytest.mark.parametrize("method", list(METHODS))
def test_masks_move_where_the_method_moves_them(method):
    """Guards the test above: all but Static do change masks."""
    model = mlp([10])
    sparse = tf_rigl.sparsify(model, METHODS[method](), 0.5, seed=0)
    compile_sparse(sparse, "sgd", run_eagerly=True)
    before = sparse.masks
    for x, y in batches(model):
        sparse.train_on_batch(x, y)
    changed = any(np.any(mask != before[path]) for path, mask in sparse.masks.items())
    assert changed == (method != "static")


PRUNING = {
    "snip": lambda scope: methods.SNIP(scope=scope),
    "snip-batches": lambda scope: methods.SNIP(scope=scope, batches=2),
    "magnitude": lambda scope: methods.MagnitudePruning(
        schedules.PolynomialDecay(begin_step=1, end_step=7, frequency=3), scope=scope
    ),
}


@few
@given(
    make=st.sampled_from([mlp, cnn]),
    widths=st.lists(st.integers(4, 10), min_size=1, max_size=2),
    sparsity=st.floats(0.2, 0.95),
    distribution=st.sampled_from(["erk", "erdos_renyi", "uniform", "uniform_all"]),
    method=st.sampled_from(list(PRUNING)),
    scope=st.sampled_from(["layer", "global"]),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    seed=st.integers(0, 1000),
)
def test_pruning_keeps_every_invariant(
    make, widths, sparsity, distribution, method, scope, optimizer, seed
):
    """Masks only shrink, down to the counts of the targets; what is pruned is zero."""
    model = make(widths)
    sparse = tf_rigl.sparsify(
        model, PRUNING[method](scope), sparsity, distribution=distribution, seed=seed
    )
    compile_sparse(sparse, optimizer, run_eagerly=True)
    items = sparse.masked_weights
    for x, y in batches(model, seed=seed):
        before = sparse.masks
        sparse.train_on_batch(x, y)
        masks = sparse.masks
        for item in items:
            mask = masks[item.path]
            assert not np.any(mask & ~before[item.path])
            for array in (item.weight.numpy(), *slots_of(sparse.optimizer, item.weight)):
                assert np.all(array[~mask] == 0)
    counts = active_of(sparse)
    sizes = [math.prod(item.weight.shape) for item in items]
    targets = [
        size - rigl_numpy.zeros(item.target_sparsity, size)
        for item, size in zip(items, sizes, strict=True)
    ]
    if scope == "global":
        counts, targets = sum(counts), sum(targets)
    assert counts == targets


def test_a_new_optimizer_between_batches_keeps_the_invariants():
    """Its slots are new variables: they too are cleared where masks change."""
    model = mlp([10])
    sparse = tf_rigl.sparsify(model, METHODS["rigl"](), 0.5, seed=0)
    compile_sparse(sparse, "sgd")
    data = batches(model, count=10)
    for x, y in data[:3]:
        sparse.train_on_batch(x, y)
    compile_sparse(sparse, "adam")
    for x, y in data[3:]:
        sparse.train_on_batch(x, y)
        for item in sparse.masked_weights:
            mask = item.mask.numpy()
            for variable in (item.weight.numpy(), *slots_of(sparse.optimizer, item.weight)):
                assert np.all(variable[~mask] == 0)
