"""SNIP: the first batches are scored, and what they are least sensitive to is pruned."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from references.rigl_numpy import top_k_mask

import tf_rigl
from tests.helpers import (
    BATCH,
    active,
    check_pruned,
    compiled,
    detached_mlp,
    equal_masks,
    fit,
    mlp,
    random_data,
    sparsify,
    uniform,
)
from tf_rigl import methods
from tf_rigl.methods import SNIP

EAGER = {"run_eagerly": True}


def test_get_by_name_and_defaults():
    assert repr(methods.get("snip")) == "SNIP(scope='layer', batches=1)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "globl"}, "`scope` must be .*Did you mean 'global'.*scope='globl'"),
        ({"scope": None}, "scope=None"),
        ({"batches": 0}, "`batches` must be .* at least 1.*batches=0"),
        ({"batches": 2.0}, "batches=2.0"),
        ({"batches": True}, "batches=True"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SNIP(**arguments)


@pytest.mark.parametrize("batches", [1, 3])
def test_scored_batches_are_not_trained_on(batches):
    x, y = random_data(batches=4)
    model = compiled(sparsify(mlp(), SNIP(batches=batches)), **EAGER)
    assert model.sparsity == 0.0
    begun = [w.numpy() for w in model.trainable_variables]
    fit(model, x[: batches * BATCH], y[: batches * BATCH])
    assert model.step == batches
    assert int(model.optimizer.iterations) == 0
    masks = [item.mask.numpy() for item in model.masked_weights]
    for weight, first, mask in zip(
        model.trainable_variables, begun, (masks[0], True, masks[1], True), strict=True
    ):
        np.testing.assert_array_equal(weight.numpy(), np.where(mask, first, 0))
    check_pruned(model)
    pruned = model.masks
    fit(model, x, y)
    assert equal_masks(model.masks, pruned)
    assert int(model.optimizer.iterations) == 4


def test_runs_shorter_than_the_scoring_add_up():
    """Three batches in one go, or by one: the same masks."""
    x, y = random_data(batches=3)
    masks = []
    for epochs in ([(0, 3)], [(0, 1), (1, 2), (2, 3)]):
        keras.utils.set_random_seed(0)
        model = compiled(sparsify(mlp(), SNIP(batches=3)), **EAGER)
        for first, last in epochs:
            assert model.sparsity == 0.0
            fit(model, x[first * BATCH : last * BATCH], y[first * BATCH : last * BATCH])
        masks.append(model.masks)
    assert equal_masks(*masks)
    check_pruned(model)


def test_more_batches_give_another_mean():
    masks = []
    for batches in (1, 3):
        keras.utils.set_random_seed(0)
        model = compiled(sparsify(mlp(), SNIP(batches=batches)), **EAGER)
        fit(model, *random_data(batches=3))
        masks.append(model.masks)
    assert not equal_masks(*masks)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("sparsity", [0.02, 0.37, 0.99])
def test_counts(scope, sparsity):
    model = compiled(sparsify(mlp(), SNIP(scope=scope), sparsity), **EAGER)
    fit(model, *random_data(batches=2))
    check_pruned(model)
    zeros = sum(int((~mask).sum()) for mask in model.masks.values())
    sizes = [104] if scope == "global" else [80, 24]  # All weights share one number, or not.
    assert zeros == sum(int(n * sparsity) for n in sizes)


def test_a_global_scope_takes_the_overall_sparsity_for_every_layer():
    """Whatever the distribution: where the zeros go, scores say."""
    model = tf_rigl.sparsify(mlp(), SNIP(scope="global"), 0.5, distribution="erk", seed=0)
    assert [item.target_sparsity for item in model.masked_weights] == [0.5, 0.5]
    fit(compiled(model, **EAGER), *random_data(batches=1))
    check_pruned(model)
    assert active(model) != {"hidden/kernel": 40, "head/kernel": 12}


def test_a_layer_fixed_to_be_dense_is_left_out_of_a_global_scope():
    model = tf_rigl.sparsify(
        mlp(), SNIP(scope="global"), 0.5, distribution="uniform_all", fixed={"head": 0.0}, seed=0
    )
    fit(compiled(model, **EAGER), *random_data(batches=1))
    assert list(active(model).values()) == [40, 24]


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_that_overflow_do_not_leave_the_model_dense(batches):
    """A loss scale that is too high at first is common, and lowered by the optimizer only."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = sparsify(mlp(), SNIP(batches=batches))
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**24
    )
    compiled(model, optimizer, **EAGER)
    x, y = random_data(batches=20)
    model.fit(x, y, batch_size=BATCH, verbose=0)
    check_pruned(model)


def test_a_model_without_zeros_to_give_is_refused():
    with pytest.raises(ValueError, match="cannot be met"):
        sparsify(mlp(), SNIP(), 0.001)


@pytest.mark.parametrize(
    ("distribution", "batches"), [(uniform, 2), ({"hidden": 0.5}, 1)], ids=["both", "one"]
)
def test_layers_frozen_at_first_are_pruned_when_they_are_not(distribution, batches):
    """By the first batch after that, long after the others."""
    model = sparsify(mlp(), SNIP(batches=batches), distribution=distribution)
    model.get_layer("hidden").trainable = False
    compiled(model, **EAGER)
    x, y = random_data(batches=40)
    fit_unchecked(model, x, y)
    both = callable(distribution)
    assert active(model) == {"hidden/kernel": 80, "head/kernel": 12 if both else 24}
    assert int(model.optimizer.iterations) == 40 - (batches if both else 0)
    head = model.masks["head/kernel"]
    model.get_layer("hidden").trainable = True
    compiled(model, **EAGER)
    fit_unchecked(model, x[: 2 * BATCH], y[: 2 * BATCH])
    check_pruned(model)
    np.testing.assert_array_equal(model.masks["head/kernel"], head)
    assert int(model.optimizer.iterations) == 1


def fit_unchecked(model, x, y):
    """Where counts are not to be those of the target all the way."""
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)


def test_an_overflow_on_the_last_scored_batch_leaves_what_was_seen_before():
    """The next batch is scored too, with that."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=1.0)
    model = compiled(sparsify(mlp(), SNIP(batches=3)), optimizer, **EAGER)
    weights = [item.weight.numpy() for item in model.masked_weights]
    x, y = random_data(batches=4)
    x[2 * BATCH : 3 * BATCH] = np.inf
    one, two, _, four = (
        gradients_of(model, x[n * BATCH :][:BATCH], y[n * BATCH :][:BATCH]) for n in range(4)
    )
    fit_unchecked(model, x[: 3 * BATCH], y[: 3 * BATCH])
    assert model.sparsity == 0.0
    for kept, a, b in zip(states(model), one, two, strict=True):
        np.testing.assert_allclose(kept, (a + b) / 3, rtol=1e-4, atol=1e-7)
    fit_unchecked(model, x[3 * BATCH :], y[3 * BATCH :])
    check_pruned(model)
    alone = []
    for item, weight, a, b, d in zip(model.masked_weights, weights, one, two, four, strict=True):
        mask, seen = item.mask.numpy(), item.state["gradient"].numpy()
        count = item.target_active()
        np.testing.assert_array_equal(mask, top_k_mask(np.abs(weight * seen), count))
        np.testing.assert_allclose(seen, (a + b) / 6 + d / 2, rtol=1e-4, atol=1e-6)
        alone.append((mask == top_k_mask(np.abs(weight * d), count)).all())
    assert not all(alone)


def gradients_of(model, x, y):
    """The dense gradient of each masked weight on a batch."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    gradients = tape.gradient(loss, [item.weight.value for item in model.masked_weights])
    return [gradient.numpy() for gradient in gradients]


def states(model):
    return [item.state["gradient"].numpy() for item in model.masked_weights]


def test_where_every_gradient_overflows_it_says_so_and_lets_the_model_be():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1.0)
    model = compiled(sparsify(mlp(), SNIP()), optimizer, **EAGER)
    x, y = random_data(batches=34)
    with pytest.warns(UserWarning, match="SNIP cannot prune the model.*32 attempts"):
        fit_unchecked(model, x * np.inf, y)
    assert (model.step, model.sparsity) == (34, 0.0)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("batches", [1, 3])
def test_weights_that_the_loss_does_not_reach_cost_no_training(scope, batches):
    """The others are pruned by the scored batches, and each batch after them is trained on."""
    model = compiled(sparsify(detached_mlp(), SNIP(scope=scope, batches=batches)), **EAGER)
    fit_unchecked(model, *random_data(batches=6))
    assert active(model)["hidden/kernel"] == 80
    assert int(model.optimizer.iterations) == 6 - batches


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_model_of_which_nothing_can_be_scored_is_trained():
    """Its only sparse layer has no gradient: that must not keep the others waiting for ever."""
    model = compiled(sparsify(detached_mlp(), SNIP(), distribution={"hidden": 0.5}), **EAGER)
    head = model.get_layer("head").kernel
    before = head.numpy()
    x, y = random_data(batches=3)
    model.fit(x, y, batch_size=BATCH, epochs=20, verbose=0)
    assert (head.numpy() != before).any()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("how", [EAGER, {}])
def test_a_second_fit_trains_although_a_weight_is_not_reached(how):
    """What is found when a step is traced is known as long as the trace is used."""
    model = compiled(sparsify(detached_mlp(), SNIP()), **how)
    for batches in (5, 9, 13):
        fit_unchecked(model, *random_data(batches=4))
        # The first batch of all is scored, not trained on.
        assert int(model.optimizer.iterations) == batches - 2
