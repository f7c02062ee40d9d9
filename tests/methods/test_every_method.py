"""What holds for every method: saving, ways to run, kinds of models, gradients that are not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    METHODS,
    MODEL_KINDS,
    active,
    check_equal_models,
    check_pruned,
    compiled,
    detached_mlp,
    equal_masks,
    fit,
    mlp,
    model_data,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl.methods import SET, SNFS, SNIP, MagnitudePruning

every_method = pytest.mark.parametrize("name", METHODS)
EAGER = {"run_eagerly": True}


def states(model):
    """What the method keeps for each weight, by path."""
    return {i.path: {n: v.numpy() for n, v in i.state.items()} for i in model.masked_weights}


def trained(name, **kwargs):
    """A model trained on eight batches, always the same ones from the same weights."""
    keras.utils.set_random_seed(0)
    model = compiled(sparsify(mlp(), METHODS[name]()), **kwargs)
    fit(model, *random_data())
    return model


@every_method
def test_masks_change_as_the_method_says_and_end_at_the_target(name):
    model = compiled(sparsify(mlp(), METHODS[name]()), **EAGER)
    before = model.masks
    fit(model, *random_data())
    check_pruned(model)
    assert equal_masks(model.masks, before) == (name == "static")


@every_method
def test_config_round_trip(name):
    method = METHODS[name]()
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(method))
    assert type(copy) is type(method)
    assert copy.get_config() == method.get_config()
    assert repr(copy) == repr(method)


@every_method
def test_a_saved_model_goes_on_to_the_bit(name, tmp_path):
    """Also amid the batches that are averaged, momentum included."""
    x, y = random_data(batches=7)
    whole = compiled(sparsify(mlp(), METHODS[name]()), keras.optimizers.Adam(0.05), **EAGER)
    fit(whole, x[: 2 * BATCH], y[: 2 * BATCH])
    whole.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    assert repr(loaded.method) == repr(whole.method)
    np.testing.assert_equal(states(loaded), states(whole))
    rest = x[2 * BATCH :], y[2 * BATCH :]
    expected, received = fit(whole, *rest), fit(loaded, *rest)
    assert all(equal_masks(a, b) for a, b in zip(expected, received, strict=True))
    check_equal_models(loaded, whole)
    np.testing.assert_equal(states(loaded), states(whole))


HOW = {
    "graph": {},
    "several steps": {"steps_per_execution": 3},
    "XLA": {"jit_compile": True},  # Takes its time to compile.
}


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *(("graph", name) for name in METHODS if name not in ("static", "snip", "magnitude")),
        *(("several steps", name) for name in ("rigl-batches", "snfs", "snip", "magnitude")),
        *(("XLA", name) for name in ("snfs", "snip-global")),
        *((how, "edge-popup") for how in ("several steps", "XLA")),
    ],
)
def test_ways_to_run_are_the_same_training(how, name):
    one, other = trained(name, **EAGER), trained(name, **HOW[how])
    check_equal_models(one, other, exact=False)
    check_pruned(other)


@pytest.mark.parametrize(
    ("method", "updates"),
    [
        (rigl(update_interval=7), 4),
        (rigl(update_interval=7, apply_optimizer_on_update=True), 0),
        (SET(update_interval=7, end_step=1000), 4),
        (SNFS(update_interval=7, end_step=1000), 4),
    ],
)
def test_the_optimizer_is_applied_to_no_batch_that_is_not_there(method, updates):
    """Executions of four steps meet the end of an epoch of ten batches after one or two."""
    x, y = random_data(batches=10)
    models = []
    for how in ({"run_eagerly": True}, {"steps_per_execution": 4}):
        keras.utils.set_random_seed(0)
        model = compiled(sparsify(mlp(), method), keras.optimizers.Adam(0.01), **how)
        fit(model, x, y, epochs=3)
        assert int(model.optimizer.iterations) == 30 - updates
        models.append(model)
    check_equal_models(*models, exact=False)


@pytest.mark.parametrize("several", [1, 4])
def test_nothing_is_pruned_before_a_batch_that_is_not_there(several):
    """The data end where pruning would begin, and do not say so before."""
    method = MagnitudePruning(tf_rigl.schedules.ConstantSparsity(0.5, begin_step=11))
    model = compiled(sparsify(mlp(), method), "adam", steps_per_execution=several)
    data = tf.data.Dataset.from_tensor_slices(random_data(batches=10)).batch(BATCH)
    model.fit(data.filter(lambda *_: True), shuffle=False, verbose=0)
    assert (model.step, model.sparsity) == (10, 0.0)
    model.fit(data.take(1), shuffle=False, verbose=0)
    assert (model.step, model.sparsity) == (11, 0.5)


@every_method
def test_mixed_precision(name):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = sparsify(mlp(), METHODS[name]())
    finally:
        keras.config.set_dtype_policy("float32")
    model = compiled(model, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), **EAGER)
    fit(model, *random_data())
    check_pruned(model)
    for values in states(model).values():
        assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in values.values())


@pytest.mark.parametrize("kind", MODEL_KINDS)
@pytest.mark.parametrize("name", ["snfs", "snip-global"])
def test_every_kind_of_model(kind, name):
    make, paths = MODEL_KINDS[kind]
    model = compiled(sparsify(make(), METHODS[name]()), **EAGER)
    fit(model, *model_data(kind, batches=7))
    assert list(model.masks) == paths
    check_pruned(model)


def fit_unchecked(model, x, y):
    """Where counts are not to be those of the target all the way."""
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)


@every_method
def test_frozen_layers_keep_masks_and_weights(name):
    model = sparsify(mlp(), METHODS[name]())
    model.get_layer("hidden").trainable = False
    compiled(model, **EAGER)
    item, other = model.masked_weights
    mask, weight = item.mask.numpy(), item.weight.numpy()
    fit_unchecked(model, *random_data())
    np.testing.assert_array_equal(item.mask.numpy(), mask)
    np.testing.assert_array_equal(item.weight.numpy(), weight)
    assert active(model)[other.path] == other.target_active()


@every_method
def test_weights_that_the_loss_does_not_reach(name):
    """They have no gradient: only pruning by magnitude alone can go on there."""
    model = compiled(sparsify(detached_mlp(), METHODS[name]()), **EAGER)
    hidden, head = model.masked_weights
    before = hidden.mask.numpy()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        fit_unchecked(model, *random_data())
    if "magnitude" in name or "acdc" in name:
        check_pruned(model)
    else:
        np.testing.assert_array_equal(hidden.mask.numpy(), before)
        assert active(model)[head.path] == head.target_active()


@every_method
def test_counts_hold_where_gradients_are_nan(name):
    """On a batch that changes masks; the optimizer is kept from it."""
    batch = 0 if "snip" in name else 2
    x, y = random_data()
    x[batch * BATCH : (batch + 1) * BATCH] = np.nan
    model = compiled(sparsify(mlp(), METHODS[name]()), keras.optimizers.SGD(0.0), **EAGER)
    fit_unchecked(model, x, y)
    check_pruned(model, finite=False)
    # Where the optimizer took NaN in at a batch before the update, all is lost anyway.
    if not model.method.trained_state and all(
        np.isfinite(item.weight.numpy()).all() for item in model.masked_weights
    ):
        for values in states(model).values():
            assert all(np.isfinite(v).all() for v in values.values())


# Masked layers made by hand.


def by_hand(method, **kwargs):
    inputs = keras.Input((FEATURES,))
    layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(CLASSES, name="head")]
    x = inputs
    for layer in layers:
        x = tf_rigl.MaskedLayer(layer, sparsity=0.5, seed=1, **kwargs)(x)
    return compiled(tf_rigl.SparseModel(inputs, x, method=method, seed=0), **EAGER)


@every_method
def test_masked_layers_that_begin_as_the_method_does(name):
    method = METHODS[name]()
    whole = method.begins_dense or method.trained_state
    pattern = str(method.suited(tf_rigl.patterns.get("unstructured")))
    model = by_hand(method, initial_mask="ones" if whole else "random", pattern=pattern)
    fit(model, *random_data())
    check_pruned(model)


def test_masked_layers_whose_pattern_the_method_does_not_have():
    model = by_hand(METHODS["srigl"]())
    with pytest.raises(ValueError, match="must be 'constant_fan_in' with SRigL"):
        fit(model, *random_data())


@pytest.mark.parametrize("name", ["snip", "magnitude"])
def test_masked_layers_with_random_masks_are_refused_where_pruning_begins_dense(name):
    model = by_hand(METHODS[name]())
    message = (
        "begins with dense weights, but the mask of layer 'masked_hidden'.*initial_mask='ones'"
    )
    with pytest.raises(ValueError, match=message):
        fit(model, *random_data())


@pytest.mark.parametrize("name", ["static", "set", "rigl", "snfs"])
def test_masked_layers_that_are_dense_are_refused_where_masks_begin_sparse(name):
    model = by_hand(METHODS[name](), initial_mask="ones")
    message = "begins with sparse weights, but layer 'masked_hidden' is dense.*initial_mask='ones'"
    with pytest.raises(ValueError, match=message):
        fit_unchecked(model, *random_data())


@pytest.mark.parametrize("name", ["static", "rigl"])
def test_layers_that_have_been_pruned_go_on_in_a_model_of_another_method(name):
    data = random_data()
    pruned = by_hand(METHODS["snip"](), initial_mask="ones")
    fit(pruned, *data)
    outputs = pruned.outputs[0]
    model = tf_rigl.SparseModel(pruned.inputs[0], outputs, method=METHODS[name](), seed=0)
    masks = fit(compiled(model, **EAGER), *data)
    assert equal_masks(masks[-1], pruned.masks)  # They are the same layers.
    assert equal_masks(masks[0], masks[-1]) == (name == "static")


@pytest.mark.parametrize(
    "method",
    [
        SNIP(scope="global"),
        MagnitudePruning(tf_rigl.schedules.ConstantSparsity(begin_step=1), scope="global"),
    ],
)
def test_a_global_scope_over_layers_of_several_types(method):
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, dtype="float64", name="hidden")(inputs)
    dense = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))
    model = compiled(sparsify(dense, method), **EAGER)
    assert [item.weight.dtype for item in model.masked_weights] == ["float64", "float32"]
    fit(model, *random_data(batches=2))
    check_pruned(model)


# Fixed sparsities.


@pytest.mark.parametrize("distribution", ["uniform", "uniform_all", "erdos_renyi", "erk"])
@pytest.mark.parametrize("name", ["rigl", "snip"])
def test_fixed_layers_have_exactly_their_sparsity(name, distribution):
    model = tf_rigl.sparsify(
        mlp(), METHODS[name](), 0.5, distribution=distribution, fixed={"hidden": 0.25}, seed=0
    )
    fit(compiled(model, **EAGER), *random_data(batches=2))
    assert active(model) == {"hidden/kernel": 60, "head/kernel": 12}


def test_fixed_goes_before_a_mapping():
    sparsities = {"hidden": 0.75, "head": 0.5}
    model = tf_rigl.sparsify(mlp(), "static", distribution=sparsities, fixed={"head": 0.25}, seed=0)
    assert active(model) == {"hidden/kernel": 20, "head/kernel": 18}


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"hiden": 0.5}, "`fixed`.*Did you mean 'hidden'"),
        ({"hidden": 1.0}, r"`fixed\['hidden'\]` must be .*1.0"),
        ({"hidden": -0.1}, r"fixed\['hidden'\]=-0.1"),
        ([("hidden", 0.5)], "`fixed` must be a mapping"),
        (0.5, "`fixed` must be a mapping.*fixed=0.5"),
    ],
)
def test_wrong_fixed_sparsities_are_named(fixed, message):
    with pytest.raises(ValueError, match=message):
        tf_rigl.sparsify(mlp(), fixed=fixed)


def test_a_global_scope_keeps_the_first_layer_dense_and_fixed_ones_as_asked():
    method = tf_rigl.methods.SNIP(scope="global")
    model = tf_rigl.sparsify(mlp(), method, 0.5, distribution="uniform", seed=0)
    fit(compiled(model, **EAGER), *random_data(batches=2))
    assert active(model) == {"hidden/kernel": 80, "head/kernel": 12}


@pytest.mark.parametrize("name", ["rigl", "rigl-after", "snfs"])
def test_an_overflow_on_an_update_step_halves_the_loss_scale_once(name):
    """Whether or not the optimizer is applied there too; weights and masks stay."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = sparsify(mlp(), METHODS[name]())
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    compiled(model, optimizer, **EAGER)
    x, y = random_data(batches=3)
    fit(model, x[: 2 * BATCH], y[: 2 * BATCH])
    masks, weights = model.masks, [w.numpy() for w in model.trainable_variables]
    x[2 * BATCH :] = np.inf
    fit(model, x[2 * BATCH :], y[2 * BATCH :])
    assert model.step == 3
    assert float(optimizer.dynamic_scale) == 4.0
    assert equal_masks(model.masks, masks)
    for weight, before in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), before)
