"""What `fit` can do, on sparse models: the rows of docs/fit.md that other tests do not hold."""

import csv
import functools
import itertools
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    METHODS,
    CheckEveryStep,
    active,
    check_equal_models,
    check_invariants,
    check_pruned,
    compiled,
    equal_masks,
    fit,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl.training import loop

EAGER = {"run_eagerly": True}
SGD = keras.optimizers.SGD


class Watch(CheckEveryStep):
    """The invariants after every execution, the counts that the model has in mind among them."""

    def __init__(self):
        super().__init__()
        self.by_step = {}

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self.by_step[self.model.step] = self.masks[-1]
        assert loop.of(self.model).plan.active == list(active(self.model).values())


def sparse(optimizer="sgd", method=None, **how):
    """A model that begins with the same weights and masks whenever it is made."""
    keras.utils.set_random_seed(1)
    return compiled(sparsify(mlp(), method), optimizer, **how)


def watched(model, x, y=None, callbacks=(), **kwargs):
    """Trains, and returns the masks by step."""
    watch = Watch()
    fit(model, x, y, callbacks=[watch, *callbacks], **kwargs)
    return watch.by_step


def ragged_data(batches):
    """Data of which the last batch is a part."""
    x, y = random_data(batches=batches)
    return x[:-3], y[:-3]


def moves(masks):
    """How often masks changed."""
    return sum(not equal_masks(one, other) for one, other in itertools.pairwise(masks.values()))


def check_same_training(one, other, masks, others):
    """Two models have had the same masks wherever both were looked at, and end as equals."""
    steps = masks.keys() & others.keys()
    assert len(steps) > 1
    assert all(equal_masks(masks[step], others[step]) for step in steps)
    check_equal_models(one, other, exact=False)


def trainable(model):
    return [w.numpy() for w in model.trainable_variables]


def gradients(model, x, y):
    """The gradients of all weights on a batch, masked where weights are."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    found = tape.gradient(loss, [w.value for w in model.trainable_variables])
    masks = {id(item.weight): item.mask.numpy() for item in model.masked_weights}
    return [
        g.numpy() * masks.get(id(w), True)
        for g, w in zip(found, model.trainable_variables, strict=True)
    ]


# Ways to execute steps.

WAYS = {
    "graph": {},
    "several steps": {"steps_per_execution": 3},
    "more steps than an epoch has": {"steps_per_execution": 8, **EAGER},
    "XLA": {"jit_compile": True},
    "XLA, several steps": {"jit_compile": True, "steps_per_execution": 3},
}


def executed(**how):
    """Two epochs of seven batches, the last a part; updates at steps 4, 8 and 12."""
    model = sparse("adam", rigl(update_interval=4), **how)
    return model, watched(model, *ragged_data(7), epochs=2)


@functools.cache
def executed_one_by_one():
    model, masks = executed(**EAGER)
    assert len(masks) == 14
    assert moves(masks) == 3
    return model, masks


@pytest.mark.parametrize("way", WAYS)
def test_the_way_steps_are_executed_changes_nothing(way):
    """Updates fall inside executions, and epochs end inside one, with a part of a batch."""
    expected, expected_masks = executed_one_by_one()
    model, masks = executed(**WAYS[way])
    check_same_training(model, expected, masks, expected_masks)
    assert int(model.optimizer.iterations) == 14 - 3


# Half precision.


def half(method, optimizer, **how):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return sparse(optimizer, method, **how)
    finally:
        keras.config.set_dtype_policy("float32")


class CheckOverflows(Watch):
    """After each step whose gradients overflowed all is as before; after others it is not."""

    def __init__(self):
        super().__init__()
        self.kinds, self.before = set(), None

    def state(self):
        optimizer = self.model.optimizer
        scale, iterations = (
            float(keras.ops.convert_to_numpy(variable))
            for variable in (optimizer.dynamic_scale, optimizer.iterations)
        )
        return self.model.masks, trainable(self.model), iterations, scale

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.built:
            self.before = self.state()

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.before is None:
            return
        (masks, weights, iterations, scale), now = self.before, self.state()
        same_masks = equal_masks(masks, now[0])
        same_weights = all((a == b).all() for a, b in zip(weights, now[1], strict=True))
        overflowed = now[3] < scale
        step = self.model.step - 1
        update = step > 0 and step % self.model.method.update_interval == 0
        self.kinds.add((overflowed, update))
        if overflowed:
            assert same_masks
            assert same_weights
            assert now[2:] == (iterations, scale / 2)
        elif update:
            assert not same_masks
        else:
            assert same_masks
            assert not same_weights


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, EAGER) for name in ("set", "rigl", "rigl-after", "rigl-batches", "snfs")),
        ("snfs", {}),
    ],
)
def test_a_step_that_overflows_changes_neither_masks_nor_counts_nor_weights(name, how):
    """The loss scale begins too high and grows again: ordinary and update steps overflow."""
    optimizer = keras.optimizers.LossScaleOptimizer(
        SGD(0.1), initial_scale=2.0**24, dynamic_growth_steps=2
    )
    check = CheckOverflows()
    fit(half(METHODS[name](), optimizer, **how), *random_data(batches=24), callbacks=[check])
    assert check.kinds == set(itertools.product([False, True], repeat=2))


def test_an_overflow_of_a_bias_alone_is_one_of_the_whole_step():
    """Where the optimizer is applied on update steps, and so looks at every gradient."""
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1), initial_scale=1.0)
    model = half(METHODS["rigl-after"](), optimizer, **EAGER)
    x, y = random_data(batches=3)
    y[:] = 0  # The gradients of an output's bias add up, those of its weights do not.
    fit(model, x[: 2 * BATCH], y[: 2 * BATCH])
    optimizer.dynamic_scale.assign(2.0**17)
    before, weights = model.masks, trainable(model)
    fit(model, x[2 * BATCH :], y[2 * BATCH :])
    assert float(optimizer.dynamic_scale) == 2.0**16
    assert equal_masks(model.masks, before)
    for weight, old in zip(trainable(model), weights, strict=True):
        np.testing.assert_array_equal(weight, old)
    fit(model, x[:BATCH], y[:BATCH])
    fit(model, x[:BATCH], y[:BATCH])
    assert not equal_masks(model.masks, before)


@pytest.mark.parametrize("name", ["rigl", "rigl-after", "snfs"])
def test_overflows_under_the_mask_lower_the_loss_scale_until_masks_move(name):
    """Gradients are larger there than elsewhere: the optimizer alone would not see them."""
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1), initial_scale=1.0)
    model = half(METHODS[name](), optimizer, **EAGER)
    item = model.masked_weights[0]
    mask = np.zeros(item.shape, bool)
    mask[1:6] = True
    item.set_mask(mask)
    x, y = random_data(batches=24)
    x[:, 0] = 1e4  # The weights of this feature are masked.
    fit(model, x[: 2 * BATCH], y[: 2 * BATCH])
    optimizer.dynamic_scale.assign(2.0**10)
    check = CheckOverflows()
    fit(model, x[2 * BATCH : 4 * BATCH], y[2 * BATCH : 4 * BATCH], callbacks=[check])
    np.testing.assert_array_equal(item.mask.numpy(), mask)
    assert float(optimizer.dynamic_scale) < 2.0**10
    assert (True, True) in check.kinds
    fit(model, x[4 * BATCH :], y[4 * BATCH :])
    assert item.mask.numpy()[0].any()


# Logical devices have to be made before TensorFlow starts: hence a process of its own.
TWO_REPLICAS = """
import itertools
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from tests.training.test_fit import *
x, y = random_data()
for step in (1, 2):
    x[step * BATCH + BATCH // 2] = np.inf  # In the half of the second replica.
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1), initial_scale=8.0)
    model = sparse(optimizer)
check = CheckOverflows()
fit(model, x, y, callbacks=[check])
assert check.kinds == set(itertools.product([False, True], repeat=2)), check.kinds
"""


def test_an_overflow_on_the_second_replica_is_one_of_the_whole_step():
    """Keras asks the first one alone, and would train on."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_pruning_by_magnitude_goes_by_its_schedule_where_gradients_overflow():
    """It needs none; what it keeps is as it was."""
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1), initial_scale=8.0)
    model = half(METHODS["magnitude"](), optimizer, **EAGER)
    before = trainable(model)
    x, y = random_data()
    fit(model, x * np.inf, y)
    check_pruned(model)
    assert int(optimizer.iterations) == 0
    masks = {id(item.weight): item.mask.numpy() for item in model.masked_weights}
    for weight, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old * masks.get(id(weight), True))


# What optimizers can be told.


def test_gradients_add_up_only_where_the_mask_stays():
    """Batches 2 and 4 make one step of SGD; between them the masks change."""
    model = sparse(SGD(0.5, gradient_accumulation_steps=2), rigl(update_interval=3), **EAGER)
    x, y = random_data(batches=5)
    batches = [(x[n : n + BATCH], y[n : n + BATCH]) for n in range(0, len(x), BATCH)]
    for batch in batches[:2]:
        model.train_on_batch(*batch)
    (old_masks, weights), first = (model.masks, trainable(model)), gradients(model, *batches[2])
    for batch in batches[2:4]:
        model.train_on_batch(*batch)
    second = gradients(model, *batches[4])
    model.train_on_batch(*batches[4])
    assert int(model.optimizer.iterations) == 2
    masks = {id(item.weight): (item.path, item.mask.numpy()) for item in model.masked_weights}
    for weight, old, one, two in zip(
        model.trainable_variables, weights, first, second, strict=True
    ):
        path, mask = masks.get(id(weight), (None, True))
        stays = mask & old_masks[path] if path else True
        assert path is None or (mask != old_masks[path]).any()
        expected = old * stays - 0.5 * (one * stays + two) / 2
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-7)
    check_invariants(model)


def test_accumulated_gradients_are_those_of_a_larger_batch():
    x, y = random_data(batches=6)
    one = sparse(SGD(0.5), "static", **EAGER)
    two = sparse(SGD(0.5, gradient_accumulation_steps=3), "static", **EAGER)
    watched(one, x, y, batch_size=3 * BATCH)
    watched(two, x, y)
    assert (one.step, two.step) == (2, 6)
    for a, b in zip(trainable(one), trainable(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def clip(gradient, norm, limit):
    return gradient * min(1, limit / norm)


OPTIONS = {
    "clipvalue": (0.01, lambda w, g, norm: w - 0.1 * np.clip(g, -0.01, 0.01)),
    "clipnorm": (0.01, lambda w, g, norm: w - 0.1 * clip(g, np.linalg.norm(g), 0.01)),
    "global_clipnorm": (0.01, lambda w, g, norm: w - 0.1 * clip(g, norm, 0.01)),
    "weight_decay": (0.3, lambda w, g, norm: w - 0.1 * 0.3 * w - 0.1 * g),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_optimizers_clip_and_decay_what_is_active(option):
    """Norms are those of the masked gradients."""
    value, expected = OPTIONS[option]
    model = sparse(SGD(0.1, **{option: value}), **EAGER)
    x, y = random_data(batches=7)
    weights, found = trainable(model), gradients(model, x[:BATCH], y[:BATCH])
    norm = np.sqrt(sum(np.sum(g**2) for g in found))
    model.train_on_batch(x[:BATCH], y[:BATCH])
    for weight, old, gradient in zip(trainable(model), weights, found, strict=True):
        np.testing.assert_allclose(weight, expected(old, gradient, norm), rtol=1e-5, atol=1e-7)
    assert moves(watched(model, x[BATCH:], y[BATCH:])) == 3


class Averages(keras.callbacks.Callback):
    """The moving averages of all weights; of what is dropped none is left."""

    def __init__(self, momentum):
        super().__init__()
        self.momentum = momentum
        self.values, self.iterations = None, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.masks = {id(item.weight): item.mask.numpy() for item in self.model.masked_weights}

    def on_train_batch_end(self, batch, logs=None):
        weights, iterations = trainable(self.model), int(self.model.optimizer.iterations)
        if iterations == self.iterations:  # An update step.
            masks = {id(item.weight): item.mask.numpy() for item in self.model.masked_weights}
            stays = {key: mask & self.masks[key] for key, mask in masks.items()}
            keys = [id(w) for w in self.model.trainable_variables]
            self.values = [v * stays.get(k, True) for k, v in zip(keys, self.values, strict=True)]
            return
        share = self.momentum if iterations > 1 else 0.0
        before = self.values or weights
        self.values = [share * a + (1 - share) * w for a, w in zip(before, weights, strict=True)]
        self.iterations = iterations


class CheckAtEnd(keras.callbacks.Callback):
    """When an epoch has ended and averages are in the place of weights."""

    def __init__(self, averages):
        super().__init__()
        self.averages = averages

    def on_epoch_end(self, epoch, logs=None):
        check_averages(self.model, self.averages)


def check_averages(model, averages):
    check_invariants(model)
    for weight, expected in zip(trainable(model), averages.values, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["at the end", "every epoch"])
def test_averages_of_weights_follow_the_masks(how):
    model = sparse(SGD(0.3, use_ema=True, ema_momentum=0.6), **EAGER)
    averages = Averages(0.6)
    callbacks = [averages]
    if how == "every epoch":
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        callbacks += [swap, CheckAtEnd(averages)]
    masks = watched(model, *random_data(batches=4), epochs=2, callbacks=callbacks)
    assert moves(masks) == 3
    check_averages(model, averages)


# Rates that change.

RATES = [0.4, 0.4, 0.1]  # Of three epochs.


def at_rates(rate, *callbacks):
    model = sparse(SGD(rate), **EAGER)
    masks = watched(model, *random_data(batches=4), epochs=3, callbacks=callbacks)
    return model, masks


@functools.cache
def at_rates_set_by_hand():
    model, masks = sparse(SGD(), **EAGER), {}
    for rate in RATES:
        model.optimizer.learning_rate = rate
        masks |= watched(model, *random_data(batches=4))
    assert moves(masks) == 5
    return model, masks


CHANGES = {
    "LearningRateScheduler": lambda: at_rates(
        0.4, keras.callbacks.LearningRateScheduler(lambda epoch: RATES[epoch])
    ),
    "ReduceLROnPlateau": lambda: at_rates(
        0.4,
        keras.callbacks.ReduceLROnPlateau(
            "loss", factor=0.25, patience=1, min_delta=1e9, cooldown=9
        ),
    ),
    # The first two epochs have five ordinary steps, 0 to 4 of the optimizer.
    "schedule": lambda: at_rates(
        keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.4, 0.1])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_learning_rates_change_as_if_set_by_hand(change):
    """At update steps the optimizer is left alone: its schedules do not count them."""
    expected, expected_masks = at_rates_set_by_hand()
    model, masks = CHANGES[change]()
    check_same_training(model, expected, masks, expected_masks)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)


# Ways to give data.


class Batches(keras.utils.PyDataset):
    """Batches in order, the last one a part."""

    def __init__(self, x, y, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // BATCH)

    def __getitem__(self, index):
        batch = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[batch], self.y[batch]


def batches_of(x, y):
    yield from (Batches(x, y)[n] for n in range(len(Batches(x, y))))


def dataset(x, y, *more):
    return tf.data.Dataset.from_tensor_slices((x, y, *more)).batch(BATCH)


def by_batch(model, x, y):
    masks = {}
    for batch in batches_of(x, y):
        logs = model.train_on_batch(*batch, return_dict=True)
        assert np.isfinite(logs["loss"])
        check_invariants(model)
        masks[model.step] = model.masks
    return masks


def several_fits(model, x, y):
    parts = (slice(0, 16), slice(16, 40), slice(40, None))
    masks = [watched(model, x[part], y[part]) for part in parts]
    return {step: mask for part in masks for step, mask in part.items()}


def split(model, x, y):
    """A quarter of what is given is kept for validation."""
    rest = len(x) // 3
    x, y = np.concatenate([x, x[:rest]]), np.concatenate([y, y[:rest]])
    return watched(model, x, y, validation_split=0.25)


def from_data(make, **kwargs):
    return lambda model, x, y: watched(model, make(x, y), batch_size=None, **kwargs)


WAYS_TO_GIVE_DATA = {
    "train_on_batch": by_batch,
    "several fits": several_fits,
    "generator": from_data(batches_of),
    "PyDataset": from_data(Batches),
    "PyDataset, two workers": from_data(functools.partial(Batches, workers=2)),
    "dataset": from_data(dataset),
    "dataset of unknown length": from_data(lambda x, y: dataset(x, y).filter(lambda *_: True)),
    "steps_per_epoch": from_data(lambda x, y: dataset(x, y).repeat(), steps_per_epoch=3, epochs=2),
    "sample_weight": lambda model, x, y: watched(model, x, y, sample_weight=np.ones(len(x))),
    "class_weight": lambda model, x, y: watched(
        model, x, y, class_weight=dict.fromkeys(range(CLASSES), 1.0)
    ),
    "validation_data": lambda model, x, y: watched(model, x, y, validation_data=(x[:9], y[:9])),
    "validation_split": split,
}


@functools.cache
def trained_on_arrays():
    model = sparse(**EAGER)
    masks = watched(model, *ragged_data(6))
    assert list(masks) == [1, 2, 3, 4, 5, 6]
    assert moves(masks) == 2
    return model, masks


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("way", WAYS_TO_GIVE_DATA)
def test_the_same_batches_train_the_same_however_they_are_given(way):
    """The last batch is a part."""
    expected, expected_masks = trained_on_arrays()
    model = sparse(**EAGER)
    masks = WAYS_TO_GIVE_DATA[way](model, *ragged_data(6))
    assert masks.keys() == expected_masks.keys()
    check_same_training(model, expected, masks, expected_masks)


def test_validation_sees_the_sparse_weights_and_leaves_no_trace():
    x, y = random_data(batches=6)
    model = sparse(**EAGER)
    history = model.fit(
        x, y, BATCH, epochs=2, verbose=0, shuffle=False, validation_data=(x[:9], y[:9])
    )
    weights = {w.path: w.numpy() for w in model.trainable_variables}
    hidden = np.tanh(x[:9] @ weights["hidden/kernel"] + weights["hidden/bias"])
    logits = hidden @ weights["head/kernel"] + weights["head/bias"]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(9), y[:9]]
    assert history.history["val_loss"][-1] == pytest.approx(losses.mean(), rel=1e-4)
    assert model.step == 12


# Callbacks that keep, restore and stop.


def continued(model, x, y, **kwargs):
    return watched(model, x, y, epochs=3, **kwargs)


@functools.cache
def trained_three_epochs():
    model = sparse("adam", rigl(end_step=0.9, decay="cosine"), **EAGER)
    masks = continued(model, *ragged_data(4))
    assert moves(masks) == 4
    return model, masks


@pytest.mark.parametrize("form", ["whole model", "weights only"])
def test_a_checkpoint_goes_on_to_the_bit(form, tmp_path):
    """That of the first of three epochs; the `end_step` is a fraction of them all."""
    expected, expected_masks = trained_three_epochs()
    method = rigl(end_step=0.9, decay="cosine")
    x, y = ragged_data(4)
    name = "{epoch}.weights.h5" if form == "weights only" else "{epoch}.keras"
    keep = keras.callbacks.ModelCheckpoint(
        tmp_path / name, save_weights_only=form == "weights only"
    )
    continued(sparse("adam", method, **EAGER), x, y, callbacks=[keep])
    path = tmp_path / name.format(epoch=1)
    if form == "weights only":
        model = compiled(sparsify(mlp(), method), "adam", **EAGER)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        model.seed = expected.seed
    else:
        model = keras.models.load_model(path)
        model.run_eagerly = True
    assert model.step == 4
    masks = continued(model, x, y, initial_epoch=1)
    check_equal_models(model, expected)
    assert list(masks) == list(range(5, 13))
    assert all(equal_masks(masks[step], expected_masks[step]) for step in masks)


@pytest.mark.parametrize("form", ["whole model", "weights only"])
def test_the_best_checkpoint_holds_the_masks_of_its_epoch(form, tmp_path):
    """With a rate that lets the loss explode it is not the last one."""
    only = form == "weights only"
    path = tmp_path / ("best.weights.h5" if only else "best.keras")
    keep = keras.callbacks.ModelCheckpoint(
        path, "loss", save_best_only=True, save_weights_only=only
    )
    epochs = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append((logs["loss"], self.model.masks, self.model.get_weights()))

    model = sparse(SGD(30.0), **EAGER)
    watched(model, *random_data(batches=3), epochs=4, callbacks=[keep, Keep()])
    best = min(range(4), key=lambda epoch: epochs[epoch][0])
    assert best < 3
    if only:
        loaded = sparsify(mlp(), seed=7)
        loaded.load_weights(path)
    else:
        loaded = keras.models.load_model(path)
    assert loaded.step == 3 * (best + 1)
    assert equal_masks(loaded.masks, epochs[best][1])
    assert not equal_masks(loaded.masks, model.masks)
    for found, expected in zip(loaded.get_weights(), epochs[best][2], strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("step", [3, 4], ids=["ordinary step", "update step"])
def test_a_loss_that_is_nan_stops_training_and_masks_hold(step):
    """Active weights may be lost, as in dense training."""
    x, y = random_data()
    x[step * BATCH] = np.nan
    model = sparse(**EAGER)
    counts = active(model)
    fit(model, x, y, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert model.stop_training
    assert model.step == step + 1
    assert active(model) == counts
    for item in model.masked_weights:
        assert (item.weight.numpy()[~item.mask.numpy()] == 0).all()


LOGGERS = {
    "CSVLogger": lambda path: keras.callbacks.CSVLogger(path / "log.csv"),
    "TensorBoard": lambda path: keras.callbacks.TensorBoard(
        path, histogram_freq=1, update_freq=1, write_graph=True
    ),
}


@functools.cache
def trained_without_logs():
    model = sparse()
    masks = watched(model, *random_data(batches=4), epochs=2)
    assert moves(masks) == 3
    return model, masks


@pytest.mark.parametrize("name", LOGGERS)
def test_logs_are_written_and_leave_no_trace(name, tmp_path):
    """TensorBoard with histograms of all weights, and a graph of the model."""
    expected, expected_masks = trained_without_logs()
    model = sparse()
    data = random_data(batches=4)
    masks = watched(model, *data, epochs=2, callbacks=[LOGGERS[name](tmp_path)])
    check_same_training(model, expected, masks, expected_masks)
    losses = model.history.history["loss"]
    if name == "CSVLogger":
        with open(tmp_path / "log.csv") as file:
            assert [float(row["loss"]) for row in csv.DictReader(file)] == losses
    else:
        np.testing.assert_allclose(epoch_losses(tmp_path / "train"), losses, rtol=1e-6)


def epoch_losses(folder):
    """The losses in the event files of TensorBoard."""
    return [
        float(tf.make_ndarray(value.tensor))
        for path in folder.glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "epoch_loss"
    ]


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_weights_of_a_dense_model_can_be_loaded_between_fits(tmp_path):
    dense = mlp()
    dense.save_weights(tmp_path / "dense.weights.h5")
    values = {w.path: w.numpy() for w in dense.trainable_variables}
    model = sparse("adam", **EAGER)
    x, y = random_data(batches=6)
    watched(model, x, y)
    masks = model.masks
    model.load_weights(tmp_path / "dense.weights.h5")
    assert equal_masks(model.masks, masks)
    for weight in model.trainable_variables:
        expected = values[weight.path] * masks.get(weight.path, True)
        np.testing.assert_array_equal(weight.numpy(), expected)
    assert moves(watched(model, x, y)) == 2  # After the first step.
    assert model.step == 12


# Layers that stop and begin to train.


def test_layers_frozen_between_fits_keep_weights_and_masks():
    model = sparse("adam", **EAGER)
    x, y = random_data()
    hidden, _ = model.masked_weights
    for frozen in (False, True, False):
        model.get_layer("hidden").trainable = not frozen
        compiled(model, "adam", **EAGER)
        before = hidden.weight.numpy(), hidden.mask.numpy()
        assert moves(watched(model, x, y)) == 3  # After the first step.
        for old, new in zip(before, (hidden.weight, hidden.mask), strict=True):
            assert (old == new.numpy()).all() == frozen


# Losses and metrics.


def two_heads():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="tanh", name="hidden")(inputs)
    heads = {n: keras.layers.Dense(CLASSES, name=n)(x) for n in ("one", "two")}
    return sparsify(keras.Model(inputs, heads))


def trained_with(weights, rate):
    """On two losses with such weights."""
    model = two_heads()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {"one": loss, "two": keras.losses.MeanSquaredError()}
    metrics = {"one": ["accuracy"], "two": ["mae"]}
    model.compile(SGD(rate), losses, loss_weights=weights, metrics=metrics, **EAGER)
    x, y = random_data()
    masks = watched(model, x, {"one": y, "two": np.eye(CLASSES)[y]})
    return model, masks


def test_several_losses_have_their_weights_in_masks_too():
    """Twice the loss at half the rate is the same training; another balance is not."""
    (one, masks), (two, others) = (
        trained_with(dict.fromkeys(("one", "two"), w), 0.4 / w) for w in (1.0, 2.0)
    )
    assert moves(masks) == 3
    check_same_training(one, two, masks, others)
    logs = one.history.history
    assert logs["loss"][0] == pytest.approx(logs["one_loss"][0] + logs["two_loss"][0])
    assert {"one_accuracy", "two_mae"} <= logs.keys()
    three, _ = trained_with({"one": 1.0, "two": 9.0}, 0.4)
    assert not equal_masks(one.masks, three.masks)


class Examples(keras.metrics.Metric):
    """How many examples there were."""

    def __init__(self):
        super().__init__(name="examples")
        self.count = self.add_weight(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign_add(keras.ops.cast(keras.ops.shape(y_true)[0], "float32"))

    def result(self):
        return self.count + 0.0


def test_metrics_see_every_batch_those_of_update_steps_too():
    def largest(y_true, y_pred):
        return keras.ops.max(y_pred, axis=-1)

    x, y = ragged_data(6)
    model = sparse(metrics=[Examples(), largest], **EAGER)
    outputs = []

    class Outputs(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            rows = slice(batch * BATCH, (batch + 1) * BATCH)
            outputs.append(self.model(x[rows]).numpy().max(-1))

    assert moves(watched(model, x, y, callbacks=[Outputs()])) == 2
    logs = model.history.history
    assert logs["examples"] == [45]
    assert logs["largest"][0] == pytest.approx(np.concatenate(outputs).mean(), rel=1e-5)


@keras.saving.register_keras_serializable(package="tests")
class Penalty(keras.layers.Layer):
    """Adds to the loss what an activity regularizer would."""

    def call(self, x):
        self.add_loss(0.5 * keras.ops.sum(x**2) / keras.ops.cast(keras.ops.shape(x)[0], x.dtype))
        return x


def with_penalty(kind):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,))
    by_keras = keras.regularizers.L2(0.5) if kind == "regularizer" else None
    x = keras.layers.Dense(8, activity_regularizer=by_keras, name="hidden")(inputs)
    x = Penalty()(x) if kind == "add_loss" else x
    model = compiled(
        sparsify(keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))), **EAGER
    )
    return model, watched(model, *random_data())


def test_losses_that_layers_add_have_a_part_in_masks():
    (one, masks), (two, others), (_, without) = map(with_penalty, ("regularizer", "add_loss", ""))
    assert moves(masks) == 3
    assert all(equal_masks(masks[step], others[step]) for step in masks)
    for a, b in zip(trainable(one), trainable(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert not equal_masks(masks[8], without[8])
