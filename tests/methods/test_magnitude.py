"""Gradual magnitude pruning: schedules, counts, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    CheckEveryStep,
    active,
    check_pruned,
    compiled,
    equal_masks,
    fit,
    mlp,
    random_data,
    sparsify,
    uniform,
)
from tf_rigl import methods
from tf_rigl.methods import MagnitudePruning
from tf_rigl.schedules import ConstantSparsity, PolynomialDecay

EAGER = {"run_eagerly": True}


def decay(**kwargs):
    return PolynomialDecay(**{"begin_step": 1, "end_step": 6, "frequency": 2, **kwargs})


def counts_of(method, batches=8, **kwargs):
    """How many entries are left after each batch, in all."""
    model = compiled(sparsify(mlp(), method, **kwargs), **EAGER)
    masks = fit(model, *random_data(batches=batches))
    return [sum(int(mask.sum()) for mask in each.values()) for each in masks]


@keras.saving.register_keras_serializable(package="tests")
def by_steps(step):
    """A schedule of one's own: a third at batch 2, two thirds from batch 5 on."""
    return step >= 2, (1 / 3 if step < 5 else 2 / 3)


# Schedules.


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (decay(), [1, 3, 5, 6]),
        (decay(frequency=5), [1, 6]),
        (decay(frequency=100), [1, 6]),
        (decay(begin_step=0, frequency=3), [0, 3, 6]),
        (decay(begin_step=6), [6]),
        (ConstantSparsity(begin_step=2, frequency=3), [2, 5, 8, 11]),
        (ConstantSparsity(begin_step=2, end_step=7, frequency=3), [2, 5]),
        (ConstantSparsity(begin_step=2, end_step=2), [2]),
        (ConstantSparsity(begin_step=13), []),
    ],
)
def test_when_schedules_prune(schedule, expected):
    assert [step for step in range(13) if schedule(step)[0]] == expected


def test_polynomial_of_the_paper():
    schedule = PolynomialDecay(0.2, 0.8, begin_step=10, end_step=110, frequency=10)
    for step in range(0, 130, 5):
        way = min(1, max(0, (step - 10) / 100))
        assert schedule(step)[1] == pytest.approx(0.8 - 0.6 * (1 - way) ** 3, abs=1e-6)


def test_a_fraction_becomes_a_step_of_the_run():
    schedule = PolynomialDecay(end_step=0.5, begin_step=3, frequency=4)
    assert schedule.needs_length
    assert schedule.over(100, 40) == decay(begin_step=103, end_step=120, frequency=4)
    assert not decay().needs_length
    assert decay().over(100, 40) is not None
    assert decay().over(100, 40) == decay()


@pytest.mark.parametrize("cls", [PolynomialDecay, ConstantSparsity])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin_step": -1}, "`begin_step` must be .* at least 0.*begin_step=-1"),
        ({"begin_step": 0.5}, "begin_step=0.5"),
        ({"frequency": 0}, "`frequency` must be .* at least 1.*frequency=0"),
        ({"frequency": 1.5}, "frequency=1.5"),
        ({"end_step": -2}, "`end_step`.*end_step=-2"),
        ({"begin_step": 10, "end_step": 9}, "`end_step` must not be less.*10, end_step=9"),
        ({"end_step": 1.5}, "`end_step` must be .*end_step=1.5"),
        ({"end_step": 0.0}, "end_step=0.0"),
        ({"end_step": True}, "end_step=True"),
        ({"end_step": None}, "end_step=None"),
    ],
)
def test_wrong_arguments_of_schedules_are_named(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolynomialDecay(end_step=-1), "`end_step` must not be -1"),
        (lambda: PolynomialDecay(initial_sparsity=1.0), "`initial_sparsity`.*1.0"),
        (lambda: PolynomialDecay(0.5, 0.3), "`initial_sparsity` must not be more than"),
        (lambda: PolynomialDecay(final_sparsity=-0.1), "`final_sparsity`.*-0.1"),
        (lambda: PolynomialDecay(power="3"), "`power`.*'3'"),
        (lambda: PolynomialDecay(power=-1), "`power`.*-1"),
        (lambda: ConstantSparsity(1.0), "`target_sparsity`.*1.0"),
        (lambda: ConstantSparsity("half"), "`target_sparsity`.*'half'"),
        (lambda: MagnitudePruning(0.5), "`schedule` must be .*schedule=0.5"),
        (lambda: MagnitudePruning("polynomial"), "schedule='polynomial'"),
        (lambda: MagnitudePruning(scope="all"), "`scope` must be .*scope='all'"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The method.


def test_get_by_name_and_repr():
    method = methods.get("magnitude")
    assert type(method) is MagnitudePruning
    assert method.schedule == PolynomialDecay()
    assert repr(MagnitudePruning(ConstantSparsity(0.5))) == (
        "MagnitudePruning(schedule=ConstantSparsity(target_sparsity=0.5, begin_step=0, "
        "end_step=-1, frequency=100), scope='layer')"
    )


def test_repr_names_a_function():
    """Error messages show the method: one must not fail for the sake of its schedule."""
    assert "by_steps" in repr(MagnitudePruning(by_steps))

    def local(step):
        return True, 0.5

    assert "local" in repr(MagnitudePruning(local))


def test_counts_along_an_open_schedule():
    """0.5 of 104 at the end; on the way as much of it as the schedule has gone."""
    ways = [1 - (1 - t / 4) ** 3 for t in (0, 1, 2, 3, 4)]
    expected = [104 - int(40 * way) - int(12 * way) for way in ways]
    schedule = decay(begin_step=1, end_step=5, frequency=1)
    assert counts_of(MagnitudePruning(schedule), batches=6) == [*expected, expected[-1]]


def test_the_end_is_pruned_whether_or_not_the_frequency_divides():
    counts = counts_of(MagnitudePruning(decay(frequency=3)))
    assert len(set(counts)) == 3  # At 1 nothing, at 4, and at 6.
    assert counts[5] == counts[-1] == 40 + 12


def test_a_schedule_with_an_end_is_the_default_sparsity():
    method = MagnitudePruning(decay(final_sparsity=0.75))
    model = tf_rigl.sparsify(mlp(), method, distribution="uniform_all")
    fit(compiled(model, **EAGER), *random_data())
    assert active(model) == {"hidden/kernel": 20, "head/kernel": 6}


@pytest.mark.parametrize(
    "schedule", [decay(final_sparsity=0.8), ConstantSparsity(0.8), lambda step: (True, 0.8)]
)
def test_a_sparsity_in_conflict_with_the_schedule_is_refused(schedule):
    method = MagnitudePruning(schedule)
    message = r"`sparsity` must be 0\.8, the final sparsity of the schedule.*0\.9"
    with pytest.raises(ValueError, match=message):
        tf_rigl.sparsify(mlp(), method, sparsity=0.9)
    tf_rigl.sparsify(mlp(), method, sparsity=0.8)


@pytest.mark.parametrize("distribution", ["uniform", "uniform_all", "erdos_renyi", "erk", uniform])
@pytest.mark.parametrize("final", [None, 0.5])
def test_every_distribution_goes_with_every_schedule(distribution, final):
    """Layers end at their targets: to the entry, or as tfmot rounds."""
    method = MagnitudePruning(decay(final_sparsity=final))
    model = tf_rigl.sparsify(mlp(), method, 0.5, distribution=distribution)
    fit(compiled(model, **EAGER), *random_data())
    for item in model.masked_weights:
        assert abs(active(model)[item.path] - item.target_active()) <= (final is not None)


def test_layers_of_other_targets_scale_the_schedule():
    sparsities = {"hidden": 0.8, "head": 0.25}
    method = MagnitudePruning(decay(final_sparsity=0.5))
    model = tf_rigl.sparsify(mlp(), method, distribution=sparsities)
    fit(compiled(model, **EAGER), *random_data())
    assert active(model) == {"hidden/kernel": 16, "head/kernel": 18}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_sparsity_that_leaves_less_than_one_entry(scope):
    """tfmot keeps one in each layer; so does this where the schedule says the sparsity."""
    method = MagnitudePruning(decay(final_sparsity=0.999), scope=scope)
    model = tf_rigl.sparsify(mlp(), method, distribution="uniform_all")
    fit(compiled(model, **EAGER), *random_data())
    assert sum(active(model).values()) == 2


def test_a_layer_may_be_emptied_by_a_global_scope():
    dense = mlp()
    head = dense.get_layer("head")
    head.kernel.assign(head.kernel * 1e-6)
    method = MagnitudePruning(ConstantSparsity(begin_step=1), scope="global")
    model = compiled(sparsify(dense, method), keras.optimizers.SGD(0.0), **EAGER)
    fit(model, *random_data(batches=2))
    assert active(model) == {"hidden/kernel": 52, "head/kernel": 0}
    check_pruned(model)


def test_pruned_weights_stay_pruned_where_sparsity_falls():
    method = MagnitudePruning(lambda step: (True, {1: 0.2, 2: 0.6, 3: 0.1}.get(step, 0.5)))
    counts = counts_of(method, batches=5)
    assert counts[0] > counts[1] == counts[2] == counts[4]


def test_the_batch_before_which_pruning_happens_is_trained_on():
    method = MagnitudePruning(ConstantSparsity(begin_step=1))
    model = compiled(sparsify(mlp(), method), **EAGER)
    fit(model, *random_data(batches=3))
    assert int(model.optimizer.iterations) == 3


def test_a_schedule_of_ones_own(tmp_path):
    model = compiled(sparsify(mlp(), MagnitudePruning(by_steps), 2 / 3), **EAGER)
    x, y = random_data()
    fit(model, x[: 3 * BATCH], y[: 3 * BATCH])
    assert active(model) == {"hidden/kernel": 53, "head/kernel": 16}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    masks = [fit(m, x, y) for m in (model, loaded)]
    assert all(equal_masks(a, b) for a, b in zip(*masks, strict=True))
    assert active(loaded) == {"hidden/kernel": 27, "head/kernel": 8}


def test_a_schedule_of_tensors():
    method = MagnitudePruning(lambda step: (tf.constant(step == 3), tf.constant(0.5)))
    assert counts_of(method, batches=4) == [104, 104, 52, 52]


class Unknown:
    """Does not say where it ends."""

    final_sparsity = None

    def __call__(self, step):
        return step % 2 == 0, min(0.5, step / 12)


def test_a_schedule_that_does_not_say_its_end_is_taken_as_it_is():
    """In every layer that is not dense."""
    method = MagnitudePruning(Unknown())
    assert method.final_sparsity is None
    after_2, after_4, after_6 = 67 + 20, 53 + 16, 40 + 12
    expected = [104, after_2, after_2, after_4, after_4, after_6, after_6]
    assert counts_of(method, batches=7, sparsity=0.3) == expected


def test_a_function_may_say_zero_where_there_is_nothing_to_do():
    method = MagnitudePruning(lambda step: (step == 3, 0.5 if step == 3 else 0.0))
    model = tf_rigl.sparsify(mlp(), method, distribution={"hidden": 0.5})
    fit(compiled(model, **EAGER), *random_data())
    assert active(model) == {"hidden/kernel": 40, "head/kernel": 24}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_schedule_that_ends_at_no_sparsity_prunes_nothing(scope):
    method = MagnitudePruning(decay(final_sparsity=0.0), scope=scope)
    model = tf_rigl.sparsify(mlp(), method, distribution={"hidden": 0.5})
    fit(compiled(model, **EAGER), *random_data())
    assert model.sparsity == 0.0


# The length of a run.


def test_a_float_end_is_a_part_of_the_run():
    """The default: 0.75 of 8 steps."""
    counts = counts_of(MagnitudePruning(PolynomialDecay(begin_step=1, frequency=2)))
    assert counts[4] > counts[5] == counts[-1] == 52


def test_a_float_end_counts_from_where_the_run_began():
    """Two runs of four batches; the second raises sparsity from where the first left it."""
    x, y = random_data(batches=4)
    schedule = PolynomialDecay(begin_step=1, end_step=1.0, frequency=1)
    model = compiled(sparsify(mlp(), MagnitudePruning(schedule)), **EAGER)
    fit(model, x, y)
    check_pruned(model)
    pruned = model.masks
    assert equal_masks(fit(model, x, y)[-1], pruned)


def test_epochs_that_go_on_belong_to_one_schedule():
    x, y = random_data(batches=4)
    schedule = PolynomialDecay(begin_step=1, end_step=1.0, frequency=1)
    counts = []
    for runs in ([(0, 2)], [(0, 1), (1, 2)]):
        model, seen = compiled(sparsify(mlp(), MagnitudePruning(schedule)), **EAGER), []
        for first, last in runs:
            # As if it were to run to the end, and stopped.
            stop = keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs, model=model, last=last: setattr(
                    model, "stop_training", epoch + 1 == last
                )
            )
            masks = fit_with(model, x, y, stop, epochs=2, initial_epoch=first)
            seen += [sum(int(m.sum()) for m in each.values()) for each in masks]
        counts.append(seen)
    assert counts[0] == counts[1]
    assert len(counts[0]) == 8


def fit_with(model, x, y, callback, **kwargs):
    """The masks after each batch of a run with one more callback."""
    check = CheckEveryStep()
    callbacks = [check, callback]
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks, **kwargs)
    return check.masks


def test_a_float_end_needs_a_run_of_known_length():
    x, y = random_data()
    model = compiled(sparsify(mlp(), MagnitudePruning()), **EAGER)
    with pytest.raises(ValueError, match="A float `end_step` needs"):
        model.train_on_batch(x[:BATCH], y[:BATCH])
    with pytest.raises(ValueError, match="A float `end_step` needs"):
        model.fit(((x[:BATCH], y[:BATCH]) for _ in range(3)), verbose=0)
    integer = compiled(sparsify(mlp(), MagnitudePruning(decay())), **EAGER)
    integer.train_on_batch(x[:BATCH], y[:BATCH])


def test_a_run_that_ends_before_pruning_begins_is_refused():
    schedule = PolynomialDecay(begin_step=1000, end_step=0.75)
    model = compiled(sparsify(mlp(), MagnitudePruning(schedule)), **EAGER)
    x, y = random_data(batches=2)
    with pytest.raises(
        ValueError, match=r"`end_step` is 1 in this run of 2 steps.*begin_step=1000"
    ):
        model.fit(x, y, batch_size=BATCH, verbose=0)


@pytest.mark.parametrize(
    "schedule", [PolynomialDecay, keras.optimizers.schedules.CosineDecay(0.1, 9), lambda step: 0.5]
)
def test_what_is_no_pruning_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match="`schedule` must be a pruning schedule"):
        MagnitudePruning(schedule)


@pytest.mark.parametrize("method", [MagnitudePruning, methods.SET, methods.RigL])
@pytest.mark.parametrize(
    "value", [keras.layers.Identity(), keras.ops.abs, keras.Model, tf_rigl.MaskedLayer]
)
def test_objects_of_libraries_in_a_file_are_refused_and_not_called(method, value, monkeypatch):
    """A file can name any layer; only the user's own functions are called."""
    called = []
    monkeypatch.setattr(keras.layers.Identity, "__call__", lambda *args: called.append(args))
    argument = "schedule" if method is MagnitudePruning else "decay"
    monkeypatch.setattr(keras.saving, "deserialize_keras_object", lambda config: value)
    with pytest.raises(ValueError, match=f"`{argument}` must be a name, or an object of your own"):
        method.from_config({**method().get_config(), argument: {"class_name": "X", "config": {}}})
    assert not called


@pytest.mark.parametrize("name", tf_rigl.schedules.DECAYS)
def test_our_decays_are_stored_by_name(name):
    """Keras has an activation "linear" too."""
    method = methods.RigL(decay=tf_rigl.schedules.DECAYS[name])
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(method))
    assert loaded.decay == name
    assert loaded.fraction(25, 100) == method.fraction(25, 100)


def test_a_fixed_sparsity_cannot_be_had_with_a_common_pool():
    method = MagnitudePruning(decay(), scope="global")
    with pytest.raises(ValueError, match=r"`fixed` must be 0 .dense.*'head/kernel': 0.3"):
        sparsify(mlp(), method, fixed={"head": 0.3})
    model = sparsify(mlp(), method, fixed={"head": 0.0})
    assert [item.target_sparsity for item in model.masked_weights] == [0.5, 0.0]


def test_slots_of_pruned_weights_are_empty():
    method = MagnitudePruning(decay())
    model = compiled(sparsify(mlp(), method), keras.optimizers.Adam(0.05), **EAGER)
    fit(model, *random_data())
    for item in model.masked_weights:
        index = model.optimizer._get_variable_index(item.weight)
        for slots in (model.optimizer._momentums, model.optimizer._velocities):
            slot = slots[index].numpy()
            assert (slot[~item.mask.numpy()] == 0).all()
            assert np.any(slot != 0)
