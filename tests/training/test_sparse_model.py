"""`sparsify` on every kind of model, and `SparseModel` under everything that `fit` can do."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    MODEL_KINDS,
    Block,
    CheckEveryStep,
    Subclassed,
    WithoutConfig,
    active,
    check_equal_models,
    check_invariants,
    compiled,
    equal_masks,
    fit,
    mlp,
    model_data,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl import maskable


def steps_that_moved(before, masks):
    """The steps at which any mask changed."""
    history = [before, *masks]
    return [t for t in range(len(masks)) if not equal_masks(history[t], history[t + 1])]


# What `sparsify` makes of each kind of model.


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_every_kind_of_model_trains_and_strips(kind):
    """Three updates with the invariants after every step; `strip` predicts the same bits."""
    make, paths = MODEL_KINDS[kind]
    x, y = model_data(kind, batches=5)
    sparse = compiled(
        sparsify(make(), rigl(start_step=0)), run_eagerly=kind not in ("functional", "dict")
    )
    assert isinstance(sparse, tf_rigl.SparseModel)
    sparse(x)  # Builds what is not built.
    assert [item.path for item in sparse.masked_weights] == paths
    before = sparse.masks

    masks = fit(sparse, x, y)

    assert steps_that_moved(before, masks) == [0, 2, 4]
    assert all((masks[-1][path] != before[path]).any() for path in paths)
    stripped = tf_rigl.strip(sparse)
    assert not isinstance(stripped, tf_rigl.SparseModel)
    keras.tree.map_structure(np.testing.assert_array_equal, sparse(x), stripped(x))
    assert not {id(v) for v in sparse.variables} & {id(v) for v in stripped.variables}


@pytest.mark.parametrize("kind", [kind for kind in MODEL_KINDS if "unbuilt" not in kind])
def test_original_is_untouched_and_weights_are_kept_where_the_mask_is_one(kind):
    make, _ = MODEL_KINDS[kind]
    model = make()
    for weight in model.weights:  # As if trained: the copy cannot draw them again.
        weight.assign(weight.numpy() + 1.0)
    before = [w.numpy() for w in model.weights]

    sparse = sparsify(model)

    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    assert not {id(v) for v in model.variables} & {id(v) for v in sparse.variables}
    originals = {m.path: m.weight.numpy() for m in maskable.find(model, include_self=False)}
    for item in sparse.masked_weights:
        expected = np.where(item.mask.numpy(), originals[item.path], 0)
        np.testing.assert_array_equal(item.weight.numpy(), expected)
    dense = tf_rigl.strip(sparsify(model, "static", sparsity=0))
    for weight, old in zip(dense.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


@pytest.mark.parametrize(
    "kind", ["sequential-unbuilt", "subclassed-unbuilt", "subclassed-dict-unbuilt"]
)
def test_unbuilt_model_is_built_by_fit(kind):
    """The first batch of `fit` builds it, and masks are there from its first step."""
    make, paths = MODEL_KINDS[kind]
    sparse = compiled(sparsify(make()))
    assert sparse.masked_weights == []
    masks = fit(sparse, *model_data(kind, batches=5))
    assert list(masks[0]) == paths
    assert steps_that_moved(masks[0], masks[1:]) == [1, 3]


def test_unbuilt_sequential_can_be_built_by_shape():
    make, paths = MODEL_KINDS["sequential-unbuilt"]
    sparse = compiled(sparsify(make()), run_eagerly=True)
    sparse.build((None, FEATURES))
    assert [item.path for item in sparse.masked_weights] == paths
    fit(sparse, *random_data())


@pytest.mark.filterwarnings("default:Keras cannot clone")
@pytest.mark.parametrize("built", [True, False])
def test_model_that_cannot_be_copied_is_changed_in_place_with_a_warning(built):
    model = WithoutConfig(keras.layers.Dense(8, name="hidden"))
    x, y = random_data()
    if built:
        model(x)
    with pytest.warns(UserWarning, match="cannot clone .*WithoutConfig.* changed in place"):
        sparse = compiled(sparsify(model), run_eagerly=True)
    before = sparse(x)
    fit(sparse, x, y)
    assert (sparse(x).numpy() != before.numpy()).any()
    np.testing.assert_array_equal(model(x).numpy(), sparse(x).numpy())
    weights = [item.weight for item in sparse.masked_weights]
    assert weights == [model.hidden.kernel, model.head.kernel]


@pytest.mark.parametrize("kind", ["functional", "subclassed", "composite"])
def test_frozen_layers_stay_frozen(kind):
    """In the copy, and in what `strip` makes of it, nested ones included."""
    model = MODEL_KINDS[kind][0]()
    frozen = model.get_layer("block").parts[0] if kind == "composite" else model.get_layer("hidden")
    frozen.trainable = False
    sparse = sparsify(model)
    count = len(model.trainable_weights)
    assert len(sparse.trainable_weights) == count
    assert len(tf_rigl.strip(sparse).trainable_weights) == count


def test_dtype_policy_of_a_subclassed_model_is_kept():
    """So that `compile` scales the loss as it does for the model itself."""
    model = Subclassed(dtype="mixed_float16")
    sparse = compiled(sparsify(model))
    assert sparse.dtype_policy == model.dtype_policy
    assert isinstance(sparse.optimizer, keras.optimizers.LossScaleOptimizer)


def test_arguments_reach_the_wrapped_call():
    """`training` and masks come through to a subclassed model; a flag of its own too."""
    seen = []

    class Curious(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.head = keras.layers.Dense(CLASSES, name="head")

        def call(self, x, training=None, flag="default"):
            seen.append((training, flag))
            return self.head(x)

    x, y = random_data(batches=3)
    sparse = compiled(sparsify(Curious()), run_eagerly=True)
    sparse(x)
    seen.clear()
    fit(sparse, x, y)
    assert seen == [(True, "default")] * 3
    seen.clear()
    sparse.evaluate(x, y, batch_size=len(x), verbose=0)
    sparse(x, training=True, flag="mine")
    assert seen == [(False, "default"), (True, "mine")]


@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_dropout_and_batch_statistics_are_active_in_training(kind):
    make, _ = MODEL_KINDS[kind]
    sparse = compiled(sparsify(make()), run_eagerly=True)
    norm = sparse.get_layer("norm")
    fit(sparse, *model_data(kind))
    assert (norm.moving_mean.numpy() != 0).all()
    x = model_data(kind)[0]
    noisy, quiet = sparse(x, training=True), sparse(x, training=False)
    assert (noisy.numpy() != quiet.numpy()).any()
    np.testing.assert_array_equal(sparse(x).numpy(), quiet.numpy())


# What can be asked of a sparse model.


def test_masked_weights_and_masks():
    sparse = sparsify(mlp(), sparsity=0.8, distribution="erk")
    shapes = {"hidden/kernel": (10, 8), "head/kernel": (8, 3)}
    expected = tf_rigl.distributions.erdos_renyi_kernel(shapes, 0.8)
    assert {i.path: i.target_sparsity for i in sparse.masked_weights} == expected
    kernels = [layer.kernel for layer in sparse.layers[1:]]
    assert [i.weight for i in sparse.masked_weights] == kernels
    for item in sparse.masked_weights:
        assert isinstance(item.mask, keras.Variable)
        assert item.mask.shape == item.weight.shape
        assert not item.mask.trainable
        mask = sparse.masks[item.path]
        assert isinstance(mask, np.ndarray)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, item.mask.numpy())
        assert (~mask).sum() == int(item.target_sparsity * mask.size)
    assert list(sparse.masks) == list(shapes)
    zeros = sum((~mask).sum() for mask in sparse.masks.values())
    assert sparse.sparsity == pytest.approx(zeros / 104)
    assert abs(sparse.sparsity - 0.8) <= 2 / 104


def test_step_counts_batches_and_survives_compile():
    sparse = compiled(sparsify(mlp()), run_eagerly=True)
    assert sparse.step == 0
    fit(sparse, *random_data(batches=3))
    compiled(sparse, run_eagerly=True)
    fit(sparse, *random_data(batches=2), epochs=2)
    assert sparse.step == 7


def test_excluded_layers_stay_dense():
    """By name, by path, and by regular expression."""
    make, paths = MODEL_KINDS["functional-in-functional"]
    for exclude, left in [
        (["hidden"], ["inner/out", "last", "head"]),
        (["inner/out"], ["inner/hidden", "last", "head"]),
        (["inner"], ["last", "head"]),
        (["^(last|head)$"], ["inner/hidden", "inner/out"]),
        (("last", "out"), ["inner/hidden", "head"]),
    ]:
        sparse = sparsify(make(), exclude=exclude)
        assert [item.path for item in sparse.masked_weights] == [f"{p}/kernel" for p in left]
        assert sparse.sparsity == 0.5
    assert len(paths) == 4


def test_distribution_as_a_mapping():
    sparse = sparsify(mlp(), distribution={"head": 0.75})
    assert active(sparse) == {"hidden/kernel": 80, "head/kernel": 6}
    by_path = sparsify(mlp(), distribution={"head/kernel": 0.75, "hidden": 0.5})
    assert active(by_path) == {"hidden/kernel": 40, "head/kernel": 6}


def test_uniform_leaves_the_first_layer_dense():
    assert active(sparsify(mlp(), distribution="uniform")) == {
        "hidden/kernel": 80,
        "head/kernel": 12,
    }


@pytest.mark.parametrize("kind", ["sequential", "functional-in-functional", "subclassed"])
def test_layers_and_summary_are_those_of_the_model(kind):
    model = MODEL_KINDS[kind][0]()
    sparse = sparsify(model)
    assert sparse.name == model.name
    assert sparse.get_layer("head").units == CLASSES
    lines = []
    sparse.summary(print_fn=lambda line, **_: lines.append(line))
    assert "head" in "".join(lines)


# Models made by hand.


def hand_built():
    inputs = keras.Input((FEATURES,))
    x = tf_rigl.MaskedLayer(keras.layers.Dense(8, name="hidden"), sparsity=0.5, seed=1)(inputs)
    outputs = keras.layers.Dense(CLASSES, name="head")(x)
    return tf_rigl.SparseModel(inputs, outputs, method=rigl(), seed=0)


@keras.saving.register_keras_serializable(package="tests")
class HandBuilt(tf_rigl.SparseModel):
    """A subclass of `SparseModel`, one masked layer of its own and one in a list."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**{"method": rigl(), **kwargs})
        dense = keras.layers.Dense(units, name="hidden")
        self.blocks = [tf_rigl.MaskedLayer(dense, sparsity=0.5, seed=1)]
        self.head = keras.layers.Dense(CLASSES, name="head")

    def call(self, x):
        return self.head(keras.ops.tanh(self.blocks[0](x)))


@pytest.mark.parametrize("make", [hand_built, HandBuilt], ids=["functional", "subclassed"])
def test_model_made_by_hand_trains_and_strips(make):
    model = compiled(make(), run_eagerly=True)
    x, y = random_data()
    model(x)
    assert [item.path for item in model.masked_weights] == ["hidden/kernel"]
    before = model.masks
    assert steps_that_moved(before, fit(model, x, y)) == [2, 4, 6]
    stripped = tf_rigl.strip(model)
    np.testing.assert_array_equal(stripped(x), model(x))
    assert {type(layer).__module__.split(".")[0] for layer in stripped._flatten_layers()} == {
        "keras"
    }


def test_unbuilt_model_made_by_hand_is_built_by_fit():
    model = compiled(HandBuilt())
    assert model.masked_weights == []
    fit(model, *random_data())
    assert model.step == 8


def test_masked_layers_deep_inside_a_model_are_found_and_stripped():
    inputs = keras.Input((FEATURES,))
    masked = tf_rigl.MaskedLayer(Block(FEATURES, name="block"), sparsity=0.5)
    inner = keras.Model(inputs, masked(inputs), name="inner")
    outer = keras.Input((FEATURES,))
    x = keras.layers.Dense(CLASSES, name="head")(inner(outer))
    model = compiled(tf_rigl.SparseModel(outer, x, method=rigl()), run_eagerly=True)
    assert len(model.masked_weights) == 2
    x, y = random_data()
    fit(model, x, y)
    stripped = tf_rigl.strip(model)
    np.testing.assert_array_equal(stripped(x), model(x))
    assert not any(isinstance(i, tf_rigl.MaskedLayer) for i in stripped._flatten_layers())


def test_masked_layer_inside_a_layer_without_build_is_masked():
    """Keras builds such a layer, as it does most subclassed models, by a symbolic call."""

    class Holder(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = tf_rigl.MaskedLayer(keras.layers.Dense(CLASSES), sparsity=0.5)

        def call(self, x):
            return self.inner(x)

    inputs = keras.Input((FEATURES,))
    model = tf_rigl.SparseModel(inputs, Holder()(inputs))
    assert model.sparsity == 0.5
    check_invariants(model)


def test_strip_leaves_no_masked_layer_inside_a_wrapper():
    inputs = keras.Input((5, FEATURES))
    layer = keras.layers.TimeDistributed(tf_rigl.MaskedLayer(keras.layers.Dense(4)))
    stripped = tf_rigl.strip(tf_rigl.SparseModel(inputs, layer(inputs)))
    assert not any(isinstance(i, tf_rigl.MaskedLayer) for i in stripped._flatten_layers())


# Training is Keras's own.


@pytest.mark.parametrize("arguments", [{"run_eagerly": True}, {"steps_per_execution": 3}])
def test_trains_as_keras_does_where_nothing_is_masked(arguments):
    """At sparsity 0 the losses, metrics and weights are those of the original model."""

    def run(wrap):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((FEATURES,))
        x = keras.layers.Dense(8, activity_regularizer="l2", name="hidden")(inputs)
        x = keras.layers.Dropout(0.3, seed=2)(keras.layers.BatchNormalization()(x))
        head = keras.layers.Dense(CLASSES, kernel_regularizer="l1", name="head")
        model = wrap(keras.Model(inputs, head(x)))
        compiled(model, metrics=["accuracy"], weighted_metrics=["accuracy"], **arguments)
        x, y = random_data(batches=4)
        weight = np.linspace(0, 2, len(x))
        history = model.fit(
            x, y, BATCH, 2, 0, validation_split=0.25, sample_weight=weight, shuffle=False
        )
        return history.history, model.trainable_weights

    dense, dense_weights = run(lambda model: model)
    sparse, sparse_weights = run(lambda model: sparsify(model, "static", sparsity=0))
    assert dense.keys() == sparse.keys()
    for name in dense:
        np.testing.assert_allclose(sparse[name], dense[name], rtol=1e-5, err_msg=name)
    for a, b in zip(dense_weights, sparse_weights, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-4, atol=1e-6)


def train(seed=3, batches=4, method=None, **arguments):
    """Two short epochs, the same whenever the arguments are; the last batch is a part."""
    keras.utils.set_random_seed(1)
    model = compiled(sparsify(mlp(), method, seed=seed), **arguments)
    x, y = random_data(batches=batches)
    model.fit(x[:-3], y[:-3], BATCH, epochs=2, shuffle=False, verbose=0)
    check_invariants(model)
    return model


@functools.cache
def trained():
    return train(run_eagerly=True)


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_a_seed_reproduces_masks_and_training(name):
    method = {"rigl": tf_rigl.methods.RigL, "set": tf_rigl.methods.SET}[name](update_interval=2)
    one, two, other = (train(s, 3, method, run_eagerly=True) for s in (3, 3, 4))
    check_equal_models(one, two)
    assert not equal_masks(one.masks, other.masks)


def test_keras_seed_reproduces_a_model_without_one():
    def masks(seed):
        keras.utils.set_random_seed(seed)
        return sparsify(mlp(), seed=None).masks

    assert equal_masks(masks(1), masks(1))
    assert not equal_masks(masks(1), masks(2))


@pytest.mark.parametrize("interval", [4, 5])
def test_several_steps_per_execution_change_nothing(interval):
    """Updates fall inside executions, and epochs end inside one, with a part of a batch."""
    method = rigl(update_interval=interval)
    one = train(batches=11, method=method, run_eagerly=True)
    three = train(batches=11, method=method, steps_per_execution=3)
    assert one.step == three.step == 22
    check_equal_models(one, three, exact=False)


def test_masks_are_the_same_eager_and_in_a_graph():
    check_equal_models(trained(), train(), exact=False)


def test_masks_are_the_same_under_xla():
    """With the sparse gradients of an embedding, too."""

    def run(**arguments):
        keras.utils.set_random_seed(1)
        tokens = keras.Input((5,), dtype="int32")
        x = keras.layers.Embedding(9, 6, name="embedding")(tokens)
        x = keras.layers.GlobalAveragePooling1D()(x)
        model = keras.Model(tokens, keras.layers.Dense(CLASSES, name="head")(x))
        sparse = compiled(sparsify(model), **arguments)
        fit(sparse, *random_data((5,), batches=5, dtype="int32"))
        return sparse

    check_equal_models(run(run_eagerly=True), run(jit_compile=True), exact=False)


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ("mixed_float16", "functional"),
        ("mixed_float16", "subclassed"),
        ("mixed_bfloat16", "functional"),
        ("mixed_bfloat16", "subclassed"),
        ("bfloat16", "functional"),
        ("float64", "functional"),
    ],
)
def test_dtype_policies(policy, kind):
    """Weights and masks keep their types, and the invariants hold."""
    keras.config.set_dtype_policy(policy)
    try:
        sparse = compiled(sparsify(MODEL_KINDS[kind][0]()), run_eagerly=True)
        before = sparse.masks
        masks = fit(sparse, *model_data(kind, batches=6))
    finally:
        keras.config.set_dtype_policy("float32")
    assert steps_that_moved(before, masks) == [2, 4]
    variable_type = "float32" if "mixed" in policy else policy
    assert {item.weight.dtype for item in sparse.masked_weights} == {variable_type}
    scaled = isinstance(sparse.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")


def test_overflow_of_a_scaled_loss_leaves_masks_alone():
    """Until the scale has come down, an update step has nothing to go by."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), 1e38)
    sparse = compiled(sparsify(mlp()), optimizer, run_eagerly=True)
    before = sparse.masks
    x, y = random_data(batches=3)
    assert steps_that_moved(before, fit(sparse, 100 * x, y)) == []
    optimizer.dynamic_scale.assign(1.0)
    assert not equal_masks(fit(sparse, *random_data(batches=3))[-1], before)


def test_loss_scale_does_not_change_masks():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9))
    assert equal_masks(trained().masks, train(optimizer=scaled, run_eagerly=True).masks)


# What `fit` can be given.


def by_batch(model, x, y, **kwargs):
    for start in range(0, len(x), BATCH):
        batch = slice(start, start + BATCH)
        logs = model.train_on_batch(x[batch], y[batch], return_dict=True, **kwargs)
        check_invariants(model)
        assert np.isfinite(logs["loss"])


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // BATCH

    def __getitem__(self, index):
        batch = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[batch], self.y[batch]


def generator(x, y):
    for start in range(0, len(x), BATCH):
        yield x[start : start + BATCH], y[start : start + BATCH]


def dataset(x, y, known=True):
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    return data if known else data.filter(lambda *_: True)


@functools.cache
def run_by(way):
    keras.utils.set_random_seed(1)
    model = compiled(sparsify(mlp()), run_eagerly=True)
    way(model, *random_data(batches=6))
    return model


def quiet(data, **kwargs):
    return lambda model, x, y: model.fit(data(x, y), verbose=0, shuffle=False, **kwargs)


@pytest.mark.parametrize(
    "run",
    [
        by_batch,
        quiet(Batches),
        quiet(generator),
        quiet(dataset),
        quiet(lambda x, y: dataset(x, y, known=False)),
        quiet(lambda x, y: dataset(x, y).repeat(), steps_per_epoch=3, epochs=2),
        lambda model, x, y: [fit(model, x[n : n + 16], y[n : n + 16]) for n in (0, 16, 32)],
    ],
    ids=[
        "train_on_batch",
        "PyDataset",
        "generator",
        "dataset",
        "unknown length",
        "steps_per_epoch",
        "several fits",
    ],
)
def test_the_same_batches_train_the_same_however_they_come(run):
    model = run_by(run)
    check_equal_models(model, run_by(fit), exact=False)
    assert model.step == 6


def test_unknown_length_goes_on_over_epochs():
    sparse = compiled(sparsify(mlp()), steps_per_execution=3)
    x, y = random_data(batches=5)
    sparse.fit(dataset(x, y, known=False), epochs=3, verbose=0)
    assert sparse.step == 15
    check_invariants(sparse)


def test_class_weight_acts_as_sample_weight():
    x, y = random_data(batches=5)
    weights = {0: 0.1, 1: 1.0, 2: 5.0}
    by_sample = np.array([weights[label] for label in y])
    models = []
    for kwargs in ({"class_weight": weights}, {"sample_weight": by_sample}, {}):
        keras.utils.set_random_seed(1)
        models.append(compiled(sparsify(mlp()), run_eagerly=True))
        fit(models[-1], x, y, **kwargs)
    check_equal_models(models[0], models[1], exact=False)
    assert not equal_masks(models[0].masks, models[2].masks)


def test_early_stopping_restores_masks_with_weights():
    x, y = random_data(batches=3)
    sparse = compiled(sparsify(mlp()), keras.optimizers.SGD(5.0), run_eagerly=True)
    epochs = []

    class Keep(CheckEveryStep):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append((logs["val_loss"], self.model.get_weights(), self.model.masks))

    stop = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    fit(sparse, x, y, epochs=9, validation_data=(x, -y + 2), callbacks=[Keep(), stop])
    assert len(epochs) < 9
    _, weights, masks = min(epochs, key=lambda epoch: epoch[0])
    assert equal_masks(sparse.masks, masks)
    for a, b in zip(sparse.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    check_invariants(sparse)
    fit(sparse, x, y)


def test_set_weights_and_get_weights():
    """Masks are among the weights; what is set under a mask becomes zero."""
    one, two = sparsify(mlp(), seed=1), sparsify(mlp(), seed=2)
    two.set_weights(one.get_weights())
    assert equal_masks(one.masks, two.masks)
    two.set_weights([np.ones_like(w) if w.dtype != bool else w for w in one.get_weights()])
    check_invariants(two)


def test_weights_set_by_a_layer_are_masked_when_training_begins():
    sparse = compiled(sparsify(mlp()), run_eagerly=True)
    sparse.get_layer("hidden").set_weights([np.ones((FEATURES, 8)), np.ones(8)])
    fit(sparse, *random_data())


@pytest.mark.parametrize("form", ["list", "one", "CallbackList", "nested"])
def test_callbacks_in_every_form_that_keras_takes(form):
    sparse = compiled(sparsify(mlp()), run_eagerly=True)
    check = CheckEveryStep()
    callbacks = {"list": [check], "one": check, "nested": [[check]]}.get(form)
    if form == "CallbackList":
        callbacks = keras.callbacks.CallbackList([check], add_history=True, model=sparse, epochs=1)
    x, y = random_data()
    history = sparse.fit(x, y, BATCH, verbose=0, callbacks=callbacks)
    assert len(check.masks) == sparse.step == 8
    assert len(history.history["loss"]) == 1


def test_usual_callbacks(tmp_path):
    """Checkpoints, learning rate changes, logs and termination on NaN work as ever."""
    path = str(tmp_path / "best.keras")
    sparse = compiled(sparsify(mlp()), run_eagerly=True)
    x, y = random_data()
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    callbacks = [
        keras.callbacks.ModelCheckpoint(path),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ReduceLROnPlateau(monitor="loss"),
        keras.callbacks.TerminateOnNaN(),
        rates,
    ]
    fit(sparse, x, y, epochs=2, callbacks=callbacks)
    loaded = keras.models.load_model(path)
    check_equal_models(loaded, sparse)
    assert float(loaded.optimizer.learning_rate.numpy()) == pytest.approx(0.05)


@pytest.mark.parametrize("restart", ["initial_epoch", "backup"])
def test_float_end_step_counts_the_whole_run(restart, tmp_path):
    """A run that was cut off after 2 of 4 epochs, and goes on, keeps its schedule."""
    method = rigl(end_step=0.75, decay="linear")
    x, y = random_data(batches=3)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    def run(*callbacks, **kwargs):
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        also = [backup] if restart == "backup" and callbacks else []
        callbacks = [CheckEveryStep(), *also, *callbacks]
        fit(model, x, y, epochs=4, callbacks=callbacks, **kwargs)
        return callbacks[0].masks

    keras.utils.set_random_seed(1)
    model = compiled(sparsify(mlp(), method), run_eagerly=True)
    before, whole = model.masks, run()
    assert steps_that_moved(before, whole) == [2, 4, 6, 8]  # Of 12 steps; the end is 9.

    keras.utils.set_random_seed(1)
    model = compiled(sparsify(mlp(), method), run_eagerly=True)
    parts = run(Stop())
    assert model.step == 6
    if restart == "initial_epoch":
        parts += run(initial_epoch=2)
    else:
        model = compiled(sparsify(mlp(), method, seed=9), run_eagerly=True)
        parts += run(keras.callbacks.Callback())
    assert model.step == 12
    assert all(equal_masks(a, b) for a, b in zip(whole, parts, strict=True))
