"""Any Keras optimizer trains sparse, and its slots follow the masks."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import (
    BATCH,
    FEATURES,
    check_invariants,
    compiled,
    equal_masks,
    fit,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl import MaskedLayer, SparseModel, methods
from tf_rigl.training.slots import _BY_GRADIENT, find_slots, moves_only_by_gradient

BUILT_IN = sorted(
    name
    for name, cls in vars(keras.optimizers).items()
    if inspect.isclass(cls)
    and issubclass(cls, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
)


@keras.saving.register_keras_serializable(package="tests")
class HeavyBall(keras.optimizers.Optimizer):
    """An optimizer of one's own; it moves every weight, those of zero gradient too."""

    def build(self, variables):
        super().build(variables)
        self.speeds = self.add_optimizer_variables(variables, "speed")

    def update_step(self, gradient, variable, learning_rate):
        speed = self.speeds[self._get_variable_index(variable)]
        self.assign(speed, 0.5 * speed + gradient + 0.01)
        self.assign_sub(variable, learning_rate * speed)


def make(name):
    """An optimizer by name, some with what changes the way that they move weights."""
    k = keras.optimizers
    if name in BUILT_IN:
        return getattr(k, name)(learning_rate=0.05)
    schedule = k.schedules.CosineDecay(0.1, 20)
    return {
        "LossScaleOptimizer": lambda: k.LossScaleOptimizer(k.Adam(0.05)),
        "MultiOptimizer": lambda: k.MultiOptimizer(k.OptimizerMap(k.Adam(0.05), {"h.*": k.Ftrl()})),
        "own subclass": lambda: HeavyBall(0.05),
        "momentum": lambda: k.SGD(0.1, momentum=0.9),
        "nesterov": lambda: k.SGD(0.1, momentum=0.9, nesterov=True),
        "amsgrad": lambda: k.Adam(0.05, amsgrad=True),
        "centered": lambda: k.RMSprop(0.05, centered=True, momentum=0.5),
        "ftrl with penalties": lambda: k.Ftrl(
            0.05,
            l1_regularization_strength=0.01,
            l2_regularization_strength=0.01,
            l2_shrinkage_regularization_strength=0.01,
        ),
        "clipnorm": lambda: k.Adam(0.05, clipnorm=0.1),
        "clipvalue": lambda: k.Adam(0.05, clipvalue=0.01),
        "global_clipnorm": lambda: k.Adam(0.05, global_clipnorm=0.1),
        "weight_decay": lambda: k.AdamW(0.05, weight_decay=0.1),
        "use_ema": lambda: k.Adam(0.05, use_ema=True, ema_overwrite_frequency=3),
        "gradient_accumulation_steps": lambda: k.Adam(0.05, gradient_accumulation_steps=3),
        "loss_scale_factor": lambda: k.SGD(0.1, loss_scale_factor=128.0),
        "schedule": lambda: k.SGD(schedule, momentum=0.9),
    }[name]()


VARIANTS = [
    "LossScaleOptimizer",
    "MultiOptimizer",
    "own subclass",
    "momentum",
    "nesterov",
    "amsgrad",
    "centered",
    "ftrl with penalties",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "weight_decay",
    "use_ema",
    "gradient_accumulation_steps",
    "loss_scale_factor",
    "schedule",
]


def slots(model):
    """Every optimizer variable that belongs to a masked weight: item, empty value, value."""
    found = find_slots(model.optimizer, model.trainable_variables)
    return [
        (item, slot.empty, keras.ops.convert_to_numpy(slot.variable))
        for item in model.masked_weights
        for slot in found.get(id(item.weight), ())
    ]


class CheckSlots(keras.callbacks.Callback):
    """After every step the invariants hold; after an update slots are empty off the mask.

    Empty too are those of entries that have just been grown.
    """

    def __init__(self):
        super().__init__()
        self.updates = self.grown = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.before = self.model.masks

    def on_train_batch_end(self, batch, logs=None):
        check_invariants(self.model)
        if equal_masks(self.before, self.model.masks):
            return
        self.updates += 1
        for item, empty, value in slots(self.model):
            old, new = self.before[item.path], item.mask.numpy()
            # A copy of the weight is 0 there, as grown weights are.
            np.testing.assert_array_equal(value[~(old & new)], np.float32(empty or 0))
            self.grown += (new & ~old).sum()


@pytest.mark.parametrize("name", [*BUILT_IN, *VARIANTS])
def test_trains_three_updates(name):
    sparse = compiled(sparsify(mlp()), make(name), run_eagerly=True)
    check, before = CheckSlots(), [w.numpy() for w in sparse.trainable_weights]
    fit(sparse, *random_data(batches=7), callbacks=[check])
    check_invariants(sparse)  # Averages of weights have taken their place, by now.
    assert check.updates == 3
    assert check.grown > 0 or not slots(sparse)
    for weight, old in zip(sparse.trainable_weights, before, strict=True):
        assert (weight.numpy() != old).any(), weight.path


def test_in_a_graph_with_several_slots():
    sparse = compiled(sparsify(mlp()), "adam")
    check = CheckSlots()
    fit(sparse, *random_data(), callbacks=[check])
    assert check.updates == 3
    assert check.grown > 0


def test_update_step_leaves_the_optimizer_alone():
    """Dense weights, the iteration count and kept slots stay as they are."""
    sparse = compiled(sparsify(mlp()), keras.optimizers.Adam(0.05), run_eagerly=True)
    x, y = random_data(batches=3)
    fit(sparse, x[: 2 * BATCH], y[: 2 * BATCH])
    bias = sparse.get_layer("hidden").bias.numpy()
    before = [(item.mask.numpy(), value) for item, _, value in slots(sparse)]
    assert int(sparse.optimizer.iterations) == 2
    fit(sparse, x[2 * BATCH :], y[2 * BATCH :])
    assert sparse.step == 3
    assert int(sparse.optimizer.iterations) == 2
    np.testing.assert_array_equal(sparse.get_layer("hidden").bias.numpy(), bias)
    for (old_mask, old), (item, _, new) in zip(before, slots(sparse), strict=True):
        kept = old_mask & item.mask.numpy()
        assert kept.any()
        np.testing.assert_array_equal(new[kept], old[kept])


def finite_entries(model):
    return [np.isfinite(keras.ops.convert_to_numpy(w)).all() for w in model.trainable_weights]


@pytest.mark.parametrize("name", sorted(cls.__name__ for cls in _BY_GRADIENT))
def test_optimizers_that_are_not_masked_again_keep_zeros(name):
    """Those said to move only by the gradient do: 30 ordinary steps, with decay and a ReLU."""
    cls = getattr(keras.optimizers, name)
    optimizer = cls(learning_rate=0.05, weight_decay=0.01)
    assert moves_only_by_gradient(optimizer)
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="relu", kernel_regularizer="l1l2", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    sparse = compiled(sparsify(model, "static", sparsity=0.8), optimizer)
    fit(sparse, *random_data(batches=30))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("momentum", True),
        ("LossScaleOptimizer", True),
        ("weight_decay", True),
        ("clipnorm", False),
        ("global_clipnorm", False),
        ("own subclass", False),
        ("MultiOptimizer", False),
        ("Muon", False),
        ("Lamb", False),
        ("Adafactor", False),
    ],
)
def test_which_optimizers_are_known_to_move_only_by_the_gradient(name, known):
    assert moves_only_by_gradient(make(name)) == known


@pytest.mark.parametrize("name", ["Adam", "Ftrl", "Adagrad", "ScheduleFreeAdamW"])
def test_grown_entries_of_zero_gradient_stay_finite(name):
    """Rows of an embedding that no batch holds are grown too, by SET."""
    tokens = keras.Input((4,), dtype="int32")
    x = keras.layers.Flatten()(keras.layers.Embedding(30, 4, name="embedding")(tokens))
    model = keras.Model(tokens, keras.layers.Dense(3)(x))
    method = methods.SET(update_interval=2, end_step=100, drop_fraction=0.5)
    sparse = compiled(sparsify(model, method), make(name), run_eagerly=True)
    fit(sparse, *random_data((4,), dtype="int32"))
    assert all(finite_entries(sparse))


def test_nan_in_a_batch_keeps_counts_and_zeros():
    """Active weights are lost, as in dense training; masks and zeros are not."""
    sparse = compiled(sparsify(mlp()), make("global_clipnorm"), run_eagerly=True)
    x, y = random_data(batches=4)
    x[BATCH] = np.nan  # Step 1, an ordinary one, and thereby all that follow.
    counts = {path: mask.sum() for path, mask in sparse.masks.items()}
    fit(sparse, x, y, callbacks=[])
    for item in sparse.masked_weights:
        mask = item.mask.numpy()
        assert mask.sum() == counts[item.path]
        assert (item.weight.numpy()[~mask] == 0).all()
        assert np.isnan(item.weight.numpy()[mask]).any()


class Namesakes(keras.layers.Layer):
    """Keras gives variables of equally named layers in a composite layer one path."""

    def __init__(self):
        super().__init__()
        self.parts = [keras.layers.Dense(FEATURES, name="twin") for _ in range(3)]

    def build(self, input_shape):
        for part in self.parts:
            part.build(input_shape)

    def call(self, x):
        for part in self.parts:
            x = keras.ops.tanh(part(x))
        return x


class ByName(HeavyBall):
    """Keeps its slots in a dict, so that only their names say what they belong to."""

    def build(self, variables):
        keras.optimizers.Optimizer.build(self, variables)
        self.speed_of = {
            id(v): self.add_variable_from_reference(v, "speed") for v in reversed(variables)
        }

    def update_step(self, gradient, variable, learning_rate):
        number = self._get_variable_index(variable)
        speed = self.speed_of[id(self._trainable_variables[number])]
        self.assign(speed, 0.5 * speed + gradient + 0.01)
        self.assign_sub(variable, learning_rate * speed)


class Wrapped(keras.optimizers.Optimizer):
    """Another optimizer does the work."""

    def __init__(self, inner):
        super().__init__(learning_rate=0.1)
        self.worker = inner

    def build(self, variables):
        super().build(variables)
        self.worker.build(variables)

    @property
    def variables(self):
        return [*super().variables, *self.worker.variables]

    def apply(self, grads, trainable_variables=None):
        self.worker.apply(grads, trainable_variables)


def test_slots_of_layers_that_share_a_name_are_told_apart():
    namesakes = Namesakes()
    namesakes(np.ones((1, FEATURES), "float32"))
    weights = namesakes.trainable_variables
    # The first slot of each, after a step with gradients 1, 2, 3, ...: HeavyBall's speed is
    # the gradient and 0.01, Adam's momentum a tenth of it.
    # They are the same whatever part of the weights is asked for.
    for optimizer, factor, count in [
        (HeavyBall(0.05), 1, 1),
        (keras.optimizers.Adam(), 0.1, 2),
        (Wrapped(keras.optimizers.Adam()), 0.1, 2),
        (keras.optimizers.LossScaleOptimizer(HeavyBall(0.05), initial_scale=1.0), 1, 1),
    ]:
        optimizer.build(weights)
        found = find_slots(optimizer, weights)
        optimizer.apply([tf.ones_like(w.value) * n for n, w in enumerate(weights, 1)], weights)
        for number, weight in enumerate(weights, 1):
            assert len(found[id(weight)]) == count
            value = found[id(weight)][0].variable.numpy()
            np.testing.assert_allclose(value, number * factor, atol=0.011)
            (some,) = find_slots(optimizer, [weight]).values()
            assert [id(slot.variable) for slot in some] == [
                id(slot.variable) for slot in found[id(weight)]
            ]


def test_slots_that_are_in_no_list_are_found_by_name():
    """Also an unused optimizer in a `MultiOptimizer`, which Keras never builds."""
    weights, optimizer = mlp().trainable_variables, ByName(0.05)
    optimizer.build(weights)
    found = find_slots(optimizer)
    for weight in weights:
        (slot,) = found[id(weight)]
        assert slot.variable is optimizer.speed_of[id(weight)]
    unused = keras.optimizers.OptimizerMap(optimizer, {"nothing": keras.optimizers.Ftrl()})
    multi = keras.optimizers.MultiOptimizer(unused)
    multi.build(weights)
    assert list(find_slots(multi)) == list(found)


def test_a_frozen_layer_among_layers_of_the_same_name():
    """The optimizer is compiled again: its slots stay with the weights that it was built with."""
    inputs = keras.Input((FEATURES,))
    namesakes, optimizer = Namesakes(), keras.optimizers.SGD(0.1, momentum=0.9)
    x = MaskedLayer(namesakes, sparsity=0.5, seed=0)(inputs)
    model = SparseModel(inputs, keras.layers.Dense(3, name="head")(x), method=rigl())
    fit(compiled(model, optimizer), *random_data(batches=5))
    namesakes.parts[0].trainable = False
    before = namesakes.parts[0].kernel.numpy()
    fit(compiled(model, optimizer), *random_data(batches=8))
    np.testing.assert_array_equal(namesakes.parts[0].kernel, before)
    namesakes.parts[0].trainable = True
    fit(compiled(model, optimizer), *random_data(batches=5))
    slots_of = find_slots(optimizer)
    for number, part in enumerate(namesakes.parts):
        (slot,) = slots_of[id(part.kernel)]
        assert slot.variable is optimizer.momentums[2 * number]


def test_a_grown_weight_of_adagrad_begins_as_a_new_one():
    """Its accumulator is the initial one: with 0, its first step would be a full learning rate."""
    sparse = compiled(sparsify(mlp()), keras.optimizers.Adagrad(0.01), run_eagerly=True)
    fit(sparse, *random_data(batches=3))
    found = [empty for _, empty, _ in slots(sparse)]
    assert found
    assert set(found) == {0.1}


@pytest.mark.parametrize("trained", [False, True])
def test_copies_of_loaded_weights(trained, tmp_path):
    """A file without slots sets the weights alone: copies of them must not stay behind."""
    first, other = (compiled(sparsify(mlp(), seed=n), make("ScheduleFreeAdamW")) for n in (0, 1))
    if trained:
        fit(compiled(first, make("ScheduleFreeAdamW"), run_eagerly=True), *random_data(batches=3))
    first.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    own = find_slots(first.optimizer)
    for one, two in zip(first.trainable_variables, other.trainable_variables, strict=True):
        copy, _ = find_slots(other.optimizer)[id(two)]
        np.testing.assert_array_equal(copy.variable, own[id(one)][0].variable if trained else one)
