"""SNFS: the momentum of the dense gradient, from the first step to the last update."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import BATCH, compiled, equal_masks, fit, mlp, random_data, sparsify
from tf_rigl import methods
from tf_rigl.methods import SET, SNFS, RigL

SCHEDULE = {"update_interval": 2, "drop_fraction": 0.5, "end_step": 7, "decay": "constant"}
EAGER = {"run_eagerly": True}


def momentum_of(model):
    return [item.state["gradient"].numpy() for item in model.masked_weights]


def test_get_by_name_and_defaults():
    method = methods.get("snfs")
    assert type(method) is SNFS
    assert method.get_config() == {**SET().get_config(), "momentum": 0.9}
    assert repr(method).endswith("momentum=0.9)")


@pytest.mark.parametrize("momentum", [1, 1.0, -0.1, "0.9", None, True, float("nan")])
def test_a_momentum_out_of_range_is_named(momentum):
    with pytest.raises(ValueError, match=r"`momentum` must be .* \[0, 1\).*Received: momentum="):
        SNFS(momentum=momentum)


@pytest.mark.parametrize("arguments", [{"drop_fraction": 0}, {"end_step": 1.5}, {"decay": "cos"}])
def test_arguments_of_set_are_checked_as_there(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        SNFS(**arguments)


def test_gradients_are_observed_up_to_the_last_update():
    method = SNFS(**SCHEDULE, momentum=0.75)  # Updates at 2, 4, 6.
    observed = [method.observation(step) for step in range(9)]
    assert observed == [0.75] * 7 + [None, None]


def test_the_momentum_stays_after_the_last_update():
    x, y = random_data(batches=9)
    model = compiled(sparsify(mlp(), SNFS(**SCHEDULE)), **EAGER)
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(momentum_of(model))
    )
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[record])
    moved = [
        any((a != b).any() for a, b in zip(seen[t - 1], seen[t], strict=True)) for t in range(1, 9)
    ]
    assert moved == [True] * 6 + [False] * 2


def test_masked_entries_have_momentum_too():
    model = compiled(sparsify(mlp(), SNFS(**SCHEDULE)), **EAGER)
    fit(model, *random_data(batches=1))
    for item, momentum in zip(model.masked_weights, momentum_of(model), strict=True):
        assert momentum[~item.mask.numpy()].any()


def test_without_momentum_it_is_rigl():
    """Then what is kept is the last gradient."""
    masks = []
    for method in (SNFS(**SCHEDULE, momentum=0), RigL(**SCHEDULE)):
        keras.utils.set_random_seed(0)
        masks.append(fit(compiled(sparsify(mlp(), method), **EAGER), *random_data()))
    assert all(equal_masks(a, b) for a, b in zip(*masks, strict=True))


def test_what_became_nan_begins_anew_at_an_update():
    """With the gradient of its batch: masks are what RigL's would be there."""
    x, y = random_data(batches=3)
    model = compiled(sparsify(mlp(), SNFS(**SCHEDULE)), keras.optimizers.SGD(0.1), **EAGER)
    model.train_on_batch(x[:BATCH], y[:BATCH])
    for item in model.masked_weights:
        item.state["gradient"].assign(np.full(item.weight.shape, np.nan))
    model.train_on_batch(x[BATCH : 2 * BATCH], y[BATCH : 2 * BATCH])
    assert np.isnan(momentum_of(model)[0]).all()
    expected = gradients_of(model, x, y, [2])
    model.train_on_batch(x[2 * BATCH :], y[2 * BATCH :])  # Step 2, an update.
    for momentum, gradient in zip(momentum_of(model), expected, strict=True):
        np.testing.assert_allclose(momentum, gradient, rtol=1e-4, atol=1e-6)
    fit(model, x, y)


def test_a_layer_that_stays_dense_has_no_state():
    model = compiled(sparsify(mlp(), SNFS(**SCHEDULE), distribution="uniform"), **EAGER)
    fit(model, *random_data(batches=1))
    assert [list(item.state) for item in model.masked_weights] == [[], ["gradient"]]


def test_a_file_of_another_method_is_refused(tmp_path):
    """The model stays as it was, its momentum too."""
    data = random_data(batches=3)
    path = tmp_path / "model.weights.h5"
    models = [compiled(sparsify(mlp(), m), **EAGER) for m in (RigL(**SCHEDULE), SNFS(**SCHEDULE))]
    for model in models:
        fit(model, *data)
    for one, other in (models, models[::-1]):
        one.save_weights(path)
        before = [keras.ops.convert_to_numpy(v) for v in other.variables]
        with pytest.raises(ValueError, match=f"trained by {type(one.method).__name__}"):
            other.load_weights(path)
        np.testing.assert_equal(before, [keras.ops.convert_to_numpy(v) for v in other.variables])
        fit(other, *data)


def test_gradient_batches_of_rigl_are_those_before_an_update():
    method = RigL(update_interval=5, end_step=11, gradient_batches=2)
    observed = {t: method.observation(t) for t in range(15)}
    observed = {t: past for t, past in observed.items() if past is not None}
    assert observed == {4: 0.0, 5: 0.5, 9: 0.0, 10: 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_batches": 0}, "`gradient_batches` must be .* at least 1.*gradient_batches=0"),
        ({"gradient_batches": 1.5}, "gradient_batches=1.5"),
        ({"gradient_batches": 101}, "at most `update_interval`.*101, update_interval=100"),
    ],
)
def test_wrong_gradient_batches_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RigL(**arguments)


def gradients_of(model, x, y, batches):
    """The sum over some batches of the dense gradient of each masked weight."""
    weights = [item.weight.value for item in model.masked_weights]
    total = [0.0] * len(weights)
    for n in batches:
        batch = slice(n * BATCH, (n + 1) * BATCH)
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x[batch], y[batch], model(x[batch], training=True))
        gradients = tape.gradient(loss, weights)
        total = [t + g.numpy() for t, g in zip(total, gradients, strict=True)]
    return total


def check_kept(model, expected):
    for kept, gradient in zip(momentum_of(model), expected, strict=True):
        np.testing.assert_allclose(kept, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("end_step", [1000, 1.0])
def test_gradient_batches_are_those_of_the_present_run(end_step):
    """The second begins within the window of batches 8 to 12, counted from 0."""
    method = RigL(update_interval=6, gradient_batches=5, drop_fraction=0.5, end_step=end_step)
    model = compiled(sparsify(mlp(), method), keras.optimizers.SGD(0.0), **EAGER)
    x, y = random_data(batches=13)
    fit(model, x[: 10 * BATCH], y[: 10 * BATCH])
    assert all(kept.any() for kept in momentum_of(model))
    expected = [total / 3 for total in gradients_of(model, x, y, range(10, 13))]
    before = model.masks
    fit(model, x[10 * BATCH :], y[10 * BATCH :])
    assert model.step == 13
    assert not equal_masks(model.masks, before)
    check_kept(model, expected)


def test_an_overflow_on_the_first_batch_of_a_window_leaves_no_older_gradient():
    method = RigL(update_interval=4, gradient_batches=2, drop_fraction=0.5, end_step=1000)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=1.0)
    model = compiled(sparsify(mlp(), method), optimizer, **EAGER)
    x, y = random_data(batches=9)
    fit(model, x[: 7 * BATCH], y[: 7 * BATCH])
    assert all(kept.any() for kept in momentum_of(model))  # Of batches 3 and 4.
    expected = [gradient / 2 for gradient in gradients_of(model, x, y, [8])]
    before = model.masks
    x[7 * BATCH : 8 * BATCH] = np.inf
    for n in (7, 8):
        model.train_on_batch(x[n * BATCH : (n + 1) * BATCH], y[n * BATCH : (n + 1) * BATCH])
        check_kept(model, expected if n == 8 else [0 * e for e in expected])
    assert not equal_masks(model.masks, before)


def test_what_grows_is_drawn_anew_at_each_update():
    """By a random initializer, which alone would give the same values each time."""
    initializer = keras.initializers.RandomNormal(stddev=1.0, seed=1)
    method = SET(**{**SCHEDULE, "end_step": 100}, grow_initializer=initializer)
    model = compiled(sparsify(mlp(), method), keras.optimizers.SGD(0.0), **EAGER)
    x, y = random_data(batches=1)
    item, values = model.masked_weights[0], []
    for _ in range(7):
        mask = item.mask.numpy()
        model.train_on_batch(x, y)
        grown = item.mask.numpy() & ~mask
        if grown.any():
            values.append(item.weight.numpy()[grown])
    assert len(values) == 3
    assert all((v != 0).all() for v in values)
    drawn = np.concatenate(values)
    assert 0.5 < drawn.std() < 1.5
    assert not np.isin(values[0], values[1]).all()
