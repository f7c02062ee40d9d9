"""Models with a `train_step`, `compute_loss`, `compile` or `fit` of their own train sparse."""

import warnings

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
    check_invariants,
    check_pruned,
    mlp,
    random_data,
    rigl,
)
from tf_rigl.training.own_step import optimizers_of

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable(package="tests")
class Handmade(keras.Model):
    """Trains as Keras does, by a step of its own."""

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return {"loss": loss}


def handmade(dense):
    """The same network, of another class, with the same weights."""
    model = Handmade(dense.inputs, dense.outputs, name=dense.name)
    assert all(one is other for one, other in zip(model.weights, dense.weights, strict=True))
    return model


def fitted(model, method, optimizer=None, **kwargs):
    sparse = tf_rigl.sparsify(model, method, sparsity=0.6, distribution="uniform_all", seed=0)
    sparse.compile(keras.optimizers.get(optimizer or "adam"), loss=LOSS, **kwargs)
    x, y = random_data(batches=9)
    sparse.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    return sparse


@pytest.mark.parametrize("name", [name for name in METHODS if "grasp" not in name])
def test_a_step_as_that_of_keras_gives_the_same_masks_and_weights(name):
    dense = mlp()
    ours = fitted(dense, METHODS[name]())
    theirs = fitted(handmade(dense), METHODS[name]())
    assert isinstance(theirs.model, Handmade)
    check_pruned(theirs)
    assert ours.step == theirs.step == 18
    for one, other in zip(ours.masked_weights, theirs.masked_weights, strict=True):
        np.testing.assert_array_equal(one.mask.numpy(), other.mask.numpy())
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("optimizer", "kwargs"),
    [
        (lambda: keras.optimizers.Lamb(0.01), {}),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.1), {}),
        (lambda: keras.optimizers.Adam(gradient_accumulation_steps=2), {}),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), {}),
        (lambda: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=3), {}),
        (lambda: keras.optimizers.Adam(), {"jit_compile": True}),
        (lambda: keras.optimizers.Adam(), {"run_eagerly": True}),
        (lambda: keras.optimizers.Adam(), {"steps_per_execution": 3}),
    ],
)
def test_optimizers_and_ways_to_run(optimizer, kwargs):
    dense = mlp()
    ours = fitted(dense, rigl(), optimizer(), **kwargs)
    theirs = fitted(handmade(dense), rigl(), optimizer(), **kwargs)
    check_invariants(theirs)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Rivals(keras.Model):
    """Two networks, each with an optimizer; the first is trained twice in each step."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first = first
        self.second = second

    def compile(self, first_optimizer, others):
        super().compile()
        self.first_optimizer = first_optimizer
        self.others = others
        self.loss_of_first = keras.metrics.Mean(name="first")

    @property
    def metrics(self):
        return [self.loss_of_first]

    def train_step(self, data):
        x, y = data
        for _ in range(2):
            self._train(self.first, self.first_optimizer, x, y)
        loss = self._train(self.second, self.others["second"], x, y)
        self.loss_of_first.update_state(loss)
        return {"first": self.loss_of_first.result()}

    def _train(self, network, optimizer, x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, network(x, training=True))
        gradients = tape.gradient(loss, network.trainable_weights)
        optimizer.apply(gradients, network.trainable_weights)
        return loss

    def get_config(self):
        parts = {name: getattr(self, name) for name in ("first", "second")}
        return {n: keras.saving.serialize_keras_object(part) for n, part in parts.items()}

    @classmethod
    def from_config(cls, config):
        return cls(**{n: keras.saving.deserialize_keras_object(c) for n, c in config.items()})


def rivals(method=None):
    model = Rivals(mlp("first"), mlp("second"))
    sparse = tf_rigl.sparsify(model, method or rigl(), sparsity=0.6, seed=0)
    sparse.compile(keras.optimizers.Adam(0.01), {"second": keras.optimizers.SGD(0.1)})
    return sparse


def test_several_optimizers_in_one_step():
    sparse = rivals()
    assert len(sparse.masked_weights) == 4
    before = sparse.masks
    x, y = random_data(batches=8)
    history = sparse.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    assert list(history.history) == ["first"]
    check_invariants(sparse)
    after = sparse.masks
    assert all((before[path] != after[path]).any() for path in before)
    assert all(before[path].sum() == after[path].sum() for path in before)
    updates = 3  # At steps 2, 4 and 6 of 0 to 7.
    assert int(sparse.others["second"].iterations) == 8 - updates
    # Where masks change, they do so in place of the first of the two optimizer steps.
    assert int(sparse.first_optimizer.iterations) == 2 * 8 - updates


def test_optimizers_are_found_where_models_keep_them():
    sparse = rivals()
    expected = [sparse.model.optimizer, sparse.first_optimizer, sparse.others["second"]]
    assert {id(each) for each in optimizers_of(sparse)} == {id(each) for each in expected}
    assert all("apply" not in vars(each) for each in expected)


def test_a_model_of_two_optimizers_is_saved_and_stripped(tmp_path):
    sparse = rivals()
    x, y = random_data(batches=5)
    sparse.fit(x, y, batch_size=BATCH, verbose=0)
    sparse.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=r"`compile\(\)` method is custom"):  # By Keras.
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.step == sparse.step == 5
    for one, other in zip(sparse.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    loaded.compile(keras.optimizers.Adam(0.01), {"second": keras.optimizers.SGD(0.1)})
    loaded.fit(x, y, batch_size=BATCH, verbose=0)
    check_invariants(loaded)
    stripped = tf_rigl.strip(sparse)
    assert type(stripped) is Rivals
    np.testing.assert_array_equal(stripped.first(x), sparse.first(x))


def test_weights_that_no_optimizer_trains_are_named():
    class OnlyFirst(Rivals):
        def train_step(self, data):
            self._train(self.first, self.first_optimizer, *data)
            return {}

    sparse = tf_rigl.sparsify(OnlyFirst(mlp("first"), mlp("second")), rigl(), sparsity=0.6, seed=0)
    sparse.compile(keras.optimizers.Adam(0.01), {})
    before = sparse.masks
    x, y = random_data(batches=8)
    with pytest.warns(UserWarning, match=r"applies no optimizer .*'second/hidden/kernel'"):
        sparse.fit(x, y, batch_size=BATCH, verbose=0)
    after = sparse.masks
    changed = {path for path in before if (before[path] != after[path]).any()}
    assert changed == {"first/hidden/kernel", "first/head/kernel"}


def test_the_cost_of_a_model_without_call_is_that_of_its_networks():
    sparse = rivals()
    whole, first = tf_rigl.report(sparse), tf_rigl.report(sparse.first)
    assert whole.dense_flops == 2 * first.dense_flops
    assert whole.bias_flops == 2 * first.bias_flops
    assert whole.sparsity == pytest.approx(sparse.sparsity)
    assert [row.name for row in whole.layers] == [item.path for item in sparse.masked_weights]
    planned = tf_rigl.plan(Rivals(mlp("first"), mlp("second")), sparsity=0.6)
    assert planned.flops == whole.flops
    with pytest.raises(ValueError, match=r"Rivals defines no `call`.*`input_shape` must be None"):
        tf_rigl.report(sparse, input_shape=(FEATURES,))


def test_a_model_without_configuration_says_how_to_save_it(tmp_path):
    class NoConfig(Rivals):
        get_config = keras.Model.get_config

    with pytest.warns(UserWarning, match="changed in place"):
        sparse = tf_rigl.sparsify(NoConfig(mlp("first"), mlp("second")), rigl(), 0.6, seed=0)
    with pytest.raises(ValueError, match=r"has no `get_config` .* use `save_weights`"):
        sparse.save(tmp_path / "model.keras")
    assert not list(tmp_path.iterdir())
    sparse.save_weights(tmp_path / "model.weights.h5")
    sparse.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("name", ["rigl", "snfs", "edge-popup"])
def test_the_state_of_the_optimizer_comes_back_with_a_file(name, tmp_path):
    sparse = fitted(handmade(mlp()), METHODS[name]())
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == int(sparse.optimizer.iterations) > 0
    pairs = zip(loaded.optimizer.variables, sparse.optimizer.variables, strict=True)
    assert all((one.numpy() == other.numpy()).all() for one, other in pairs)
    x, y = random_data(batches=4)
    for model in (sparse, loaded):
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    for one, other in zip(sparse.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backup", [tf_rigl.callbacks, keras.callbacks])
def test_a_run_that_is_cut_off_goes_on(backup, tmp_path):
    """With the backups of the library and those of Keras."""

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    dense, (x, y) = mlp(), random_data(batches=5)
    runs = []
    for cut in (False, True):
        sparse = tf_rigl.sparsify(handmade(dense), rigl(), sparsity=0.6, seed=0)
        sparse.compile("adam", loss=LOSS)
        arguments = {"batch_size": BATCH, "epochs": 4, "shuffle": False, "verbose": 0}
        if cut:
            back_up = [backup.BackupAndRestore(str(tmp_path))]
            with pytest.raises(KeyboardInterrupt):
                sparse.fit(x, y, **arguments, callbacks=[*back_up, Cut()])
            sparse = tf_rigl.sparsify(handmade(dense), rigl(), sparsity=0.6, seed=1)
            sparse.compile("adam", loss=LOSS)
            arguments["callbacks"] = [backup.BackupAndRestore(str(tmp_path))]
        sparse.fit(x, y, **arguments)
        assert sparse.step == 20
        runs.append([sparse.get_weights(), [v.numpy() for v in sparse.optimizer.variables]])
    for one, other in zip(*map(sum, runs, ([], [])), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_figure_is_doubted_while_a_file_is_loaded(tmp_path):
    """Keras reads `sparsity` when it has loaded the weights, and not yet the masks."""
    sparse = fitted(handmade(mlp()), "edge_popup")
    sparse.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.sparsity == sparse.sparsity
    loaded.masked_weights[0].weight.assign(tf.ones([FEATURES, 8]))
    with pytest.warns(UserWarning, match="not zero where their masks are 0"):
        assert loaded.sparsity < sparse.sparsity


def test_a_loss_of_its_own():
    class Squared(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean((keras.ops.one_hot(y, CLASSES) - y_pred) ** 2)

    dense = mlp()
    inputs = keras.Input((FEATURES,))
    model = Squared(inputs, dense(inputs))
    sparse = tf_rigl.sparsify(model, rigl(), sparsity=0.6, seed=0)
    sparse.compile("adam")
    before = sparse.masks
    x, y = random_data()
    loss = sparse.fit(x, y, batch_size=BATCH, epochs=3, verbose=0).history["loss"]
    check_invariants(sparse)
    assert loss[-1] < loss[0] < 2  # Cross entropy cannot be: no loss was compiled.
    assert any((before[path] != mask).any() for path, mask in sparse.masks.items())


def test_a_fit_and_callbacks_of_its_own():
    """The callbacks see the sparse model, which passes on what it does not know."""
    seen = []

    class Doubling(keras.Model):
        factor = 2.0

        def fit(self, x=None, y=None, **kwargs):
            return super().fit(x * self.factor, y, **kwargs)

        def greet(self):
            return "hello"

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((self.model, self.model.step, self.model.greet()))
            self.model.stop_training = epoch == 1

    dense = mlp()
    sparse = tf_rigl.sparsify(Doubling(dense.inputs, dense.outputs), rigl(), sparsity=0.6, seed=0)
    sparse.compile("adam", loss=LOSS)
    x, y = random_data(batches=4)
    sparse.fit(x, y, batch_size=BATCH, epochs=5, verbose=0, callbacks=[Look()])
    assert seen == [(sparse, 4, "hello"), (sparse, 8, "hello")]
    check_invariants(sparse)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = sparse.no_such_thing


def test_batches_one_by_one():
    sparse = tf_rigl.sparsify(handmade(mlp()), rigl(end_step=8), sparsity=0.6, seed=0)
    sparse.compile("adam", loss=LOSS)
    before, (x, y) = sparse.masks, random_data()
    for start in range(0, len(x), BATCH):
        sparse.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
    assert sparse.step == 8
    check_invariants(sparse)
    assert any((before[path] != mask).any() for path, mask in sparse.masks.items())


def test_a_model_without_call_is_built_by_its_step():
    def network(units):
        return keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(units)])

    sparse = tf_rigl.sparsify(Rivals(network(CLASSES), network(CLASSES)), rigl(), 0.6, seed=0)
    sparse.compile(keras.optimizers.Adam(0.01), {"second": keras.optimizers.SGD(0.1)})
    x, y = random_data()
    sparse.fit(x, y, batch_size=BATCH, verbose=0)
    assert len(sparse.masked_weights) == 4
    check_invariants(sparse)


class Subclass(tf_rigl.SparseModel):
    """A subclass of `SparseModel` with a step of its own."""

    def __init__(self, by_super, initial_mask="random", **kwargs):
        super().__init__(**kwargs)
        self.hidden = tf_rigl.MaskedLayer(
            keras.layers.Dense(8, name="hidden"), 0.6, seed=0, initial_mask=initial_mask
        )
        self.head = keras.layers.Dense(CLASSES, name="head")
        self.by_super = by_super

    def call(self, x, training=None):
        return self.head(self.hidden(x))

    def train_step(self, data):
        return super().train_step(data) if self.by_super else Handmade.train_step(self, data)


@pytest.mark.parametrize("by_super", [True, False])
def test_a_step_of_a_subclass_runs_at_updates_too(by_super):
    model = Subclass(by_super, method=rigl(), seed=0)
    model.compile("adam", loss=LOSS)
    x, y = random_data()
    model(x)
    before = model.masks["hidden/kernel"]
    model.fit(x, y, batch_size=BATCH, verbose=0)
    check_invariants(model)
    assert (model.masks["hidden/kernel"] != before).any()
    assert int(model.optimizer.iterations) == 8 - 3


def test_a_method_that_differentiates_twice_is_refused():
    with pytest.raises(ValueError, match="differentiates the loss twice"):
        tf_rigl.sparsify(handmade(mlp()), "grasp", 0.6)


def test_a_subclass_that_differentiates_scores_is_refused():
    model = Subclass(False, "ones", method="edge_popup", seed=0)
    model.compile("adam", loss=LOSS)
    with pytest.raises(ValueError, match=r"EdgePopup trains other variables .* `train_step`"):
        model.fit(*random_data(), verbose=0)


@keras.saving.register_keras_serializable(package="tests")
class Decorated(Handmade):
    @tf.function
    def train_step(self, data):
        return super().train_step(data)


def test_a_decorated_step_is_that_without_the_decorator():
    dense = mlp()
    ours = fitted(handmade(dense), rigl())
    theirs = fitted(Decorated(dense.inputs, dense.outputs), rigl())
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_optimizer_in_an_inner_function_is_refused():
    class Inner(Handmade):
        @tf.function
        def apply(self, gradients):
            self.optimizer.apply(gradients, self.trainable_weights)

        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(*data, self(data[0], training=True))
            self.apply(tape.gradient(loss, self.trainable_weights))
            return {"loss": loss}

    dense = mlp()
    with pytest.raises(ValueError, match=r"within a `tf\.function`.* Remove the decorator"):
        fitted(Inner(dense.inputs, dense.outputs), rigl())


def test_an_optimizer_in_a_condition_comes_with_a_warning():
    class Every(Handmade):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(*data, self(data[0], training=True))
            gradients = tape.gradient(loss, self.trainable_weights)
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_weights)

            def apply():
                inner = [tf.identity(g) for g in gradients]
                self.optimizer.apply(inner, self.trainable_weights)
                return True

            tf.cond(loss > 0, apply, lambda: False)
            return {"loss": loss}

    dense = mlp()
    model = Every(dense.inputs, dense.outputs)
    with pytest.warns(UserWarning, match="within a condition or a loop"):
        sparse = fitted(model, rigl(), keras.optimizers.SGD(0.1))
    check_invariants(sparse)


@keras.saving.register_keras_serializable(package="tests")
class Overlapping(Rivals):
    """Both optimizers get the variables of both networks; the second has gradients for one."""

    def train_step(self, data):
        x, y = data
        both = [*self.first.trainable_weights, *self.second.trainable_weights]
        for networks, optimizer in (
            ([self.first], self.first_optimizer),
            ([self.first, self.second], self.others["second"]),
        ):
            with tf.GradientTape() as tape:
                loss = sum(LOSS(y, network(x, training=True)) for network in networks)
            optimizer.apply(tape.gradient(loss, both), both)
        return {}


def test_weights_of_two_optimizers_change_their_masks_once():
    model = Overlapping(mlp("first"), mlp("second"))
    sparse = tf_rigl.sparsify(model, rigl(), sparsity=0.6, seed=0)
    sparse.compile(keras.optimizers.SGD(0.1), {"second": keras.optimizers.SGD(0.1)})
    before = sparse.masks
    x, y = random_data(batches=8)
    sparse.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    check_invariants(sparse)
    after = sparse.masks
    assert all((before[path] != after[path]).any() for path in before)
    # At an update the second optimizer takes an ordinary step for the weights of the first.
    assert int(sparse.first_optimizer.iterations) == 8 - 3
    assert int(sparse.others["second"].iterations) == 8


def test_a_weight_without_a_gradient_is_named():
    class Half(Rivals):
        def train_step(self, data):
            both = [*self.first.trainable_weights, *self.second.trainable_weights]
            with tf.GradientTape() as tape:
                loss = LOSS(data[1], self.first(data[0], training=True))
            self.first_optimizer.apply(tape.gradient(loss, both), both)
            return {}

    sparse = tf_rigl.sparsify(Half(mlp("first"), mlp("second")), rigl(), sparsity=0.6, seed=0)
    sparse.compile(keras.optimizers.SGD(0.1), {})
    with pytest.warns(UserWarning, match=r"applies no optimizer .*'second/hidden/kernel'") as seen:
        sparse.fit(*random_data(batches=8), batch_size=BATCH, verbose=0)
    assert sum("applies no optimizer" in str(each.message) for each in seen) == 1


@pytest.mark.filterwarnings("error:.*applies no optimizer")
def test_pruning_by_magnitude_reaches_weights_without_a_gradient():
    """It needs none, as in the library's own step."""
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(12, name="hidden")(inputs)
    aside = keras.layers.Dense(6, name="aside")(hidden)
    outputs = [keras.layers.Dense(CLASSES, name="head")(hidden), aside]
    models = [
        tf_rigl.sparsify(
            cls(inputs, outputs), METHODS["magnitude"](), sparsity=0.6, exclude=["head"], seed=0
        )
        for cls in (OneOfTwo, OneOfTwoByHand)
    ]
    x, y = random_data(batches=9)
    for model in models:
        model.compile("adam")
        model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
        for item in model.masked_weights:
            assert item.active() == item.target_active(), item.path
    for one, other in zip(*(model.masked_weights for model in models), strict=True):
        np.testing.assert_array_equal(one.mask.numpy(), other.mask.numpy())


@keras.saving.register_keras_serializable(package="tests")
class OneOfTwo(keras.Model):
    """Its loss takes the first of two outputs."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return LOSS(y, y_pred[0])


@keras.saving.register_keras_serializable(package="tests")
class OneOfTwoByHand(OneOfTwo, Handmade):
    """The same, with a step of its own."""


def test_the_wrapped_model_may_be_compiled_by_itself():
    sparse = fitted(handmade(mlp()), rigl())
    optimizer = keras.optimizers.SGD(0.1)
    sparse.model.compile(optimizer, loss=LOSS)
    sparse.fit(*random_data(batches=3), batch_size=BATCH, verbose=0)
    assert int(optimizer.iterations) > 0


def test_a_fit_that_compiles_and_a_callback_that_trains():
    class Compiling(Handmade):
        def fit(self, *args, **kwargs):
            self.compile("sgd", loss=LOSS)
            return super().fit(*args, **kwargs)

    class Train(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.train_on_batch(x[:BATCH], y[:BATCH])

    dense, (x, y) = mlp(), random_data(batches=3)
    sparse = tf_rigl.sparsify(Compiling(dense.inputs, dense.outputs), rigl(end_step=9), 0.6, seed=0)
    sparse.compile("adam", loss=LOSS)
    callback = Train()
    for _ in range(2):
        sparse.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[callback, callback])
    check_invariants(sparse)
    assert "set_model" not in vars(callback)
    assert "make_train_function" not in vars(sparse.model)


def test_a_clone_without_masks_is_refused():
    clone = keras.models.clone_model(fitted(handmade(mlp()), rigl()))
    clone.compile("adam", loss=LOSS)
    with pytest.raises(ValueError, match=r"all masks of the model are ones, .* `keras\.models"):
        clone.fit(*random_data(), batch_size=BATCH, verbose=0)


def test_a_backup_of_several_optimizers_wants_them_built(tmp_path):
    x, y = random_data(batches=5)

    def back_up():
        return tf_rigl.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    first, second = rivals(), rivals()
    first.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[back_up()])
    with pytest.raises(ValueError, match="holds the state of 2 optimizers, of which 0 are built"):
        second.fit(x, y, batch_size=BATCH, epochs=3, verbose=0, callbacks=[back_up()])
    second.first_optimizer.build(second.first.trainable_weights)
    second.others["second"].build(second.second.trainable_weights)
    second.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[back_up()])
    assert second.step == 10
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_scores_want_the_weights_passed():
    class Bare(Handmade):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(*data, self(data[0], training=True))
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_weights)
            self.optimizer.apply(tape.gradient(loss, self.trainable_weights))
            return {"loss": loss}

    dense = mlp()
    fitted(Bare(dense.inputs, dense.outputs), rigl())
    with pytest.raises(ValueError, match=r"pass the weights to `optimizer\.apply`"):
        fitted(Bare(dense.inputs, dense.outputs), "edge_popup")


def test_a_part_of_a_model_is_excluded_by_its_attribute():
    class Averaged(Rivals):
        """The second network follows the first: it is not trained, and must not be masked."""

        def train_step(self, data):
            loss = self._train(self.first, self.first_optimizer, *data)
            for one, other in zip(self.first.weights, self.second.weights, strict=True):
                other.assign(0.9 * other + 0.1 * one)
            return {"first": loss}

    first = mlp()
    model = Averaged(first, keras.models.clone_model(first))  # Of the same name.
    sparse = tf_rigl.sparsify(model, rigl(), sparsity=0.6, exclude=["second"], seed=0)
    assert [item.path for item in sparse.masked_weights] == ["mlp/hidden/kernel", "mlp/head/kernel"]
    kernels = [network.get_layer("hidden").kernel for network in (sparse.first, sparse.second)]
    assert sparse.masked_weights[0].weight is kernels[0]
    sparse.compile(keras.optimizers.SGD(0.1), {})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*applies no optimizer")
        sparse.fit(*random_data(batches=8), batch_size=BATCH, verbose=0)
    check_invariants(sparse)
