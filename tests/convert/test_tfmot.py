"""The same pruning as tensorflow-model-optimization's (tfmot), and its models taken over."""

import os
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import BATCH, compiled, equal_masks, fit, mlp, random_data
from tf_rigl import schedules
from tf_rigl.convert.tfmot import from_tfmot
from tf_rigl.methods import MagnitudePruning
from tf_rigl.patterns import Unstructured

with pytest.MonkeyPatch.context() as patch:
    # tfmot sets it when imported, and processes that other tests start would have it.
    patch.setenv("TF_USE_LEGACY_KERAS", os.environ.get("TF_USE_LEGACY_KERAS", ""))
    import tensorflow_model_optimization
    import tf_keras

    tfmot = tensorflow_model_optimization.sparsity.keras

FEATURES = 7
LAYERS = (11, 3)  # With 7 features: 77 and 33 weights, which few sparsities divide.


def prune(model, schedule, **kwargs):
    """tfmot's model of a `tf_keras` model."""
    return tfmot.prune_low_magnitude(model, schedule, **kwargs)


def wrappers(model):
    """tfmot's wrappers with something to prune, nested models included."""
    found = (layer for layer in model._flatten_layers() if hasattr(layer, "pruning_vars"))
    return [layer for layer in found if layer.pruning_vars]


def tfmot_masks(model):
    """Its masks, in model order."""
    return [mask.numpy() != 0 for w in wrappers(model) for _, mask, _ in w.pruning_vars]


def tfmot_fit(model, x, y, learning_rate=0.0, compile_it=True):
    """Trains as tfmot wants it; returns the masks after each batch."""
    seen = []
    record = tf_keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(tfmot_masks(model))
    )
    if compile_it:
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf_keras.optimizers.SGD(learning_rate), loss)
    callbacks = [tfmot.UpdatePruningStep(), record]
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
    return seen


def same_network():
    """A `tf_keras` and a Keras 3 model of the same weights."""
    old, new = (
        k.Sequential(
            [k.Input((FEATURES,)), k.layers.Dense(LAYERS[0], "relu"), k.layers.Dense(LAYERS[1])]
        )
        for k in (tf_keras, keras)
    )
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=w.shape) * 0.3 for w in new.get_weights()]
    old.set_weights(weights)
    new.set_weights(weights)
    return old, new


def both(theirs, ours, batches, learning_rate):
    """The masks after each batch, by tfmot and by this library."""
    old, new = same_network()
    x, y = random_data((FEATURES,), batches=batches)
    expected = tfmot_fit(prune(old, theirs), x, y, learning_rate)
    sparse = tf_rigl.sparsify(new, MagnitudePruning(ours), distribution="uniform_all")
    received = fit(compiled(sparse, keras.optimizers.SGD(learning_rate)), x, y)
    return expected, [list(masks.values()) for masks in received]


def check_same_masks(expected, received, changes=2):
    """Equal after each batch; and they do change."""
    assert len(expected) == len(received)
    for batch, (one, other) in enumerate(zip(expected, received, strict=True), start=1):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(b, a, err_msg=f"batch {batch}")
    counts = [sum(int(mask.sum()) for mask in masks) for masks in expected]
    assert len(set(counts)) >= changes


# The same masks.

CONSTANT = [
    (0.5, 0, -1, 1),
    (0.73, 3, 7, 3),
    (0.95, 2, -1, 100),
]
POLYNOMIAL = [
    (0.0, 0.9, 0, 10, 3, 1),
    (0.2, 0.87, 1, 11, 3, 3),
    (0.5, 0.6, 2, 8, 1, 2),
    (0.0, 0.99, 4, 9, 2.5, 2),
]


@pytest.mark.parametrize(("sparsity", "begin", "end", "frequency"), CONSTANT)
def test_constant_sparsity_of_fixed_weights(sparsity, begin, end, frequency):
    schedule = tfmot.ConstantSparsity(sparsity, begin, end, frequency)
    check_same_masks(*both(schedule, schedule, 12, 0.0), changes=1 + (begin > 1))


@pytest.mark.parametrize("arguments", POLYNOMIAL)
def test_polynomial_decay_of_fixed_weights(arguments):
    schedule = tfmot.PolynomialDecay(*arguments)
    check_same_masks(*both(schedule, schedule, 12, 0.0), changes=3)


# There is one difference, and it is meant: tfmot lets the optimizer move pruned weights, and
# masks them again before the next batch. At the next pruning such a weight has the magnitude
# of one step, so it comes back if that is more than the least weight kept. Here what is pruned
# stays pruned. With a small learning rate no weight ever comes back.
@pytest.mark.parametrize("own", [False, True], ids=["tfmot's schedule", "own schedule"])
def test_the_same_training_prunes_the_same_weights(own):
    arguments = 0.1, 0.85, 5, 53, 3, 4  # The frequency divides: tfmot has no last time else.
    theirs = tfmot.PolynomialDecay(*arguments)
    ours = schedules.PolynomialDecay(*arguments) if own else theirs
    check_same_masks(*both(theirs, ours, 60, 1e-3), changes=10)


def test_own_constant_sparsity_prunes_the_same_weights():
    theirs = tfmot.ConstantSparsity(0.6, 5, frequency=10)
    ours = schedules.ConstantSparsity(0.6, 5, frequency=10)
    check_same_masks(*both(theirs, ours, 60, 1e-3))


def kept(method, step, sizes, target):
    """How many entries of weights of these sizes are kept at a step."""
    items = [
        types.SimpleNamespace(
            is_sparse=True,
            target_sparsity=target,
            pattern=Unstructured(),
            shape=(size,),
            weight=types.SimpleNamespace(shape=(size,), trainable=True),
        )
        for size in sizes
    ]
    plan = method.plan(step - 1, list(sizes), items=items)
    return list(sizes) if plan is None else [keep for keep, _ in plan]


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, 0.9, 0, 1500, 3, 1),
        (0.3, 0.77, 17, 1217, 3, 1),
        (0.0, 0.995, 100, 1107, 1, 1),
        (0.5, 0.9, 0, 1333, 2, 1),
    ],
)
def test_counts_are_those_of_tfmot_at_every_step(arguments):
    """As its graph computes them, in float32; the last bit may cost one entry of very many."""
    sizes = [1, 2, 10, 33, 77, 450, 1000]
    large = [4097, 235_200, 2_359_296]
    theirs, ours = tfmot.PolynomialDecay(*arguments), schedules.PolynomialDecay(*arguments)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64)])
    def count(step):
        due, sparsity = theirs(step)
        entries = tf.constant(sizes + large, tf.float32)
        return due, tf.cast(tf.maximum(tf.round(entries * (1 - sparsity)), 1), tf.int32)

    method = MagnitudePruning(ours)
    for step in range(1, 1510):
        due, expected = count(step)
        assert ours(step)[0] == bool(due)
        if due:
            received = kept(method, step, sizes + large, arguments[1])
            difference = np.abs(received - expected.numpy())
            assert not difference[: len(sizes)].any(), step
            assert (difference <= 1).all(), step


# Models taken over.

IMAGE = (8, 8, 3)
SEQUENCE = (5, 6)


def test_sparsify_says_where_models_of_keras_2_go():
    with pytest.raises(ValueError, match=r"Keras 2.*interop\.from_tfmot"):
        tf_rigl.sparsify(old_mlp())


def old_mlp():
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [tf_keras.Input((FEATURES,)), layers.Dense(9, "relu"), layers.Dense(3)]
    )


def old_cnn():
    layers = tf_keras.layers
    inputs = tf_keras.Input(IMAGE)
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.Conv2D(6, 1, use_bias=False, name="pointwise")(y)
    x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))
    return tf_keras.Model(inputs, layers.Dense(3, name="head")(layers.Dropout(0.1)(x)))


def old_nested(sequential):
    layers = tf_keras.layers
    first = tf_keras.Input((FEATURES,))
    hidden, out = layers.Dense(9, "relu", name="in"), layers.Dense(5, name="out")
    if sequential:
        inner = tf_keras.Sequential([first, hidden, out], name="inner")
    else:
        inner = tf_keras.Model(first, out(hidden(first)), name="inner")
    inputs = tf_keras.Input((FEATURES,))
    return tf_keras.Model(inputs, layers.Dense(3, name="head")(inner(inputs)))


def old_namesakes():
    """Layers of one name and shape: in two nested models, and beside them."""
    layers = tf_keras.layers

    def masked(x):
        return prune(layers.Dense(FEATURES, "tanh", name="fc"), schedule())(x)

    def block(name):
        inputs = tf_keras.Input((FEATURES,))
        return tf_keras.Model(inputs, masked(inputs), name=name)

    inputs = tf_keras.Input((FEATURES,))
    x = masked(block("two")(block("one")(inputs)))
    return tf_keras.Model(inputs, layers.Dense(3, name="head")(x))


def old_lstm():
    layers = tf_keras.layers
    return tf_keras.Sequential([tf_keras.Input(SEQUENCE), layers.LSTM(4), layers.Dense(3)])


def old_bidirectional():
    """tfmot prunes no wrapper of layers: what is in it stays dense."""
    layers = tf_keras.layers
    both_ways = layers.Bidirectional(layers.LSTM(4))
    hidden = prune(layers.Dense(6), schedule())
    return tf_keras.Sequential([tf_keras.Input(SEQUENCE), both_ways, hidden, layers.Dense(3)])


OLD = {
    "mlp": (old_mlp, (FEATURES,)),
    "cnn": (old_cnn, IMAGE),
    "nested-functional": (lambda: old_nested(sequential=False), (FEATURES,)),
    "nested-sequential": (lambda: old_nested(sequential=True), (FEATURES,)),
    "nested-namesakes": (old_namesakes, (FEATURES,)),
    "lstm": (old_lstm, SEQUENCE),
    "bidirectional": (old_bidirectional, SEQUENCE),
}


def schedule(**kwargs):
    """Steep enough to be well under way after three batches."""
    arguments = {"begin_step": 1, "end_step": 7, "frequency": 2}
    return tfmot.PolynomialDecay(0.2, 0.8, **{**arguments, **kwargs})


def half_pruned(kind="mlp", batches=3):
    """tfmot's model amid its pruning, and data of its shape."""
    make, shape = OLD[kind]
    tf_keras.utils.set_random_seed(0)
    model = make()
    if not wrappers(model):
        model = prune(model, schedule())
    x, y = random_data(shape, batches=8)
    tfmot_fit(model, x[: batches * BATCH], y[: batches * BATCH], 0.05)
    return model, x, y


@pytest.mark.parametrize("kind", OLD)
def test_a_pruned_model_has_the_same_outputs_and_masks(kind):
    model, x, _ = half_pruned(kind)
    sparse = from_tfmot(model)
    np.testing.assert_allclose(
        sparse.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )
    assert sparse.step == 3
    zeros = sum(int((~mask).sum()) for mask in tfmot_masks(model))
    assert sum(int((~mask).sum()) for mask in sparse.masks.values()) == zeros > 0
    for item in sparse.masked_weights:
        assert (item.weight.numpy()[~item.mask.numpy()] == 0).all()
    expected = sorted(mask.tobytes() for mask in tfmot_masks(model))
    masked = [mask.tobytes() for path, mask in sparse.masks.items() if not mask.all()]
    assert sorted(masked) == expected


def test_layers_of_the_same_name_have_their_own_masks():
    """The test above does not see where a mask has gone."""
    model, _, _ = half_pruned("nested-namesakes")
    expected = {"/".join(p): mask for p, mask in named_masks(model)}
    assert list(expected) == ["one/fc/kernel", "two/fc/kernel", "fc/kernel"]
    sparse = from_tfmot(model)
    assert equal_masks({p: m for p, m in sparse.masks.items() if p != "head/kernel"}, expected)
    assert not equal_masks(expected, dict(zip(expected, [*expected.values()][::-1], strict=True)))


def named_masks(model, route=()):
    """The masks of tfmot's wrappers, with the names on the way to the weights."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from named_masks(layer, (*route, layer.name))
        for weight, mask, _ in getattr(layer, "pruning_vars", ()):
            yield (*route, layer.layer.name, weight.name.split("/")[-1][:-2]), mask.numpy() != 0


@pytest.mark.parametrize("kind", ["cnn", "nested-functional", "nested-namesakes"])
def test_pruning_goes_on_where_it_stood(kind):
    """Weights do not change here, so masks of both are those of the same magnitudes."""
    model, x, y = half_pruned(kind)
    rest = x[3 * BATCH :], y[3 * BATCH :]
    sparse = compiled(from_tfmot(model), keras.optimizers.SGD(0.0))
    expected = tfmot_fit(model, *rest)
    received = fit(sparse, *rest)
    assert sparse.step == 8
    for one, other in zip(expected, received, strict=True):
        others = [mask for mask in other.values() if not mask.all()]
        assert sorted(m.tobytes() for m in others) == sorted(m.tobytes() for m in one)
    assert not equal_masks(received[0], received[-1])


def test_the_model_that_is_taken_over_is_left_as_it_is():
    model, x, y = half_pruned()
    before = [w.numpy() for w in model.weights]
    sparse = compiled(from_tfmot(model), keras.optimizers.SGD(0.5))
    fit(sparse, x, y)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert tfmot_fit(model, x, y, compile_it=False)


def test_a_model_that_was_never_trained_begins_at_the_beginning():
    model = prune(old_mlp(), schedule())
    sparse = compiled(from_tfmot(model), keras.optimizers.SGD(0.0))
    assert sparse.step == 0
    assert sparse.sparsity == 0.0
    x, y = random_data((FEATURES,))
    received = [list(masks.values()) for masks in fit(sparse, x, y)]
    check_same_masks(tfmot_fit(model, x, y), received, changes=3)


def test_a_saved_model_goes_on_by_the_same_schedule(tmp_path):
    model, x, y = half_pruned()
    sparse = compiled(from_tfmot(model), keras.optimizers.SGD(0.05), run_eagerly=True)
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    one, other = (fit(m, x, y) for m in (sparse, loaded))
    assert all(equal_masks(a, b) for a, b in zip(one, other, strict=True))
    assert loaded.method.get_config() == sparse.method.get_config()


@pytest.mark.parametrize(
    "theirs",
    [
        tfmot.ConstantSparsity(0.6, 0, frequency=2),
        tfmot.PolynomialDecay(0.1, 0.6, 0, 6, frequency=3),
    ],
)
def test_schedules_of_tfmot_say_how_sparse_the_model_becomes(theirs):
    method = MagnitudePruning(theirs)
    sparse = tf_rigl.sparsify(mlp(), method, seed=0)
    targets = [item.target_sparsity for item in sparse.masked_weights]
    sizes = [item.weight.shape.num_elements() for item in sparse.masked_weights]
    assert abs(np.dot(targets, sizes) / sum(sizes) - 0.6) < 0.02
    assert method.final_sparsity == 0.6
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(method))
    assert copy.schedule.get_config() == theirs.get_config()
    assert type(copy.schedule) is type(theirs)
    message = r"`sparsity` must be 0\.6, the final sparsity of the schedule"
    with pytest.raises(ValueError, match=message):
        tf_rigl.sparsify(mlp(), method, sparsity=0.7)


class Burst(tfmot.PruningSchedule):
    """Prunes for a while, and later says 0; its configuration is as tfmot wants it."""

    def __init__(self, sparsity=0.5, last=4):
        self.sparsity, self.last = sparsity, last

    def __call__(self, step):
        due = tf.logical_and(step >= 2, step <= self.last)
        return due, tf.where(step <= self.last, self.sparsity, 0.0)

    def get_config(self):
        config = {"sparsity": self.sparsity, "last": self.last}
        return {"class_name": type(self).__name__, "config": config}


class PlainBurst(Burst):
    """Its configuration is as Keras wants it."""

    def get_config(self):
        return super().get_config()["config"]


for cls in (Burst, PlainBurst):
    keras.saving.register_keras_serializable(package="tests")(cls)


@pytest.mark.parametrize("method", ["static", None])
def test_a_schedule_that_ends_at_zero_leaves_the_sparsity_of_the_masks(method):
    tf_keras.utils.set_random_seed(0)
    model = prune(old_mlp(), Burst())
    x, y = random_data((FEATURES,), batches=6)
    tfmot_fit(model, x, y, 0.05)
    sparse = from_tfmot(model, method)
    for item, mask in zip(sparse.masked_weights, tfmot_masks(model), strict=True):
        np.testing.assert_array_equal(item.mask.numpy(), mask)
        assert item.target_active() == mask.sum() < mask.size
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(sparse.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    if method == "static":
        fit(compiled(sparse, run_eagerly=True), x, y)


@pytest.mark.parametrize("cls", [Burst, PlainBurst])
def test_a_registered_schedule_of_ones_own_is_saved(cls, tmp_path):
    method = MagnitudePruning(cls(0.6, last=5))
    config = method.get_config()
    for copy in (
        MagnitudePruning.from_config(config),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(method)),
    ):
        assert type(copy.schedule) is cls
        assert (copy.schedule.sparsity, copy.schedule.last) == (0.6, 5)
        assert copy.get_config() == config
        assert repr(copy) == repr(method)
    model = compiled(tf_rigl.sparsify(mlp(), method, seed=0), run_eagerly=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    one, other = (fit(m, *random_data()) for m in (model, loaded))
    assert all(equal_masks(a, b) for a, b in zip(one, other, strict=True))
    assert model.sparsity > 0.4


def test_another_method_can_go_on():
    model, x, y = half_pruned()
    tfmot_fit(model, x, y)  # To the end.
    method = tf_rigl.methods.RigL(update_interval=2, end_step=1000)
    sparse = compiled(from_tfmot(model, method, seed=1), run_eagerly=True)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(sparse.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    before = sparse.masks
    counts = [int(mask.sum()) for mask in before.values()]
    sparse.fit(x, y, verbose=0)
    assert [int(mask.sum()) for mask in sparse.masks.values()] == counts
    assert not equal_masks(sparse.masks, before)


@pytest.mark.parametrize("what", ["m by n", "block", "schedules"])
def test_what_cannot_go_on_can_stay(what):
    """And is said to be so where no method is given."""
    layers = tf_keras.layers
    if what == "schedules":
        parts = [layers.Dense(8), layers.Dense(8)]
        ends = schedule(), schedule(end_step=9)
        model = tf_keras.Sequential(
            [tf_keras.Input((8,)), *(prune(p, s) for p, s in zip(parts, ends, strict=True))]
        )
        message = "different pruning schedules"
    else:
        how = {"m by n": {"sparsity_m_by_n": (2, 4)}, "block": {"block_size": (2, 2)}}[what]
        model = prune(
            tf_keras.Sequential([tf_keras.Input((8,)), layers.Dense(8)]), schedule(), **how
        )
        message = "in blocks or m by n"
    x, y = random_data((8,))
    tfmot_fit(model, x, y)
    with pytest.raises(ValueError, match=message):
        from_tfmot(model)
    sparse = compiled(from_tfmot(model, "static"), run_eagerly=True)
    for mask, expected in zip(sparse.masks.values(), tfmot_masks(model), strict=True):
        np.testing.assert_array_equal(mask, expected)
        assert not mask.all()
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(sparse.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    before = sparse.masks
    sparse.fit(x, y, verbose=0)
    assert equal_masks(sparse.masks, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (mlp, "must be a `tf_keras` model"),
        (lambda: None, "must be a `tf_keras` model.*model=None"),
        (old_mlp, "must have layers wrapped by `prune_low_magnitude`"),
    ],
)
def test_what_is_not_a_pruned_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        from_tfmot(make())


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'rigl'"):
        from_tfmot(prune(old_mlp(), schedule()), "rigle")
