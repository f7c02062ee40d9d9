"""What each method says: when masks change, by how much, and how it is written to a file."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import METHODS, compiled, equal_masks, fit, mlp, random_data, sparsify
from tf_rigl import methods, schedules
from tf_rigl._base.arguments import constructor_arguments
from tf_rigl.methods import SET, SNFS, Method, RigL, Static
from tf_rigl.patterns import Unstructured

MOVING = [SET, RigL]


@keras.saving.register_keras_serializable(package="tests")
def halving(step, end_step):
    """A decay of one's own."""
    return 0.5 ** (4 * step / end_step)


@pytest.mark.parametrize(("name", "cls"), [("static", Static), ("set", SET), ("rigl", RigL)])
def test_get_by_name(name, cls):
    assert type(methods.get(name)) is cls


def test_get_returns_an_object_as_it_is():
    method = RigL(update_interval=7)
    assert methods.get(method) is method


@pytest.mark.parametrize("cls", MOVING)
def test_defaults(cls):
    assert cls().get_config() == {
        "drop_fraction": 0.3,
        "update_interval": 100,
        "start_step": None,
        "end_step": 0.75,
        "decay": "cosine",
        "grow_initializer": keras.initializers.serialize(keras.initializers.Zeros()),
        "apply_optimizer_on_update": False,
        "slots": "zero",
        **({"gradient_batches": 1} if cls is RigL else {}),
    }


@pytest.mark.parametrize(
    "method",
    [
        Static(),
        SET(),
        RigL(
            drop_fraction=0.5,
            update_interval=10,
            start_step=0,
            end_step=99,
            decay="linear",
            grow_initializer=keras.initializers.RandomNormal(stddev=0.1, seed=3),
        ),
        SET(decay=halving),
    ],
    ids=["static", "defaults", "all arguments", "decay of one's own"],
)
def test_config_round_trip(method):
    config = keras.saving.serialize_keras_object(method)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(method)
    assert copy.get_config() == method.get_config()
    assert copy.plan(40, [100], 0, 80) == method.plan(40, [100], 0, 80)


# Arguments that are not written to files, by class. None is left out today.
NOT_IN_CONFIG = {}


@pytest.mark.parametrize("name", METHODS)
def test_a_config_has_all_arguments(name):
    """One that `get_config` does not return is lost when a model is saved."""
    method = METHODS[name]()
    arguments = set(constructor_arguments(type(method))) - NOT_IN_CONFIG.get(type(method), set())
    assert set(method.get_config()) == arguments


def test_repr_shows_the_arguments():
    assert repr(RigL(update_interval=7)).startswith("RigL(drop_fraction=0.3, update_interval=7,")
    assert repr(RigL(gradient_batches=3)).endswith(", gradient_batches=3)")
    assert repr(SNFS(momentum=0.5)).endswith("slots='zero', momentum=0.5)")


@pytest.mark.parametrize("cls", [SET, RigL, SNFS])
def test_arguments_by_position_are_those_of_set(cls):
    given = (0.5, 10, 20, 99, "linear", "ones", True)
    method = cls(*given)
    assert isinstance(method.grow_initializer, keras.initializers.Ones)
    config = {**method.get_config(), "grow_initializer": "ones"}
    assert tuple(config.values())[:7] == given


class Patient(RigL):
    """Has an argument of its own."""

    def __init__(self, *args, patience=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.patience = patience


def test_arguments_of_a_subclass_come_after_those_of_its_base():
    names = constructor_arguments(Patient)
    assert names == [*constructor_arguments(RigL), "patience"]
    assert names[:2] == ["drop_fraction", "update_interval"]
    assert names[-2:] == ["gradient_batches", "patience"]
    assert repr(Patient(patience=3)).endswith("gradient_batches=1, patience=3)")


@pytest.mark.parametrize(
    ("cls", "unknown", "message"),
    [
        (SET, {"fraction": 0.5}, "of `SET` are 'drop_fraction', .*Received: fraction=0.5"),
        (RigL, {"update_intervall": 7}, "of `RigL` .*Did you mean 'update_interval'"),
        (RigL, {"momentum": 0.9}, "of `RigL` are .*'gradient_batches'.* Received: momentum=0.9"),
        (SNFS, {"gradient_batches": 2}, "of `SNFS` are .*'momentum'. Received: gradient_batches=2"),
        (Patient, {"patients": 2}, "of `Patient` .*Did you mean 'patience'. Received: patients=2"),
    ],
)
def test_unknown_arguments_are_named_with_those_there_are(cls, unknown, message):
    with pytest.raises(TypeError, match=message):
        cls(**unknown)


def test_rigl_plans_and_drops_as_set_does():
    assert issubclass(RigL, SET)
    own = {name for name, value in vars(RigL).items() if callable(value)}
    assert not own & {"plan", "next_update", "drop_scores", "new_values", "update"}
    assert RigL().observation(199, 0, 1000) is None


def test_set_and_rigl_keep_the_same_and_grow_differently():
    rng = np.random.default_rng(0)
    mask = rng.random((9, 9)) < 0.5
    weight = tf.constant(rng.normal(size=(9, 9)) * mask, tf.float32)
    gradient = tf.constant(rng.normal(size=(9, 9)), tf.float32)
    keep, grow = int(mask.sum()) - 10, 10
    magnitude = np.where(mask, np.abs(weight), -1)
    kept = magnitude >= np.sort(magnitude, axis=None)[-keep]
    masks = {}
    for method in (SET(), RigL()):
        new, values = method.update(
            weight, gradient, tf.constant(mask), keep, grow, Unstructured(), tf.constant([1, 2])
        )
        masks[type(method)] = new = new.numpy()
        assert new.sum() == mask.sum()
        assert new[kept].all()
        np.testing.assert_array_equal(values, np.where(new & mask, weight, 0))
    slope = np.where(kept, -1, np.abs(gradient))
    np.testing.assert_array_equal(masks[RigL], kept | (slope >= np.sort(slope, axis=None)[-10]))
    assert (masks[SET] != masks[RigL]).any()


def test_set_grows_every_free_entry_with_the_same_chance():
    """Of 500 dropped and 3000 empty entries 500 grow: a seventh of each kind."""
    mask = tf.range(4000) < 1000
    weight = tf.where(tf.range(4000) < 500, 1.0, tf.where(mask, 0.1, 0.0))
    new, _ = SET().update(weight, weight, mask, 500, 500, Unstructured(), tf.constant([7, 1]))
    kept, dropped, *empty = np.split(new.numpy(), 8)
    assert kept.all()
    for part in (dropped, *empty):
        assert abs(part.sum() - 500 / 7) < 4 * math.sqrt(500 / 7 * 6 / 7)


@pytest.mark.parametrize("cls", MOVING)
def test_regrown_entries_keep_their_value_and_new_ones_start_at_the_initializer(cls):
    """Dropped and grown at once is no change; what is new starts at a half here."""
    method = cls(grow_initializer=keras.initializers.Constant(0.5))
    mask = tf.constant([True, True, True, False])
    weight = tf.constant([3.0, 2.0, 1.0, 0.0])
    new, values = method.update(
        weight, weight, mask, 2, 2, Unstructured(), tf.constant([0, 0], tf.int32)
    )
    np.testing.assert_array_equal(new, [True] * 4)
    np.testing.assert_array_equal(values, [3.0, 2.0, 1.0, 0.5])


def test_grow_initializer_reaches_training():
    initializer = keras.initializers.Constant(0.25)
    method = SET(update_interval=2, end_step=4, grow_initializer=initializer, drop_fraction=0.5)
    sparse = compiled(sparsify(mlp(), method), run_eagerly=True)
    before = sparse.masks
    fit(sparse, *random_data(batches=3))
    for item in sparse.masked_weights:
        grown = item.mask.numpy() & ~before[item.path]
        assert grown.any()
        assert (item.weight.numpy()[grown] == 0.25).all()


def test_static_never_has_an_update():
    assert all(Static().plan(step, [10], 0, 100) is None for step in range(100))
    assert not Static().needs_length


# When, and how many: counts worked out by hand.


def updates(method, steps=20, **kwargs):
    return [t for t in range(steps) if method.plan(t, [100], **kwargs) is not None]


@pytest.mark.parametrize(
    ("arguments", "run", "expected"),
    [
        ({"end_step": 13}, {}, [4, 8, 12]),
        ({"end_step": 12}, {}, [4, 8]),
        ({"end_step": 100, "start_step": 0}, {}, [0, 4, 8, 12, 16]),
        ({"end_step": 100, "start_step": 9}, {}, [12, 16]),
        ({"end_step": 0, "start_step": 0}, {}, []),
        ({"end_step": 0.5}, {"run_steps": 20}, [4, 8]),
        ({"end_step": 1.0}, {"run_steps": 20}, [4, 8, 12, 16]),
        ({"end_step": 0.5}, {"first_step": 10, "run_steps": 10}, [4, 8, 12]),
        ({"end_step": 9}, {"first_step": 10, "run_steps": 10}, [4, 8]),
        ({"end_step": 1}, {"run_steps": 20}, []),
    ],
)
@pytest.mark.parametrize("cls", MOVING)
def test_update_steps(cls, arguments, run, expected):
    assert updates(cls(update_interval=4, **arguments), **run) == expected


@pytest.mark.parametrize(
    ("decay", "step", "expected"),
    [
        # A fraction of 0.5 of 100 and of 7 entries; the end is at 100.
        ("constant", 40, [(50, 50), (4, 3)]),
        ("cosine", 0, [(50, 50), (4, 3)]),
        ("cosine", 40, [(68, 32), (5, 2)]),  # 0.25 (1 + cos(0.4 pi)) = 0.3273
        ("linear", 40, [(70, 30), (5, 2)]),  # 0.5 * 0.6 = 0.3
        ("inverse_power", 40, [(90, 10), (7, 0)]),  # 0.5 * 0.216 = 0.108
        (halving, 50, [(88, 12), (7, 0)]),  # 0.5 * 0.25 = 0.125
        (lambda step, end_step: 1.0, 40, [(50, 50), (4, 3)]),
        (lambda step, end_step: 0.0, 40, [(100, 0), (7, 0)]),
    ],
)
def test_counts(decay, step, expected):
    method = RigL(0.5, update_interval=1, start_step=0, end_step=100, decay=decay)
    assert method.plan(step, [100, 7]) == expected


@pytest.mark.parametrize("cls", MOVING)
def test_whole_numbers_are_not_lost_to_rounding(cls):
    """0.7 * 90 is 62.99999999999999, and means 63: units that move, and the end of updates."""
    method = cls(0.7, update_interval=1, end_step=100, decay="constant")
    assert method.plan(1, [90, 91]) == [(27, 63), (28, 63)]
    assert cls(end_step=0.7).last_step(10, 90) == 73
    assert schedules.PolynomialDecay(end_step=0.7).over(10, 90).end_step == 73


def test_fraction_of_one_moves_everything():
    method = SET(1.0, update_interval=1, end_step=10, decay="constant")
    assert method.plan(1, [9, 0]) == [(0, 9), (0, 0)]


def test_no_weight_grows_as_another_does_under_a_neighbouring_seed():
    """All entries drop and grow at random: masks depend on seeds alone."""
    found = []
    for seed in range(3):
        stack = [keras.Input((10,)), *(keras.layers.Dense(10, use_bias=False) for _ in range(3))]
        method = SET(1.0, update_interval=2, start_step=0, end_step=1, decay="constant")
        sparse = sparsify(keras.Sequential(stack), method, seed=seed)
        sparse.compile("sgd", "mse", run_eagerly=True)
        sparse.train_on_batch(np.ones((2, 10)), np.ones((2, 10)))
        found += sparse.masks.values()
    for number, mask in enumerate(found):
        assert not any((mask == other).all() for other in found[:number])


def test_start_and_end_hold_in_training():
    method = SET(drop_fraction=0.5, update_interval=2, start_step=0, end_step=3)
    sparse = compiled(sparsify(mlp(), method), run_eagerly=True)
    before, masks = sparse.masks, fit(sparse, *random_data(batches=5))
    history = [before, *masks]
    assert [t for t in range(5) if not equal_masks(history[t], history[t + 1])] == [0, 2]


def test_needs_length_for_a_float_end_step_only():
    assert RigL(end_step=0.5).needs_length
    assert not RigL(end_step=500).needs_length


# A user's own.


class DropAtRandom(RigL):
    """Overrides the drop score alone."""

    def drop_scores(self, weight, gradient, mask, seed):
        return tf.random.stateless_uniform(weight.shape, seed + 1)


class FirstRows(Method):
    """Overrides the first mask alone."""

    def initial_mask(self, item, seed, index):
        shape = item.weight.shape
        order = tf.reshape(-tf.range(math.prod(shape), dtype=tf.float32), shape)
        return item.pattern.select(order, item.target_active())


def test_own_drop_score():
    method = DropAtRandom(0.5, update_interval=2, end_step=100, decay="constant")
    sparse = compiled(sparsify(mlp(), method), run_eagerly=True)
    before = sparse.masks
    fit(sparse, *random_data(batches=3))
    assert not equal_masks(sparse.masks, before)


def test_own_initial_mask():
    sparse = compiled(sparsify(mlp(), FirstRows()), run_eagerly=True)
    fit(sparse, *random_data(batches=3))
    for mask in sparse.masks.values():
        flat = mask.ravel()
        np.testing.assert_array_equal(flat, np.arange(flat.size) < flat.sum())


def test_base_class_does_not_grow():
    class Lazy(Method):
        def plan(self, step, active, first_step=0, run_steps=None, items=None):
            return [(n - 1, 1) for n in active]

    sparse = compiled(sparsify(mlp(), Lazy()), run_eagerly=True)
    with pytest.raises(NotImplementedError, match="Lazy does not grow"):
        fit(sparse, *random_data(batches=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop_fraction": 0}, r"`drop_fraction` must be .* in \(0, 1\].*drop_fraction=0"),
        ({"drop_fraction": 1.5}, "drop_fraction=1.5"),
        ({"drop_fraction": "0.3"}, "drop_fraction='0.3'"),
        ({"drop_fraction": float("nan")}, "drop_fraction=nan"),
        ({"drop_fraction": True}, "drop_fraction=True"),
        ({"update_interval": 0}, r"`update_interval` must be .* at least 1.*update_interval=0"),
        ({"update_interval": -5}, "update_interval=-5"),
        ({"update_interval": 2.5}, "update_interval=2.5"),
        ({"update_interval": None}, "update_interval=None"),
        ({"start_step": -1}, "`start_step` must be .* at least 0.*start_step=-1"),
        ({"start_step": 0.5}, "start_step=0.5"),
        ({"end_step": -1}, "`end_step` must be .*end_step=-1"),
        ({"end_step": 0.0}, "end_step=0.0"),
        ({"end_step": 1.5}, "end_step=1.5"),
        ({"end_step": None}, "end_step=None"),
        ({"end_step": "75%"}, "end_step='75%'"),
        ({"end_step": True}, "end_step=True"),
        ({"decay": "cosin"}, r"`decay` must be .*Did you mean 'cosine'\?.*decay='cosin'"),
        ({"decay": None}, "decay=None"),
        ({"grow_initializer": "zeross"}, "zeross"),
    ],
)
@pytest.mark.parametrize("cls", MOVING)
def test_wrong_arguments_are_named(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize("factor", [-0.1, 10.0, float("nan")])
def test_decay_that_leaves_its_range_is_named(factor):
    method = SET(0.3, update_interval=1, end_step=10, decay=lambda step, end_step: factor)
    with pytest.raises(ValueError, match="`decay` must return a factor in"):
        method.plan(1, [10])


class Traced(RigL):
    """Notes each time that its update is traced."""

    traces = 0

    def update(self, *args):
        Traced.traces += 1
        return super().update(*args)


def test_the_update_of_large_weights_is_compiled_once_for_all_of_a_shape():
    """Also where steps run eagerly, update after update."""
    layers = [keras.layers.Dense(256, use_bias=False) for _ in range(3)]
    dense = keras.Sequential([keras.Input((256,)), *layers])
    method = Traced(drop_fraction=0.5, update_interval=1, end_step=100)
    model = sparsify(dense, method)
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(4, 256)).astype("float32")
    before = model.masks
    for _ in range(3):
        model.train_on_batch(x, x)
    assert not any((mask == before[path]).all() for path, mask in model.masks.items())
    assert Traced.traces == 1


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_granet_begins_at_its_initial_sparsity(initial):
    """By the distribution, where the target would be by magnitudes."""
    layers = [keras.layers.Dense(units) for units in (300, 100, 10)]
    model = keras.Sequential([keras.Input((784,)), *layers])
    sparse = tf_rigl.sparsify(model, methods.GraNet(initial_sparsity=initial), 0.9, "erk", seed=0)
    assert sparse.sparsity == pytest.approx(initial, abs=1e-4)
    shapes = {item.path: item.shape for item in sparse.masked_weights}
    erk = tf_rigl.distributions.erdos_renyi_kernel(shapes, initial)
    for item in sparse.masked_weights:
        assert 1 - item.active() / np.prod(item.shape) == pytest.approx(erk[item.path], abs=1e-4)


def test_granet_does_not_begin_sparser_than_it_ends():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match=r"`initial_sparsity` must be at most .*, 0\.4\."):
        tf_rigl.sparsify(model, "granet", 0.4, "uniform_all")
