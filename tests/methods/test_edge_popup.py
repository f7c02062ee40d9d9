"""Edge-popup: scores are trained, masks follow from them, and weights stay as they began."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    CheckEveryStep,
    active,
    check_invariants,
    compiled,
    equal_masks,
    mlp,
    random_data,
    sparsify,
)
from tests.references.edge_popup_numpy import EdgePopupMLP, block_mask
from tests.references.rigl_numpy import top_k_mask
from tf_rigl import methods
from tf_rigl.callbacks import SparsityError, SparsityMonitor
from tf_rigl.methods import EdgePopup

EAGER = {"run_eagerly": True}
SGD = keras.optimizers.SGD


def relu_mlp(units=8):
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(units, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


def normalised_mlp():
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(10.0), name="hidden")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


def kept(model, name):
    return [item.state[name].numpy() for item in model.masked_weights]


def fit(model, batches=8, epochs=1, callbacks=()):
    """Trains, checks every step, and returns the masks of each."""
    check = CheckEveryStep()
    x, y = random_data(batches=batches)
    model.fit(x, y, BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[check, *callbacks])
    return check.masks


def check_follows(model):
    """Masks are the best of the scores, and weights the frozen values under them."""
    for item in model.masked_weights:
        scores, values = (item.state[name].numpy() for name in ("scores", "values"))
        mask = top_k_mask(scores, item.target_active())
        np.testing.assert_array_equal(item.mask.numpy(), mask)
        np.testing.assert_array_equal(item.weight.numpy(), np.where(mask, values, 0))


# Against NumPy.


@pytest.mark.parametrize(
    ("rate", "momentum", "others", "how"),
    [(5.0, 0.0, False, EAGER), (1.0, 0.9, False, EAGER), (0.5, 0.9, True, {})],
)
def test_masks_scores_and_weights_are_those_of_the_reference(rate, momentum, others, how):
    dense = relu_mlp()
    initial = [w.numpy() for w in dense.weights]
    model = sparsify(dense, EdgePopup(train_others=others), 0.7)
    compiled(model, SGD(rate, momentum=momentum), **how)
    reference = EdgePopupMLP(
        initial,
        kept(model, "scores"),
        sparsity=0.7,
        learning_rate=rate,
        momentum=momentum,
        train_biases=others,
    )
    x, y = random_data(batches=12)
    changed = 0
    for n in range(12):
        batch = slice(n * BATCH, (n + 1) * BATCH)
        before = model.masks
        model.train_on_batch(x[batch], y[batch])
        reference.train_on_batch(x[batch], y[batch])
        changed += not equal_masks(model.masks, before)
        for mask, expected in zip(model.masks.values(), reference.masks, strict=True):
            np.testing.assert_array_equal(mask, expected)
        for scores, expected in zip(kept(model, "scores"), reference.scores, strict=True):
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    assert changed >= 6
    for n, (weight, expected) in enumerate(
        zip([w.numpy() for w in model.weights[:4]], reference.weights, strict=True)
    ):
        if n % 2:  # A bias.
            np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)
            assert weight.any() == others
        else:
            np.testing.assert_array_equal(weight, np.where(expected != 0, initial[n], 0))


@pytest.mark.parametrize("how", [EAGER, {}])
def test_scores_of_blocks_are_added_up(how):
    model = compiled(sparsify(mlp(), EdgePopup(), pattern="block_2x1"), SGD(0.5), **how)
    before = model.masks
    x, y = random_data()
    model.fit(x, y, BATCH, shuffle=False, verbose=0)
    assert not equal_masks(model.masks, before)
    for item, count in zip(model.masked_weights, (20, 6), strict=True):
        expected = block_mask(item.state["scores"].numpy(), 2, count)
        np.testing.assert_array_equal(item.mask.numpy(), expected)


def test_rows_of_an_embedding_get_the_gradient_of_their_scores():
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Flatten()(keras.layers.Embedding(9, 6, name="rows")(inputs))
    model = sparsify(keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x)), EdgePopup())
    compiled(model, SGD(1.0), **EAGER)
    item = model.masked_weights[0]
    assert item.path == "rows/embeddings"
    x, y = random_data((4,), batches=1, dtype="int32")
    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=y, y_pred=model(x))
    gradient = tf.convert_to_tensor(tape.gradient(loss, item.weight.value)).numpy()
    assert (gradient[~item.mask.numpy()] != 0).any()
    expected = item.state["scores"].numpy() - gradient * item.state["values"].numpy()
    model.train_on_batch(x, y)
    np.testing.assert_allclose(item.state["scores"].numpy(), expected, rtol=1e-5, atol=1e-7)
    check_follows(model)


def test_large_weights_whose_choice_is_compiled():
    model = compiled(sparsify(relu_mlp(units=7000), EdgePopup()), SGD(100.0))
    assert np.prod(model.masked_weights[0].shape) > 2**16
    before = model.masks
    model.train_on_batch(*random_data(batches=1))
    assert not equal_masks(model.masks, before)
    check_invariants(model)
    check_follows(model)


# What is frozen, and what is trained.


@pytest.mark.parametrize("others", [False, True])
def test_weights_are_bit_equal_to_initialisation_and_the_rest_is_as_chosen(others):
    dense = normalised_mlp()
    initial = {"/".join(w.path.split("/")[-2:]): w.numpy() for w in dense.weights}
    model = compiled(sparsify(dense, EdgePopup(train_others=others)), "adam", **EAGER)
    masks = fit(model, epochs=2)
    assert not equal_masks(masks[0], masks[-1])
    for item in model.masked_weights:
        mask, weight = item.mask.numpy(), item.weight.numpy()
        np.testing.assert_array_equal(weight[mask], initial[item.path][mask])
    for path in ("hidden/bias", "norm/gamma", "norm/beta", "head/bias"):
        name, variable = path.split("/")
        now = getattr(model.get_layer(name), variable).numpy()
        assert (now != initial[path]).any() == others, path
    assert (model.get_layer("norm").moving_mean.numpy() != 0).any()


def test_the_optimizer_is_built_on_the_scores():
    model = compiled(sparsify(mlp(), EdgePopup()), "adam", **EAGER)
    scores = [item.state["scores"] for item in model.masked_weights]
    for variables in (model.trainable_weights, model.trainable_variables):
        assert [id(v) for v in variables] == [id(v) for v in scores]
    names = {id(v) for v in model.non_trainable_variables}
    assert {id(v) for v in model.variables} == names | {id(v) for v in scores}
    fit(model)
    assert [id(v) for v in model.optimizer._trainable_variables] == [id(v) for v in scores]


def test_layers_that_stay_dense_are_frozen_unless_chosen():
    for others in (False, True):
        method = EdgePopup(train_others=others)
        model = tf_rigl.sparsify(mlp(), method, 0.5, distribution="uniform", seed=0)
        compiled(model, **EAGER)
        before = model.get_layer("hidden").kernel.numpy()
        fit(model, batches=2)
        assert (model.get_layer("hidden").kernel.numpy() != before).any() == others
        assert active(model) == {"hidden/kernel": 80, "head/kernel": 12}


def test_penalties_of_frozen_weights_do_not_count():
    model = compiled(sparsify(normalised_mlp(), EdgePopup()), **EAGER)
    assert model.losses == []


def test_averages_and_decay_are_those_of_scores():
    optimizer = keras.optimizers.AdamW(0.05, weight_decay=0.1, use_ema=True, ema_momentum=0.8)
    model = compiled(sparsify(mlp(), EdgePopup()), optimizer, **EAGER)
    record = []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: record.append(kept(model, "scores"))
    )
    first = kept(model, "scores")
    fit(model, callbacks=[keep])
    for n, (scores, average) in enumerate(zip(kept(model, "scores"), first, strict=True)):
        for step, each in enumerate(record):
            average = each[n] if step == 0 else 0.8 * average + 0.2 * each[n]
        np.testing.assert_allclose(scores, average, rtol=1e-4, atol=1e-6)
        assert (scores != record[-1][n]).any()
    check_follows(model)


def test_a_fixed_batch_is_learned_without_training_a_weight():
    method = EdgePopup(weights="signed_constant", scale=True)
    model = compiled(sparsify(relu_mlp(units=64), method, 0.5), SGD(1.0, momentum=0.9))
    x, y = random_data(batches=2)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, BATCH, epochs=30, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before / 2
    dense = tf_rigl.strip(model)
    np.testing.assert_array_equal(dense.predict(x, verbose=0), model.predict(x, verbose=0))


# How values and scores begin.


def test_masks_begin_as_the_best_of_scores_within_the_bounds_of_kaiming():
    dense = relu_mlp(units=200)
    model = sparsify(dense, EdgePopup(), 0.8)
    check_invariants(model)
    check_follows(model)
    for item, scores in zip(model.masked_weights, kept(model, "scores"), strict=True):
        bound = np.sqrt(6 / item.shape[0])
        assert np.abs(scores).max() < bound
        np.testing.assert_allclose(scores.std(), bound / np.sqrt(3), rtol=0.1)
    for values, kernel in zip(kept(model, "values"), dense.weights[::2], strict=True):
        np.testing.assert_array_equal(values, kernel.numpy())


@pytest.mark.parametrize("scale", [False, True])
def test_signed_constants_have_the_signs_of_the_weights(scale):
    dense = relu_mlp()
    model = sparsify(dense, EdgePopup(weights="signed_constant", scale=scale), 0.75)
    check_follows(model)
    for values, kernel in zip(kept(model, "values"), dense.weights[::2], strict=True):
        kernel = kernel.numpy()
        expected = np.sign(kernel) * np.sqrt(2 / kernel.shape[0] * (4 if scale else 1))
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_constants_are_by_what_is_summed_up_in_an_output():
    inputs = keras.Input((4, 4, 8))
    x = keras.layers.Conv2DTranspose(2, 3, name="transposed")(inputs)
    x = keras.layers.Reshape((9, 8))(keras.layers.Conv2D(8, 2, 2, name="conv")(x))
    x = keras.layers.EinsumDense("abc,bcd->abd", (9, 5), name="positions")(x)
    x = keras.layers.MultiHeadAttention(4, 3, name="attention")(x, x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="dense")(x))
    model = sparsify(model, EdgePopup(weights="signed_constant"), 0.5, distribution="uniform_all")
    fans = {item.path: item.state["values"].numpy() for item in model.masked_weights}
    fans = {path: round(2 / float(np.abs(v).max()) ** 2) for path, v in fans.items()}
    assert fans == {
        **{"transposed/kernel": 72, "conv/kernel": 8, "positions/kernel": 8, "dense/kernel": 5},
        **{f"attention/{name}/kernel": 5 for name in ("query", "key", "value")},
        "attention/attention_output/kernel": 12,
    }


def test_a_layer_that_is_to_have_no_zeros_keeps_its_weights():
    dense = relu_mlp()
    kernel = dense.get_layer("head").kernel.numpy()
    method = EdgePopup(weights="signed_constant")
    model = sparsify(dense, method, distribution={"hidden": 0.5, "head": 0.0})
    np.testing.assert_array_equal(model.get_layer("head").kernel, kernel)


@pytest.mark.parametrize("initializer", ["he_uniform", keras.initializers.RandomNormal(seed=3)])
def test_scores_are_drawn_by_the_seed_of_the_model_others_in_each_weight(initializer):
    def draw(seed):
        layers = [keras.layers.Dense(FEATURES, name=name) for name in ("one", "two")]
        dense = keras.Sequential([keras.Input((FEATURES,)), *layers])
        return kept(sparsify(dense, EdgePopup(score_initializer=initializer), seed=seed), "scores")

    (a, b), (c, d), (e, _) = draw(1), draw(1), draw(2)
    np.testing.assert_array_equal([a, b], [c, d])
    assert (a != b).any()
    assert (a != e).any()


def test_layers_wrapped_by_hand_have_scores_of_their_own():
    inputs = x = keras.Input((FEATURES,))
    for n in range(2):
        layer = keras.layers.Dense(FEATURES, name=f"layer_{n}")
        x = tf_rigl.MaskedLayer(layer, 0.5, initial_mask="ones", seed=0)(x)
    model = tf_rigl.SparseModel(inputs, x, method="edge_popup", seed=0)
    check_invariants(model)
    check_follows(model)
    one, other = kept(model, "scores")
    assert (one != other).any()


# Saving.


def test_weights_of_a_dense_model_are_the_frozen_values_from_then_on(tmp_path):
    dense = mlp()
    dense.save_weights(tmp_path / "dense.weights.h5")
    model = compiled(sparsify(mlp(), EdgePopup()), **EAGER)
    scores = kept(model, "scores")
    fit(model, batches=2)
    model.load_weights(tmp_path / "dense.weights.h5")
    for values, kernel in zip(kept(model, "values"), dense.weights[::2], strict=True):
        np.testing.assert_array_equal(values, kernel.numpy())
    np.testing.assert_equal(kept(model, "scores"), scores)
    check_follows(model)
    fit(model, batches=2)
    check_follows(model)


def test_weights_and_scores_are_restored_from_a_file(tmp_path):
    model = compiled(sparsify(mlp(), EdgePopup(scale=True)), "adam", **EAGER)
    fit(model, batches=3)
    model.save_weights(tmp_path / "model.weights.h5")
    other = compiled(sparsify(mlp(), EdgePopup(scale=True), seed=5), "adam", **EAGER)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    for each in (model, other):
        fit(each, batches=3)
        check_follows(each)
    np.testing.assert_equal(kept(model, "scores"), kept(other, "scores"))
    assert equal_masks(model.masks, other.masks)


# What is refused.


def test_get_by_name_and_defaults():
    method = methods.get("edge_popup")
    assert type(method) is EdgePopup
    assert (method.weights, method.scale, method.train_others) == ("initial", False, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "signed"}, "weights.*Did you mean 'signed_constant'"),
        ({"scale": 1}, "`scale` must be True or False. Received: scale=1"),
        ({"train_others": "no"}, "`train_others` must be True or False"),
        ({"score_initializer": "he_unifrom"}, "he_unifrom"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EdgePopup(**arguments)


def test_stored_blocks_are_refused():
    with pytest.raises(ValueError, match=r"`compute='sparse'` needs a method.*EdgePopup"):
        sparsify(mlp(), EdgePopup(), pattern="block_2x2", compute="sparse")


def test_layers_whose_weights_are_gone_are_refused():
    inputs = keras.Input((FEATURES,))
    outputs = tf_rigl.MaskedLayer(keras.layers.Dense(CLASSES, name="head"), 0.5)(inputs)
    model = compiled(tf_rigl.SparseModel(inputs, outputs, method=EdgePopup()))
    with pytest.raises(ValueError, match=r"'masked_head' was drawn at.*initial_mask='ones'"):
        model.fit(*random_data(), verbose=0)


def test_the_monitor_sees_scores_that_are_not_finite():
    model = compiled(sparsify(mlp(), EdgePopup()), **EAGER)
    x, y = random_data(batches=2)
    x[BATCH] = np.nan
    with pytest.raises(SparsityError, match="At step 2: 'hidden/kernel': the scores are not all"):
        model.fit(x, y, BATCH, verbose=0, shuffle=False, callbacks=[SparsityMonitor(1)])
